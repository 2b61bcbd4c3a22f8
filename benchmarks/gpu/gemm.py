"""Matrix products of packed weights beside those of libraries, over rows M and sizes N x K.

Ours give float32 logits with the whole epilogue; per cent are of the bound that this machine's measured ceilings give for
our bytes and operations. Where nothing was tuned the default configuration runs, if it was verified.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hce_engine.kernels.configurations import GemmConfig

from . import equality, gemm_anchors, measure, stage, tune
from .candidates import check_key, describe, of_product
from .operands import Product
from .shapes import GEMM_M, GEMM_NK, PRECISIONS, Precision

NAME = "gemm"
SECONDS = 1.0  # of the rounds of one shape


def choice(n: int, k: int, m: int, precision: Precision, out: Path) -> tuple[GemmConfig, str] | None:
    """A verified configuration and where it comes from, or None."""
    fields = tune.best(out, tune.product_item(n, k, m, precision))
    if fields:
        return GemmConfig(**fields), "tuned"
    held = equality.verified(out)
    return next(((c, "default") for c in of_product(n, k, m, precision) if check_key((n, k, precision), c) in held), None)


def compare(n: int, k: int, m: int, out: Path) -> stage.Result:
    known = measure.ceilings(out)
    recordings: dict[str, measure.Recording | measure.Live] = {}
    told: dict[str, dict[str, Any]] = {}
    for precision in PRECISIONS:
        name = f"ours {precision.name}"
        chosen = choice(n, k, m, precision, out)
        if chosen is None:
            told[name] = {"why": "no configuration was verified"}
            continue
        try:
            work = Product(n, k, m, precision)
            wrong = work.differing(chosen[0])
            if wrong:
                told[name] = {"held": False, "config": describe(chosen[0]), "error": f"{wrong} logits differ from the reference"}
                continue
            work._expected = None
            calls, launches = tune.product_calls(work, chosen[0])
            recordings[name] = measure.Recording(calls)
            moved = launches[0].cost.read + 4 * m * n  # the workspace of a split product is not owed
            told[name] = {"config": describe(chosen[0]), "source": chosen[1],
                          **measure.bound_us(known, moved, 2 * n * k * m)}
        except Exception as error:
            if stage.sticky(error):
                raise
            told[name] = stage.failure(error)
    for name, make in gemm_anchors.all_of(n, k, m):
        try:
            anchor = make()
            recordings[name] = measure.Recording(anchor.calls)
            told[name] = dict(anchor.checked)
        except gemm_anchors.Absent as absent:
            told[name] = {"why": str(absent)}
        except Exception as error:
            if stage.sticky(error):
                raise
            told[name] = {"why": stage.failure(error)["error"]}
    for name, timed in measure.interleave(recordings, SECONDS).items():
        told[name] |= timed | measure.percent(told[name] if "bound_us" in told[name] else {}, timed["median_us"])
    torch.cuda.empty_cache()
    held = all(result.get("held", True) for result in told.values())
    return {"held": held, "n": n, "k": k, "m": m, "contenders": told}


def items(out: Path) -> list[stage.Item]:
    return [stage.Item(f"{n}x{k}x{m}", 5, partial(compare, n, k, m, out)) for n, k in GEMM_NK for m in GEMM_M]


def run(document: stage.Document, out: Path, deadline: stage.Deadline) -> int:
    return stage.measure(document, items(out), deadline)


if __name__ == "__main__":
    sys.exit(stage.main(NAME, run))
