"""Weights from a file into a module: tensors only, every key and shape accounted for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hce_engine.errors import CheckpointError

_WRAPPERS = ("state_dict", "model")  # keys under which training scripts keep the state dict
_PREFIXES = ("module.", "_orig_mod.")  # left by DataParallel and torch.compile


def load_checkpoint(module: nn.Module, path: str | Path, renames: Sequence[tuple[str, str]] = ()) -> None:
    """Loads the state dict in ``path`` (torch.save or safetensors) into ``module``, in place.

    renames: (regular expression, replacement) pairs applied to the file's keys, for checkpoints of the same network
    under other names. ``module.`` prefixes are stripped, and a state dict inside ``state_dict`` or ``model`` is found.
    Raises CheckpointError for a file that is missing, damaged or holds objects other than tensors, for missing, extra
    or wrongly shaped entries, and for NaN or Inf; ``module`` is then unchanged.
    """
    state = _strip(_read(Path(path)))
    for pattern, replacement in renames:
        state = {re.sub(pattern, replacement, key): value for key, value in state.items()}
    want = module.state_dict()
    # Counters of batch norm appeared in PyTorch 0.4.1 and are not used for inference: older files lack them.
    missing = sorted(k for k in want if k not in state and not k.endswith("num_batches_tracked"))
    extra = sorted(k for k in state if k not in want and not k.endswith("num_batches_tracked"))
    if missing or extra:
        parts = [f"{len(keys)} {kind} ({_some(keys)})" for kind, keys in (("missing", missing), ("extra", extra)) if keys]
        raise CheckpointError(
            f"checkpoint {path}", expected=f"the {len(want)} entries of {type(module).__name__}",
            got=" and ".join(parts), fix="choose the architecture and number of classes that the checkpoint is for",
        )
    for key, tensor in want.items():
        if key not in state:
            continue
        found = state[key]
        if found.layout != torch.strided or found.is_meta:
            raise CheckpointError(
                f"checkpoint {path}, {key}", expected="a dense tensor with values",
                got="one without values" if found.is_meta else f"{found.layout}", fix="save the state dict of the dense model",
            )
        if found.shape != tensor.shape:
            raise CheckpointError(
                f"checkpoint {path}, {key}", expected=f"shape {tuple(tensor.shape)}", got=f"{tuple(found.shape)}",
                fix="choose the architecture and number of classes that the checkpoint is for",
            )
        if found.is_floating_point() != tensor.is_floating_point() or found.is_complex():
            raise CheckpointError(
                f"checkpoint {path}, {key}", expected=f"{tensor.dtype}", got=f"{found.dtype}",
                fix="save the model in floating point",
            )
        if found.is_floating_point() and not bool(torch.isfinite(found).all()):
            raise CheckpointError(
                f"checkpoint {path}, {key}", expected="finite values", got="NaN or Inf",
                fix="use a checkpoint of a training run that did not diverge",
            )
    module.load_state_dict({k: v for k, v in state.items() if k in want}, strict=False)


def _read(path: Path) -> Mapping[str, Any]:
    who = f"checkpoint {path}"
    if not path.is_file():
        raise CheckpointError(who, expected="a file", got="nothing there", fix="check the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise errors of a dozen types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(
            who, expected="a file of tensors, written by torch.save(module.state_dict(), path) or safetensors",
            got=f"{type(error).__name__}: {reason}", fix="save the state dict, not the module, and copy the file whole",
        ) from error
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(
            who, expected="a state dict: names and tensors", got=type(content).__name__,
            fix="save module.state_dict()",
        )
    return content


def _strip(content: Mapping[str, Any]) -> dict[str, Tensor]:
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                "checkpoint", expected="names and tensors only", got=f"{key!r}: {type(value).__name__}",
                fix="save module.state_dict(), alone or under 'state_dict' or 'model'",
            )
    state = dict(content)
    for prefix in _PREFIXES * 2:  # torch.compile around DataParallel and the other way round
        if state and all(k.startswith(prefix) for k in state):
            state = {k[len(prefix):]: v for k, v in state.items()}
    return state


def _some(keys: Sequence[str], limit: int = 4) -> str:
    return ", ".join(keys[:limit]) + (", ..." if len(keys) > limit else "")
