"""Random graphs over every quantized operation: the CUDA back end gives the reference's bits, or refuses float nodes."""

from __future__ import annotations

import numpy as np
import pytest

from hce_engine.backends import reference
from hce_engine.backends.cuda.backend import CudaBackend
from hce_engine.errors import UnsupportedError
from hce_engine.graph import OPS, Graph
from hce_engine.plan.cuda.lowering import Lowering, require_runnable, runnable
from tests.backends.graphs import GraphBuilder, pixels
from tests.backends.random_graphs import RandomGraph

# Chosen so that between them they use every operation; a GPU compiles many kernels for each.
SEEDS = (0, 1, 2, 7, 9, 13, 14, 18, 22, 28, 30, 33)
FEW = 4


def quantized(graph: Graph) -> Graph | None:
    """The members without float nodes, if there are any: those that the back end does not refuse."""
    names = []
    for member in graph.members:
        own = graph.only(member.name)
        if all(map(runnable, own.nodes)):
            names.append(member.name)
        else:
            with pytest.raises(UnsupportedError, match=f"member '{member.name}'"):
                require_runnable(own)
    return graph.only(*names) if names else None


@pytest.mark.parametrize("seed", SEEDS)
def test_random_graphs_equal_the_reference(seed: int, cuda_device: str) -> None:
    if cuda_device == "cuda" and seed not in SEEDS[:FEW]:
        pytest.skip("enough kernels were compiled for the other seeds")
    case = RandomGraph(seed)
    graph = quantized(case.graph)
    if graph is None:
        return
    images = case.images(3)
    got = CudaBackend(graph, cuda_device, max_batch=2, poison=True).run(images)
    want = reference.run(graph, images if case.float_images else images.transpose(0, 3, 1, 2))
    assert {name: got[name].tobytes() for name in want} == {name: z.tobytes() for name, z in want.items()}, str(graph)
    voters = [want[m.name] for m in graph.voters]
    assert got["ensemble"].tobytes() == reference.mean_logits(voters).tobytes()


def test_the_seeds_use_every_operation_that_runs() -> None:
    graphs = [g for g in (quantized(RandomGraph(seed).graph) for seed in SEEDS) if g is not None]
    used = {n.op for g in graphs for n in g.nodes}
    assert used == {op for op in OPS if op in Lowering.HANDLERS} - {"mean"} | {"input"}  # means: below


def test_means_of_logits_are_members_too(cuda_device: str) -> None:
    b = GraphBuilder((2, 3, 3), seed=3)
    x = b.qconv("image", 2)
    a, c = b.probe(x), b.probe(b.qconv(x, 2))
    graph = b.finish(b.add("mean", [a, c, a]), a, b.add("mean", [c]))
    images = pixels((2, 3, 3), 3)
    got = CudaBackend(graph, cuda_device, poison=True).run(images)
    want = reference.run(graph, images.transpose(0, 3, 1, 2))
    assert {name: got[name].tobytes() for name in want} == {name: z.tobytes() for name, z in want.items()}
    too_many = GraphBuilder((2, 3, 3), seed=3)
    z = too_many.probe("image")
    with pytest.raises(UnsupportedError, match="at most 16 members, got 17"):
        CudaBackend(too_many.finish(too_many.add("mean", [z] * 17)), cuda_device)


def test_flattened_maps_are_added_and_recoded_as_they_lie(cuda_device: str) -> None:
    b = GraphBuilder((2, 4, 3), seed=3)
    x = b.qconv("image", 4, out="u4", zero_point=8)
    wide = b.add("flatten", [b.qconv("image", 2, out="u4", zero_point=8, kernel=(1, 1), padding=(0, 0))])
    tall = b.add("flatten", [b.add("strided_slice", [x], {"h": (0, 4, 2), "w": (0, 3, 1)})])
    limits = {"qmin": 0, "qmax": 15, "multipliers": (0.5, 0.75)}
    same = b.add("qadd", [tall, tall], limits, dtype="u4", scale=0.1, zero_point=3)
    mixed = b.add("qadd", [wide, same], limits, dtype="u4", scale=0.1, zero_point=3)
    last = b.add("qrecode", [mixed], {"k": 40000, "qmin": 0, "qmax": 15}, dtype="u4", scale=0.1)
    both = b.add("qadd", [same, last], {**limits, "qmax": 255}, dtype="u8", scale=0.1)
    graph, images = b.finish(both), pixels((2, 4, 3), 3)
    got = CudaBackend(graph, cuda_device, max_batch=4, poison=True).run(images)["m0"]
    assert got.tobytes() == reference.run(graph, images.transpose(0, 3, 1, 2))["m0"].tobytes()
    assert len(np.unique(got)) > 3
