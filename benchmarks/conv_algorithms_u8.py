"""Direct against integer Winograd F(4, 3) for 3x3 convolutions of codes, the measurement behind hce_engine/plan/cpu/select.py.

    python -m benchmarks.conv_algorithms_u8 --bits 4 --json algorithms_u8.json

One layer at a time on one thread, the two algorithms in turns; medians. Run it on an idle machine.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np

from benchmarks.conv_algorithms import LAYERS
from hce_engine import _native
from hce_engine.backends.cpu import compile_plan
from hce_engine.dtypes import DTYPES
from hce_engine.graph import Graph, Member, Node, TensorSpec, verify
from hce_engine.plan.cpu import build_plan, select, winograd_codes


def layer_graph(c: int, oc: int, size: int, bits: int) -> Graph:
    """uint8 image -> codes of ``bits`` -> one 3x3 convolution -> global pool -> one logit."""
    rng = np.random.default_rng(0)
    x, w = DTYPES[f"u{bits}"], DTYPES[f"s{bits}"]
    weight = rng.integers(w.qmin, w.qmax + 1, (oc, c, 3, 3)).astype(np.int8)
    multiplier = np.full(oc, 1.0 / (np.sqrt(9 * c) * w.qmax), np.float32)
    recode = {"k": 65536 * x.qmax // 255 + 1, "qmin": 0, "qmax": x.qmax}
    conv = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1, "weight_dtype": w.name, "bits": (bits, bits),
            "pad_code": [0] * c, "qmin": 0, "qmax": x.qmax, "folded_norm": 0, "residual_multiplier": 0.0}
    pool = {"qmin": 0, "qmax": x.qmax, "multiplier": float(np.float32(1.0 / (size * size)))}
    head = {"weight": np.ones((1, oc), np.int8), "bias": np.zeros(1, np.int32), "multiplier": np.ones(1, np.float32),
            "offset": np.zeros(1, np.float32)}
    nodes = (
        Node("image", "input", (), TensorSpec((c, size, size), "u8")),
        Node("codes", "qrecode", ("image",), TensorSpec((c, size, size), x.name, 0.1), recode),
        Node("conv", "qconv2d", ("codes",), TensorSpec((oc, size, size), x.name, 0.1), conv,
             {"weight": weight, "bias": np.zeros(oc, np.int32), "multiplier": multiplier}),
        Node("pool", "qglobal_avg_pool", ("conv",), TensorSpec((oc, 1, 1), x.name, 0.1), pool),
        Node("flat", "flatten", ("pool",), TensorSpec((oc,), x.name, 0.1)),
        Node("head", "qlinear", ("flat",), TensorSpec((1,), "f32"), {"weight_dtype": "s8", "bits": (8, bits)}, head),
    )
    return verify(Graph(nodes, (Member("q", "head"),)))


def _direct(isa: str, layer: select.ConvU8Layer, fit: object) -> select.ConvU8Choice:
    return select.ConvU8Choice("benchmark")


def _winograd(isa: str, layer: select.ConvU8Layer, fit) -> select.ConvU8Choice:  # type: ignore[no-untyped-def]
    if layer.logits:
        return select.ConvU8Choice("benchmark")
    codes = fit()
    assert isinstance(codes, winograd_codes.WinogradCodes), codes
    return select.ConvU8Choice("benchmark", winograd=codes)


def seconds(graph: Graph, isa: str, repeats: int) -> dict[str, float]:
    """Median seconds of the convolution step for one tile of 16 images, per algorithm."""
    c, h, w = graph.input.spec.shape
    images = np.random.default_rng(1).integers(0, 256, (16, h, w, c), np.uint8)
    output = np.empty((16, 1), np.float32)
    executor = _native.extension().Executor(isa, 1)
    runs = {}
    for name, choose in (("direct", _direct), ("winograd", _winograd)):
        plan = build_plan(graph, isa, choose_conv_u8=choose)
        runs[name] = (compile_plan(plan, (c, h, w), False), next(i for i, s in enumerate(plan.steps) if s.nodes == ("conv",)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, (program, index) in runs.items():
            times[name].append(executor.profile((program, [output], 0, len(images)), images)[index] * 1e-9)
    return {name: float(np.median(values)) for name, values in times.items()}


@click.command()
@click.option("--isa", help="Instruction set; by default the best one here.")
@click.option("--bits", type=click.Choice(["3", "4"]), default="4", show_default=True)
@click.option("--repeats", default=60, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path))
def main(isa: str | None, bits: str, repeats: int, json_path: Path | None) -> None:
    isa = _native.choose_isa(isa)
    rows = []
    for c, oc, size in LAYERS:
        graph = layer_graph(c, oc, size, int(bits))
        measured = seconds(graph, isa, repeats if size < 50 else repeats // 4)
        macs = 9 * c * oc * size * size * 16
        layer = select.ConvU8Layer((oc, c, 3, 3), f"s{bits}", (1, 1), (1, 1), 1, size, size, False)
        conv = graph["conv"].params
        chosen = select.select_conv_u8(
            isa, layer, lambda conv=conv: winograd_codes.fit(conv["weight"], conv["bias"], 2 ** int(bits) - 1)
        )
        rows.append({"c": c, "oc": oc, "size": size, **measured, "chosen": "winograd" if chosen.winograd else "direct"})
        click.echo(
            f"{c:4} -> {oc:4} at {size:3}: direct {macs / measured['direct'] / 1e9:7.1f} GMAC/s, winograd "
            f"{macs / measured['winograd'] / 1e9:7.1f}, {measured['direct'] / measured['winograd']:5.2f}x; {chosen.reason}"
        )
    if json_path:
        json_path.write_text(json.dumps({"isa": isa, "bits": int(bits), "repeats": repeats, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
