"""The fastest of the verified configurations, for every shape that networks and the sweep use.

All of a shape's configurations are timed briefly, the best four again in turns. Each must first give the bytes of the default
at the batch that is timed (a product: those of the exact reference). ``report.py --tuned`` writes the table that plans read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hce_engine.kernels.launch import Launch
from hce_engine.plan.cuda.tuned import SCHEMA_VERSION, kernel_digest

from . import equality, measure, stage
from .candidates import check_key, describe, layers, of_layer, of_product
from .operands import Convolution, Product, in_order
from .shapes import GEMM_M, GEMM_NK, PRECISIONS, TUNE_BATCHES, ConvLayer, Precision, gemm_key

NAME = "tune"
FINALISTS = 4
BRIEF = 3  # replays of every configuration; the least counts
FINAL_SECONDS = 0.3


def product_calls(work: Product, config: Any) -> tuple[list[Callable[[], object]], list[Launch]]:
    launches, _ = work.launches(config)
    each = launches[0].cost.read + 4 * work.m * work.n
    rest = [work.launches(config, copy=True)[0] for _ in range(measure.copies(each) - 1)]
    return [in_order(launches), *map(in_order, rest)], launches


def fastest(calls: Mapping[Any, Callable[[], measure.Recording]]) -> dict[str, Any]:
    """``best``: the configuration; ``brief_us``: of all; ``final``: of the best ones, in turns."""
    brief: dict[Any, float] = {}
    finalists: dict[Any, measure.Recording] = {}
    for config, record in calls.items():
        recording = record()
        brief[config] = min(recording.microseconds() for _ in range(BRIEF))
        finalists[config] = recording
        while len(finalists) > FINALISTS:
            del finalists[max(finalists, key=lambda config: brief[config])]
    final = measure.interleave({describe(config): recording for config, recording in finalists.items()}, FINAL_SECONDS)
    best = min(finalists, key=lambda config: final[describe(config)]["median_us"])
    return {
        "best": asdict(best), "median_us": final[describe(best)]["median_us"], "final": final,
        "brief_us": {describe(config): measure.digits(time) for config, time in brief.items()},
    }


def tune_layer(layer: ConvLayer, batch: int, out: Path) -> stage.Result:
    held = equality.verified(out)
    configs = [config for config in of_layer(layer, batch) if check_key(layer, config) in held]
    if not configs:
        return {"why": "no configuration was verified"}
    reference: list[torch.Tensor] = []
    first = Convolution(layer, batch)
    cost = first.launch(configs[0]).cost
    works = first.copies(measure.copies(cost.read + cost.written))
    wrong: list[str] = []
    calls: dict[Any, Callable[[], measure.Recording]] = {}
    for config in configs:
        first.outputs = first.new_outputs()
        first.launch(config)()
        written = first.written()
        reference = reference or [plane.clone() for plane in written]
        if all(torch.equal(a, b) for a, b in zip(written, reference, strict=True)):
            calls[config] = partial(_record_layer, works, config)
        else:
            wrong.append(describe(config))
    result = {"kernel": "conv2d", "shape": layer.key(batch), **fastest(calls)}
    return result | ({"held": False, "differing": wrong} if wrong else {})


def _record_layer(works: Sequence[Convolution], config: Any) -> measure.Recording:
    return measure.Recording([work.launch(config) for work in works])


def tune_product(n: int, k: int, m: int, precision: Precision, out: Path) -> stage.Result:
    held = equality.verified(out)
    configs = [config for config in of_product(n, k, m, precision) if check_key((n, k, precision), config) in held]
    if not configs:
        return {"why": "no configuration was verified"}
    work = Product(n, k, m, precision)
    right = [config for config in configs if work.differing(config) == 0]
    wrong = [describe(config) for config in configs if config not in right]
    calls = {config: partial(_record_product, work, config) for config in right}
    result = {"kernel": "gemm", "shape": gemm_key(n, k, m, precision), **fastest(calls)}
    return result | ({"held": False, "differing": wrong} if wrong else {})


def _record_product(work: Product, config: Any) -> measure.Recording:
    return measure.Recording(product_calls(work, config)[0])


def layer_item(layer: ConvLayer, batch: int) -> str:
    return f"{layer.name}, batch {batch}"


def product_item(n: int, k: int, m: int, precision: Precision) -> str:
    return f"{n}x{k}x{m} {precision.name}"


def items(out: Path) -> list[stage.Item]:
    """ResNet-20 at its largest batch first, then products, then the rest."""
    layer_items = [
        stage.Item(layer_item(layer, batch), 2, partial(tune_layer, layer, batch, out))
        for layer in layers() for batch in TUNE_BATCHES[layer.network]
    ]
    product_items = [
        stage.Item(product_item(n, k, m, precision), 3, partial(tune_product, n, k, m, precision, out))
        for n, k in GEMM_NK for m in GEMM_M for precision in PRECISIONS
    ]
    first = [item for item in layer_items if item.key.endswith(("batch 4096", "batch 1024"))]
    return [*first, *product_items, *(item for item in layer_items if item not in first)]


def best(out: Path, item: str) -> dict[str, Any] | None:
    """The configuration that an item found, as its fields."""
    return stage.read(out, NAME).get("items", {}).get(item, {}).get("best")


def table(out: Path) -> dict[str, Any]:
    """What plans read (hce_engine/plan/cuda/tuned.py): for packed weights also those of 8 bits compete, as they do in a plan."""
    document = stage.read(out, NAME)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    times: dict[str, float] = {}
    for result in document.get("items", {}).values():
        if "best" not in result:
            continue
        kernel, shape = result["kernel"], result["shape"]
        rivals = [shape]
        if kernel == "gemm" and " s8[" in shape:
            rivals += [shape.replace(" s8[", f" s{bits}[") for bits in (4, 3)]
        for rival in rivals:
            if result["median_us"] < times.get(rival, float("inf")):
                times[rival] = result["median_us"]
                found.setdefault(kernel, {})[rival] = result["best"]
    kernels = {kernel: {"digest": kernel_digest(kernel), "configs": configs} for kernel, configs in found.items()}
    return {"schema_version": SCHEMA_VERSION, "gpu": document.get("identity", {}).get("gpu", "none"), "kernels": kernels}


def run(document: stage.Document, out: Path, deadline: stage.Deadline) -> int:
    return stage.measure(document, items(out), deadline)


if __name__ == "__main__":
    sys.exit(stage.main(NAME, run))
