"""Whole ensembles: Q, S and both at once, beside the unpruned network in torch; images per second.

ours: each member alone, and the ensemble in every mode of the back end. ``device``: a replay over images on the GPU.  ``host``:
uint8 pixels in host memory to logits in host memory, one batch per call, and in one call of several batches, which the
back end may overlap. Rivals: members.py, and torch.compile in its default mode and in max-autotune, both captured as CUDA graphs.

    overlap         (t_sequential - t_mode) / min(t_q, t_s): the share of the shorter member that a mode hides
    realised share  (1 - t / t_o) / (1 - f / f_o), with t_o our time of the unpruned network and f FLOPs in the paper's convention:
                    what became of the saving (hce_engine/audit/totals.py)

Q must equal the exact reference to the bit, and the ensemble the mean of its members; float members and rivals are held
against references within a bound. Everything of an item takes turns in one run.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hce_engine.audit.totals import realised_share
from hce_engine.backends import reference
from hce_engine.builder import LOGIT_SCALE, TOLERANCE
from hce_engine.plan.cuda.lanes_plan import LanesPlan

from . import measure, members, stage, variants
from .ensemble_cases import CHECKED, Made, make
from .names import CASES, ENSEMBLE_BATCHES, Case, compiled_key, plain_key
from .networks import KINDS, Kind, precision
from .variants import AUTO, SEQUENTIAL

NAME = "ensemble"
SECONDS = 1.2
CALLS = 4  # batches in one call from the host
PLAIN_SECONDS, FIRST_SECONDS = 20.0, 40.0
COMPILE_SECONDS = {"compile-default": 20.0, "compile": 70.0}  # of one kind
BESIDE_SECONDS = 15.0  # ensembles and rounds, in an item with torch.compile
BY_NAME = {kind.name: kind for kind in KINDS}
Told = dict[str, dict[str, Any]]


class Ours:
    """Members of a case as one program over device-resident pixels, and through the back end from the host."""

    def __init__(self, made: Made, names: tuple[str, ...], batch: int, variant: str, mode: str = AUTO) -> None:
        self.made, self.names, self.batch = made, names, batch
        self.backend = variants.backend(made.only(*names), batch, variant, mode)
        bucket = variants.prepared(self.backend, batch)
        self.program, self.replay, self.way = bucket.program, bucket.replay, str(bucket.way)
        self.program.images.copy_(torch.from_numpy(made.images[:batch]))
        self.replay()

    def checked(self) -> dict[str, Any]:
        """Raises ArithmeticError where a member is wrong: every image has logits, and the first ones have the right ones."""
        got = {name: logits.cpu().numpy() for name, logits in self.program.logits.items()}
        return verdict(self.made, self.names, got)

    def details(self, known: dict[str, float]) -> dict[str, Any]:
        plans = [part.plan for part in self.program.parts]
        found: dict[str, Any] = {"way": self.way, "launches": sum(plan.launches for plan in plans), "bytes": sum(plan.cost.bytes for plan in plans)}
        floats = [plan for plan in plans if isinstance(plan, LanesPlan)]
        if floats and len(floats) == len(plans) and "ffma_tflops" in known:
            walked = sum(plan.cost.walked for plan in floats)
            found |= {"walked": walked, "ffma_bound_us": measure.digits(2 * walked / known["ffma_tflops"] / 1e6)}
        return found

    def host(self, calls: int) -> measure.Live:
        """``calls`` batches per call."""
        images = np.concatenate([self.made.images[: self.batch]] * calls)
        return measure.Live(partial(self.backend.run, images, ensemble_only=len(self.names) > 1))


def verdict(made: Made, names: tuple[str, ...], got: dict[str, np.ndarray]) -> dict[str, Any]:
    """Errors of logits; raises ArithmeticError for what must not be."""
    found: dict[str, Any] = {}
    for name, logits in got.items():
        if not np.isfinite(logits).all():
            raise ArithmeticError(f"{name}: expected logits of every image, got NaN or Inf; it is not timed")
    for name in names:
        first, want = got[name][:CHECKED], made.expected[name][: len(got[name])]
        if name == "q":
            wrong = int((first.view(np.uint32) != want.view(np.uint32)).sum())
            if wrong:
                raise ArithmeticError(f"q: expected the bits of the reference, {wrong} logits differ; it is not timed")
        else:
            largest = float(np.abs(want).max())
            error, bound = float(np.abs(first - want).max()), TOLERANCE * max(1.0, largest / LOGIT_SCALE)
            if not error <= bound:
                raise ArithmeticError(f"{name}: expected logits within {bound:.3g}, got {error:.3g}; it is not timed")
            found[f"max_error_{name}"] = measure.digits(error, 3)
    if len(names) > 1 and got["ensemble"].tobytes() != reference.mean_logits([got[name] for name in names]).tobytes():
        raise ArithmeticError("ensemble: expected the mean of its members to the bit; it is not timed")
    return found


def rows() -> dict[str, tuple[tuple[str, ...], str, str]]:
    """Name -> members, variant, mode. Whoever reads results finds times under these names."""
    both = ("q", "s")
    found = {"q": (("q",), variants.PLAIN, AUTO)}
    for member in ("s", "o"):
        found |= {f"{member} {variant}": ((member,), variant, AUTO) for variant in (variants.DIRECT, variants.PLAIN)}
    found |= {f"s {variant}": (("s",), variant, AUTO) for variant in variants.COMPENSATED}
    found |= {f"ensemble {mode}": (both, variants.PLAIN, mode) for mode in variants.CHOSEN_MODES}
    return found | {f"ensemble {variant}": (both, variant, AUTO) for variant in variants.COMPENSATED}


def compare(case: Case, batch: int, compiled: tuple[tuple[str, str], ...], out: Path) -> stage.Result:
    """compiled: pairs of a kind and a variant of torch.compile; with any, of ours the modes of the ensemble alone are measured beside."""
    made, known = make(case), measure.ceilings(out)
    device: dict[str, measure.Contender] = {}
    host: dict[str, measure.Contender] = {}
    told: Told = {}
    chosen = {name: row for name, row in rows().items() if not compiled or (row[0] == ("q", "s") and row[2] != AUTO)}
    for name, (names, variant, mode) in chosen.items():
        try:
            member = Ours(made, names, batch, variant, mode)
            told[name] = member.checked() | member.details(known)
            device[name] = measure.Replay(member.replay)
            if not compiled and variant == variants.PLAIN:
                host[name], host[f"{name}, {CALLS} batches"] = member.host(1), member.host(CALLS)
        except Exception as error:
            if stage.sticky(error):
                raise
            told[name] = stage.failure(error)
    with torch.no_grad():
        for kind, rival in compiled or tuple((kind.name, "fused") for kind in KINDS):
            anchor(made, batch, BY_NAME[kind], rival, device, host, told)
        timed, from_host = measure.interleave(device, SECONDS), measure.interleave(host, SECONDS)
    for name, result in timed.items():
        told[name] |= result | {"images_per_s": measure.digits(batch / result["median_us"] * 1e6)}
        if "ffma_bound_us" in told[name]:
            told[name]["percent_of_ffma"] = measure.digits(100 * told[name]["ffma_bound_us"] / result["median_us"], 3)
        for field, key, several in (("host", name, 1), ("host_several", f"{name}, {CALLS} batches", CALLS)):
            if key in from_host:
                rate = measure.digits(several * batch / from_host[key]["median_us"] * 1e6)
                told[name][field] = from_host[key] | {"images_per_s": rate}
    torch.cuda.empty_cache()
    times = {name: result["median_us"] for name, result in timed.items()}
    ratios = {name: made.flops_ratio(*row[0]) for name, row in rows().items()}
    return {"held": all(r.get("held", True) for r in told.values()), "case": case.name, "batch": batch, "contenders": told,
            "overlap": overlaps(times), "realised": realised(times, ratios)}


def anchor(
    made: Made, batch: int, kind: Kind, variant: str, device: dict[str, measure.Contender], host: dict[str, measure.Contender], told: Told
) -> None:
    """Adds the unpruned network in torch, or why it is not there."""
    name = f"torch {kind.name} {variant}"
    try:
        with precision(kind):
            rival = members.Rival(made.network, batch, kind, variant)
            told[name] = rival.verified()
            device[name] = rival.recording()
            host[name] = measure.Live(rival.host())
    except Exception as error:
        if stage.sticky(error):
            raise
        told[name] = {"why": stage.failure(error)["error"]}


def overlaps(times: dict[str, float]) -> dict[str, float]:
    """Per mode; empty where a time is missing."""
    q, s, after = times.get("q"), times.get(f"s {variants.PLAIN}"), times.get(f"ensemble {SEQUENTIAL}")
    if q is None or s is None or after is None:
        return {}
    return {mode: measure.digits((after - times[f"ensemble {mode}"]) / min(q, s), 3)
            for mode in variants.CHOSEN_MODES if mode != SEQUENTIAL and f"ensemble {mode}" in times}


def realised(times: dict[str, float], flops_ratios: dict[str, float]) -> dict[str, dict[str, float]]:
    """Of every row of ours against ``o`` as it is planned without asking; of the direct S also against the direct o."""
    found: dict[str, dict[str, float]] = {}
    for name, ratio in flops_ratios.items():
        against = f"o {variants.DIRECT if name.endswith(' ' + variants.DIRECT) else variants.PLAIN}"
        if name in times and against in times and not name.startswith("o "):
            share = realised_share(times[name] / times[against], ratio)
            if share is not None:
                found[name] = {"time_ratio": measure.digits(times[name] / times[against], 4), "flops_ratio": measure.digits(ratio, 4),
                               "realised_share": measure.digits(share, 3)}
    return found


def items(out: Path) -> list[stage.Item]:
    """The goals' case at its batch first, then the other cases, then other batches, then what takes long to compile."""
    def plain(case: Case, batch: int, seconds: float) -> stage.Item:
        return stage.Item(plain_key(case.name, batch), seconds, partial(compare, case, batch, (), out))

    def compiled(case: Case, batch: int, variant: str, kinds: tuple[str, ...]) -> stage.Item:
        pairs = tuple((kind, variant) for kind in kinds)
        return stage.Item(compiled_key(case.name, batch, variant, "+".join(kinds)),
                          BESIDE_SECONDS + COMPILE_SECONDS[variant] * len(kinds), partial(compare, case, batch, pairs, out))

    first, *others = CASES.values()
    top, *rest = ENSEMBLE_BATCHES
    found = [plain(first, top, FIRST_SECONDS), compiled(first, top, "compile-default", ("fp32", "tf32")), compiled(first, top, "compile", ("fp32",))]
    found += [plain(case, top, FIRST_SECONDS) for case in others]
    found += [plain(case, batch, PLAIN_SECONDS) for case in CASES.values() for batch in rest]
    found.append(compiled(first, top, "compile", ("tf32",)))
    found += [compiled(case, batch, "compile-default", ("fp32", "tf32")) for batch in rest for case in (first,)]
    found += [compiled(case, top, "compile-default", ("fp32", "tf32")) for case in others]
    return [*found, compiled(first, top, "compile-default", ("fp16", "bf16"))]


def run(document: stage.Document, out: Path, deadline: stage.Deadline) -> int:
    members.remember_tuned(out)
    return stage.measure(document, items(out), deadline)


if __name__ == "__main__":
    sys.exit(stage.main(NAME, run))
