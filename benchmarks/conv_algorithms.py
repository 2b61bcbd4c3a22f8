"""Direct against Winograd for float32 3x3 convolutions, the measurement behind hce_engine/plan/cpu/select.py.

    python -m benchmarks.conv_algorithms --json algorithms.json

One layer at a time on one thread, the two algorithms in turns; medians. Run it on an idle machine.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import numpy as np

from hce_engine import _native
from hce_engine.backends.cpu import compile_plan
from hce_engine.graph import Graph, Member, Node, TensorSpec, verify
from hce_engine.plan.cpu import build_plan, select

# (C, OC, size): CIFAR ResNet layers at full and pruned widths, ResNet-50's 3x3 layers.
FULL = [(3, 16, 32), (16, 16, 32), (32, 32, 16), (64, 64, 8), (64, 64, 56), (128, 128, 28), (256, 256, 14), (512, 512, 7)]
PRUNED = {(16, 32): (2, 3, 4, 5, 6, 7, 8, 10, 13), (32, 16): (2, 4, 6, 9, 10, 12, 14, 21, 26), (64, 8): (4, 9, 14, 19, 20, 26, 28, 42, 52)}
LAYERS = FULL + [layer for (full, size), widths in PRUNED.items() for w in widths for layer in ((full, w, size), (w, full, size))]


def layer_graph(c: int, oc: int, size: int) -> Graph:
    """uint8 image -> normalize -> one 3x3 convolution -> global pool, so that little but the convolution takes time."""
    rng = np.random.default_rng(0)
    conv = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1, "min": 0.0, "max": None, "folded_norm": 0}
    weight = rng.normal(0, 0.1, (oc, c, 3, 3)).astype(np.float32)
    nodes = (
        Node("image", "input", (), TensorSpec((c, size, size), "u8")),
        Node("normalize", "normalize", ("image",), TensorSpec((c, size, size)), {},
             {"scale": np.full(c, 0.01, np.float32), "offset": np.zeros(c, np.float32)}),
        Node("conv", "conv2d", ("normalize",), TensorSpec((oc, size, size)), conv,
             {"weight": weight, "bias": np.zeros(oc, np.float32)}),
        Node("pool", "global_avg_pool", ("conv",), TensorSpec((oc, 1, 1))),
        Node("flat", "flatten", ("pool",), TensorSpec((oc,))),
    )
    return verify(Graph(nodes, (Member("o", "flat"),)))


def seconds(graph: Graph, isa: str, repeats: int) -> dict[str, float]:
    """Median seconds of the convolution step for one tile of 16 images, per algorithm."""
    images = np.random.default_rng(1).integers(0, 256, (16, *graph.input.spec.shape[1:], graph.input.spec.shape[0]), np.uint8)
    output = np.empty((16, graph["flat"].spec.shape[0]), np.float32)
    executor = _native.extension().Executor(isa, 1)
    runs = {}
    for name, winograd in (("direct", False), ("winograd", True)):
        choice = select.ConvChoice(winograd, "benchmark")
        plan = build_plan(graph, isa, lambda *_, choice=choice: choice)
        program = compile_plan(plan, graph.input.spec.shape, False)
        runs[name] = (program, next(i for i, s in enumerate(plan.steps) if s.method == "conv_f32"))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, (program, index) in runs.items():
            times[name].append(executor.profile((program, [output], 0, len(images)), images)[index] * 1e-9)
    return {name: float(np.median(values)) for name, values in times.items()}


@click.command()
@click.option("--isa", help="Instruction set; by default the best one here.")
@click.option("--repeats", default=60, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path))
def main(isa: str | None, repeats: int, json_path: Path | None) -> None:
    isa = _native.choose_isa(isa)
    rows = []
    for c, oc, size in LAYERS:
        start = time.perf_counter()
        graph = layer_graph(c, oc, size)
        measured = seconds(graph, isa, repeats if size < 50 else repeats // 4)
        macs = 9 * c * oc * size * size * 16
        chosen = select.select_conv_f32(isa, (oc, c, 3, 3), (1, 1), (1, 1), 1, size, size)
        ratio = measured["direct"] / measured["winograd"]
        rows.append({"c": c, "oc": oc, "size": size, **measured, "chosen": "winograd" if chosen.winograd else "direct"})
        click.echo(
            f"{c:4} -> {oc:4} at {size:3}: direct {macs / measured['direct'] / 1e9:7.1f} GMAC/s, winograd "
            f"{macs / measured['winograd'] / 1e9:7.1f}, {ratio:5.2f}x; {chosen.reason} ({time.perf_counter() - start:.1f} s)"
        )
    if json_path:
        json_path.write_text(json.dumps({"isa": isa, "repeats": repeats, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
