"""Build: members become one verified artifact.

Every member is captured (unless it is a graph already), lowered and merged with the others over one input. The artifact
is written to a file beside its destination, read back as any user would read it, run by the engine on at least
:data:`SAMPLES` images and compared with where it came from; only then it takes its name. So packing, file format, plan
and kernels all stand between the two sides of the comparison.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from . import __version__, artifact
from .artifact import Artifact
from .backends import reference as exact
from .capture import capture
from .engine import Engine
from .errors import InputError, VerificationError, WriteError
from .graph import Graph, Member, merge, verify
from .graph.passes import lower
from .ledger import ledger
from .preprocess import FLOAT32_NCHW, UINT8_NHWC, InputSpec, check_images, from_sequence, to_nchw

SAMPLES = 256
TOLERANCE = 1e-3  # absolute, of float logits up to LOGIT_SCALE; in proportion above it
LOGIT_SCALE = 10.0
_SEED = 20230107794  # any fixed number: the sample must be the same in every build


def build(
    members: Mapping[str, nn.Module | Graph], example: InputSpec | np.ndarray | torch.Tensor, *,
    path: str | Path | None = None, reference: str | None = None, images: np.ndarray | None = None,
    mean: float | tuple[float, ...] = 0.0, std: float | tuple[float, ...] = 1.0,
    classes: tuple[str, ...] | None = None, reference_flops: float | None = None,
    provenance: Mapping[str, Any] | None = None, accuracy: Mapping[str, Any] | None = None, device: str = "auto",
) -> Artifact:
    """The verified artifact of an ensemble, written to ``path`` if that is given.

    members: name -> module in PyTorch (called with normalised float32 NCHW images) or single-member graph; all vote,
    except the one named by ``reference``, which is kept as the baseline of comparisons.
    example: the input specification, or a batch of images (uint8 NHWC or float32 NCHW) from which it is derived with
    ``mean`` and ``std``.
    images: what to verify on; topped up with a seeded sample to :data:`SAMPLES` images.
    reference_flops: cost of the unpruned network in the paper's convention, where there is no reference member.

    Float members must give the source's logits within :data:`TOLERANCE` and the same predictions but for ties inside
    it; quantized members must equal the frozen graph bit for bit. Raises VerificationError otherwise, InputError,
    UnsupportedError or GraphError for members that cannot be built, WriteError for a full disk; ``path`` is then as it
    was before.
    """
    spec = example if isinstance(example, InputSpec) else _input_of(example, mean, std)
    _check_members(members)
    if path is not None and not Path(path).name:
        raise InputError("build", expected="path to name a file", got=repr(str(path)), fix="pass for example 'model.hce'")
    if path is not None and not Path(path).absolute().parent.is_dir():
        raise WriteError("build", expected=f"an existing folder for {path}", got="none", fix="make the folder first")
    if reference is not None and reference not in members:
        raise InputError("build", expected=f"a reference among {', '.join(members)}", got=repr(reference),
                         fix="name one of the members")
    graphs = {name: _graph_of(name, member, spec) for name, member in members.items()}
    graph = verify(merge(graphs, {reference: "reference"} if reference else {}))
    sample = verification_images(spec, images)
    result = Artifact(
        graph, spec, classes, ledger=ledger(graph, reference_flops=reference_flops), accuracy=accuracy or {},
        provenance={"hce_engine": __version__, "torch": torch.__version__.split("+")[0], **(provenance or {})},
    )
    if path is None:
        return _verified(result, result, members, graphs, sample, device)
    path = Path(path)
    candidate = path.with_name(path.name + ".unverified")
    try:
        artifact.save(candidate, result)
        result = _verified(result, artifact.load(candidate), members, graphs, sample, device)
        artifact.save(path, result)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(candidate)
    return result


def verification_images(spec: InputSpec, images: np.ndarray | None) -> np.ndarray:
    """``images``, checked, and as many of a seeded sample as are missing to :data:`SAMPLES`.

    The sample holds noise at four scales, from single pixels to nearly uniform images, in equal parts: a layer whose
    padding, stride or saturation is wrong shows on one of them.
    """
    given = np.empty((0, *spec.array_shape), spec.numpy_dtype) if images is None else check_images(images, spec)
    missing = SAMPLES - len(given)
    if missing <= 0:
        return given
    rng = np.random.default_rng(_SEED)
    c, h, w = spec.shape
    parts = []
    for scale in (1, 2, 4, 8):
        count = (missing + 3) // 4
        coarse = rng.random((count, c, -(-h // scale), -(-w // scale)), np.float32)
        parts.append(coarse.repeat(scale, axis=2).repeat(scale, axis=3)[:, :, :h, :w])
    values = np.concatenate(parts)[:missing]
    if spec.kind == UINT8_NHWC:
        drawn: np.ndarray = np.minimum(values * 256, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    else:
        drawn = values * np.float32(spec.high - spec.low) + np.float32(spec.low)
    return np.ascontiguousarray(np.concatenate([given, drawn]))


def _check_members(members: Mapping[str, nn.Module | Graph]) -> None:
    def refuse(got: str) -> InputError:
        return InputError("build", expected="at least one member by its name, a module or a graph", got=got, fix="pass {'o': module}")

    if not isinstance(members, Mapping):
        raise refuse(type(members).__name__)
    if not members:
        raise refuse("none")
    for name, member in members.items():
        if not isinstance(name, str) or not isinstance(member, (nn.Module, Graph)):
            raise refuse(f"{name!r}: {type(member).__name__}")


def _input_of(example: np.ndarray | torch.Tensor, mean: Any, std: Any) -> InputSpec:
    batch = example.detach().cpu().numpy() if isinstance(example, torch.Tensor) else np.asarray(example)
    if batch.ndim != 4 or batch.dtype not in (np.uint8, np.float32):
        raise InputError("build", expected="example images (N, H, W, C) uint8 or (N, C, H, W) float32",
                         got=f"{batch.shape} {batch.dtype}", fix="pass such a batch, or an InputSpec")
    if batch.dtype == np.uint8:
        h, w, c = batch.shape[1:]
        return InputSpec(UINT8_NHWC, (c, h, w), from_sequence(mean, c), from_sequence(std, c))
    c, h, w = batch.shape[1:]
    return InputSpec(FLOAT32_NCHW, (c, h, w), from_sequence(mean, c), from_sequence(std, c))


def _graph_of(name: str, member: nn.Module | Graph, spec: InputSpec) -> Graph:
    if isinstance(member, nn.Module):
        return lower(capture(member, spec, member=name))
    if len(member.members) != 1:
        raise InputError(f"build of member {name!r}", expected="a graph with one member",
                         got=f"{len(member.members)} members", fix="pass Graph.only(name) for each")
    return lower(replace(member, members=(Member(name, member.members[0].output),)))


def _quantized(graph: Graph) -> bool:
    return any(node.op in ("qconv2d", "qlinear") for node in graph.nodes)


def _module_logits(module: nn.Module, images: np.ndarray, spec: InputSpec) -> np.ndarray:
    first = next(module.parameters(), None)
    device = first.device if first is not None else torch.device("cpu")
    mean, std = (torch.tensor(v, dtype=torch.float32, device=device).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
    modes = {m: m.training for m in module.modules()}
    module.eval()
    parts = []
    try:
        chunk = exact.images_at_once(*spec.shape[1:])
        with torch.no_grad():
            for start in range(0, len(images), chunk):
                batch = np.ascontiguousarray(to_nchw(images[start : start + chunk], spec))
                x = torch.from_numpy(batch).to(device, torch.float32)
                x = (x / 255 if spec.kind == UINT8_NHWC else x).sub(mean).div(std)
                logits = module(x)
                if not isinstance(logits, torch.Tensor):
                    raise InputError(f"build of {type(module).__name__}", expected="a module that returns one tensor of logits",
                                     got=type(logits).__name__, fix="wrap it in a module that returns the logits alone")
                parts.append(logits.float().cpu().numpy())
    finally:
        for m, training in modes.items():
            m.training = training
    return np.concatenate(parts)


def _verified(
    result: Artifact, loaded: Artifact, members: Mapping[str, nn.Module | Graph], graphs: Mapping[str, Graph],
    images: np.ndarray, device: str,
) -> Artifact:
    """``result`` with the figures of the comparison in its provenance."""
    engine = Engine(loaded, device=device)
    logits = engine.members(images)
    checks = {}
    for name, member in members.items():
        if isinstance(member, nn.Module):
            source = _module_logits(member, images, result.input)
        else:
            (source,) = exact.run(member, to_nchw(images, result.input)).values()
        checks[name] = _compare(name, np.asarray(logits[name]), source, exactly=_quantized(graphs[name]))
    verification = {"images": len(images), "device": str(engine.device), "members": checks}
    return replace(result, provenance={**result.provenance, "verification": verification})


def _compare(name: str, got: np.ndarray, source: np.ndarray, *, exactly: bool) -> dict[str, Any]:
    who = f"verification of member {name!r}"
    if not np.isfinite(source).all():
        raise VerificationError(who, expected="finite logits of the source", got="NaN or Inf",
                                fix="use a checkpoint of a training run that did not diverge")
    largest = float(np.abs(source).max(initial=0.0))
    tolerance = 0.0 if exactly else TOLERANCE * max(1.0, largest / LOGIT_SCALE)
    difference = float(np.abs(got.astype(np.float64) - source).max(initial=0.0))
    if not difference <= tolerance:  # written so that NaN fails
        bound = "the frozen graph's logits bit for bit" if exactly else f"the source's logits within {tolerance:.3g}"
        raise VerificationError(who, expected=bound, got=f"a difference of {difference:.3g} on {len(source)} images",
                                fix="report this with the model: nothing was written")
    rows = np.arange(len(source))
    chosen = got.argmax(axis=1)
    same = chosen == source.argmax(axis=1)
    margin = source.max(axis=1) - source[rows, chosen]
    if not (same | (margin <= 2 * tolerance)).all():
        raise VerificationError(who, expected="the source's predictions", got=f"{int((~same).sum())} others",
                                fix="report this with the model: nothing was written")
    return {"exact": exactly, "max_abs_difference": difference, "tolerance": tolerance,
            "same_prediction": float(same.mean())}
