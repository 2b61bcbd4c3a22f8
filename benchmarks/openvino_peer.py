"""Members of an artifact against OpenVINO on the same networks, in one interleaved run.

    python -m benchmarks.openvino_peer model.hce --data cifar-10-batches-bin --json benchmarks/results/openvino.json

It needs the `peers` extra; `python -m benchmarks.readme_table` then shows the file in the README.

OpenVINO runs the float members in float32 (its own default would be bfloat16 where the processor has it) and, for q, the
original o quantized to int8 by NNCF's mixed preset on 512 training images: the best low-bit form it has. It gets
normalised float32 NCHW input, so that it need not convert pixels; our engine takes the uint8 pixels. Before anything is
timed, float peers must give our logits within 1e-3 and the int8 peer must agree with o on 97 % of 512 images.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from hce_engine import artifact
from hce_engine.engine import Engine
from hce_engine.graph import Graph, TensorSpec
from hce_engine.images import load_labelled
from hce_engine.machine import processor
from hce_engine.training.graph_module import GraphModule


def normalized_input(graph: Graph) -> Graph:
    """The graph without its normalisation: its input is the normalised float32 map."""
    image, first = graph.nodes[0], graph.nodes[1]
    assert first.op == "normalize"
    nodes = [replace(image, spec=TensorSpec(image.spec.shape, "f32"))]
    for node in graph.nodes[2:]:
        nodes.append(replace(node, inputs=tuple(image.name if i == first.name else i for i in node.inputs)))
    return graph.with_nodes(nodes)


def normalized(graph: Graph, images: np.ndarray) -> np.ndarray:
    """uint8 NHWC -> what the float members' first layer sees, float32 NCHW."""
    first = graph.nodes[1]
    shape = (1, -1, 1, 1)
    scale, offset = first.params["scale"].reshape(shape), first.params["offset"].reshape(shape)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2).astype(np.float32) * scale + offset)


class Peer:
    """A compiled OpenVINO model with one bound input batch."""

    def __init__(self, model: Any, batch: np.ndarray, threads: int) -> None:
        import openvino as ov

        options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = ov.Core().compile_model(model, "CPU", options)
        self.request = compiled.create_infer_request()
        self.batch = batch
        self.request.set_input_tensor(ov.Tensor(self.batch, shared_memory=True))

    def __call__(self, batch: np.ndarray | None = None) -> np.ndarray:
        if batch is not None:
            self.batch[:] = batch
        self.request.infer()
        return self.request.get_output_tensor().data


def convert(graph: Graph, batch: int) -> Any:
    import openvino as ov

    module = GraphModule(normalized_input(graph)).eval()
    shape = [batch, *graph.input.spec.shape]
    return ov.convert_model(module, example_input=torch.zeros(shape), input=shape)


def interleaved(functions: dict[str, Any], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds per call and function, in turns; each turn lasts at least ``seconds``."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                start = time.perf_counter()
                function()
                times[name].append(time.perf_counter() - start)
    return times


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--data", required=True, help="CIFAR binary folder; calibration from its training images.")
@click.option("--batch", default=128, show_default=True)
@click.option("--threads", default="1,2", show_default=True)
@click.option("--rounds", default=8, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path))
def main(model: Path, data: str, batch: int, threads: str, rounds: int, json_path: Path | None) -> None:
    import nncf
    import openvino as ov

    loaded = artifact.load(model)
    floats = {m.name: loaded.graph.only(m.name) for m in loaded.graph.members if m.name != "q"}
    test, train = load_labelled(data, split="test"), load_labelled(data, split="train")
    count = 512 // batch * batch or batch
    inputs = {name: normalized(graph, test.images[:count]) for name, graph in floats.items()}
    models = {name: convert(graph, batch) for name, graph in floats.items()}
    calibration = normalized(floats["o"], train.images[:512])
    models["q"] = nncf.quantize(
        models["o"], nncf.Dataset([calibration[i : i + batch] for i in range(0, 512 // batch * batch, batch)]),
        preset=nncf.QuantizationPreset.MIXED, subset_size=512 // batch,
    )
    images = np.ascontiguousarray(test.images[:batch])
    rows = []
    for thread_count in map(int, threads.split(",")):
        engine = Engine(loaded, threads=thread_count)
        members = {name: engine.only(name) for name in engine.member_names}
        peers = {name: Peer(m, inputs["o" if name == "q" else name][:batch].copy(), thread_count) for name, m in models.items()}
        for name, peer in peers.items():
            source = inputs["o" if name == "q" else name]
            theirs = np.concatenate([peer(source[i : i + batch]).copy() for i in range(0, count, batch)])
            ours = members["o" if name == "q" else name](np.ascontiguousarray(test.images[:count]))
            agree = float((theirs.argmax(1) == ours.argmax(1)).mean())
            error = float(np.abs(theirs - ours).max())
            if (name == "q" and agree < 0.97) or (name != "q" and error > 1e-3):
                raise click.ClickException(f"peer {name}: agreement {agree:.4f}, largest difference {error:.2g}; not timed")
        functions: dict[str, Any] = {f"hce {name}": lambda e=e: e(images) for name, e in members.items()}
        if len(loaded.graph.voters) > 1:
            functions["hce ensemble"] = lambda engine=engine: engine(images)
        functions |= {f"openvino {name}": peer for name, peer in peers.items()}
        if "s" in peers:
            functions["openvino ensemble"] = lambda peers=peers: (peers["q"]() + peers["s"]()) / 2
        interleaved(functions, 1, 0.5)
        for name, times in interleaved(functions, rounds, 0.25).items():
            runtime, member = name.split()
            median = float(np.median(times))
            rows.append({"engine": runtime, "member": member, "batch": batch, "threads": thread_count,
                         "images_per_second": batch / median, "quartiles": [float(v) for v in np.quantile(times, (0.25, 0.75))],
                         "calls": len(times)})
            click.echo(f"{thread_count} threads  {name:16} {batch / median:10,.0f} images/s")
    if json_path:
        isa = Engine(loaded).isa
        report = {
            "caption": f"Against OpenVINO {ov.__version__.split('-')[0]} on the same networks, batch {batch}, images/s, medians of one "
                       "interleaved run; its `q` is the original in int8 (NNCF), its float members run in float32",
            "command": f"python -m benchmarks.openvino_peer {model.name} --data DIR", "machine": f"{processor()}, {isa}",
            "digest": artifact.digest(model), "nncf": nncf.__version__, "load": os.getloadavg(), "rows": rows,
        }
        json_path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
