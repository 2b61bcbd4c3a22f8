"""Float members whose layers run by Winograd: the back end's programs on a GPU or on the extension built for the host."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from hce_engine import numerics
from hce_engine.backends.cuda.backend import CudaBackend
from hce_engine.backends.cuda.lanes_program import LanesArena, LanesConstants, LanesProgram
from hce_engine.errors import InputError
from hce_engine.graph import Graph, Node
from hce_engine.plan.cuda import winograd_select
from hce_engine.plan.cuda.lanes_lowering import build_lanes_plan
from hce_engine.plan.cuda.lanes_plan import WinogradConfig
from tests.backends.graphs import GraphBuilder, pixels

from .lanes_runs import DEVICE, planes, program_of, run
from .winograd_error import winograd_bound

U = 2.0**-24


def block(shape: tuple[int, int, int]) -> Graph:
    """A stem, a pruned residual block with a clamp, a 5 x 5 layer that reads the map of a 3 x 3 one, and two with unlike padding."""
    b = GraphBuilder(shape, seed=shape[1])
    x = b.conv(b.normalize(), 9, low=0.0)
    inner = b.conv(x, 5, low=0.0)
    y = b.conv(inner, 9, residual=x, low=-20.0, high=30.0)
    five = b.conv(x, 9, kernel=(5, 5), padding=(2, 2))
    return b.finish(x, y, five, b.conv(b.conv(y, 3, padding=(2, 0)), 9, padding=(0, 2)))


def gamma(n: int) -> float:
    return n * U / (1 - n * U)


def check(graph: Graph, algorithm: dict[str, int], images: np.ndarray, logits: dict[str, np.ndarray]) -> None:
    """Every map that is a member's is within a bound of what float64 makes of its inputs: those that are members' maps as the program
    computed them, others with a bound on their own error."""
    flattened = {graph[m.output].inputs[0]: logits[m.name] for m in graph.members}
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {"image": (planes(images).astype(np.float64), np.zeros(1))}
    for node in graph.nodes:
        if node.op == "normalize":
            x = found[node.inputs[0]][0]
            scale, offset = (node.params[key].astype(np.float64)[:, None, None] for key in ("scale", "offset"))
            found[node.name] = (x * scale + offset, gamma(2) * (np.abs(x * scale) + np.abs(offset)))
        elif node.op == "conv2d":
            value, bound = found[node.name] = _convolution(node, algorithm[node.name], *(found[name] for name in node.inputs))
            if node.name in flattened:
                got = flattened[node.name].reshape(value.shape).astype(np.float64)
                error = np.abs(got - value)
                assert (error <= bound).all(), (node.name, float(error.max()), float(bound.max()))
                assert bound.max() < 0.02 * np.abs(value).max(), (node.name, bound.max(), np.abs(value).max())
                found[node.name] = (got, np.zeros_like(got))


def _convolution(
    node: Node, m: int, source: tuple[np.ndarray, np.ndarray], residual: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    a, weight = node.attrs, node.params["weight"].astype(np.float64)
    bias = node.params["bias"].astype(np.float64)[:, None, None]
    (x, dx), (r, dr) = source, residual or (np.zeros(1), np.zeros(1))

    def convolved(values: np.ndarray, by: np.ndarray) -> np.ndarray:
        windows = numerics.patches(values, by.shape[2:], a["stride"], a["padding"], a["dilation"], 0.0)
        return np.einsum("ncijab,ocab->noij", windows, by)

    magnitude, others = np.abs(x) + dx, np.abs(bias) + np.abs(r) + dr
    if m:
        (top, left) = a["padding"]
        own = winograd_bound(m, np.pad(magnitude, ((0, 0), (0, 0), (top, top), (left, left))), weight, others)
    else:
        own = gamma(weight[0].size + 2) * (convolved(magnitude, np.abs(weight)) + others)
    low, high = (np.inf * s if a[key] is None else a[key] for key, s in (("min", -1), ("max", 1)))
    y = np.clip(convolved(x, weight) + bias + r, low, high)  # a clamp makes no difference larger
    return y, own + convolved(dx * np.ones_like(x), np.abs(weight)) + dr


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("size", [(7, 7), (15, 15), (5, 3), (4, 6), (8, 9)], ids=str)
def test_a_block_keeps_to_its_bound(size: tuple[int, int], m: int, extension: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    m = m if min(size) >= m else 2
    monkeypatch.setattr(winograd_select, "algorithm", lambda c, k, h, w, residual: m if min(h, w) >= m else 0)
    graph, images = block((3, *size)), pixels((3, *size), 2)
    program = program_of(graph, images, extension)
    algorithm = {s.nodes[0]: s.config.output if isinstance(s.config, WinogradConfig) else 0
                 for s in program.plan.steps if s.weights is not None}
    assert list(algorithm.values()).count(m) >= 3 and 0 in algorithm.values()
    assert any(s.kernel == "winograd_f32" and "residual" in s.reads for s in program.plan.steps)
    check(graph, algorithm, images, {name: z.cpu().numpy() for name, z in program.logits.items()})
    for slot, memory in zip(program.arena.slots, program.arena.memory, strict=True):
        LanesArena.inner(slot, memory).zero_()
        assert not memory.any()  # halos stay zero


def chosen() -> Graph:
    """A network small enough for the host whose layers the rule gives to Winograd."""
    b = GraphBuilder((3, 8, 8), seed=4)
    x = b.conv(b.normalize(), 16, low=0.0)
    return b.finish(b.conv(b.conv(b.conv(x, 16), 16, residual=x, low=0.0), 4, kernel=(8, 8), padding=(0, 0)))


def test_bytes_do_not_depend_on_the_batch(extension: ModuleType) -> None:
    graph, images = chosen(), pixels((3, 8, 8), 35)
    plan = build_lanes_plan(graph, 35)
    assert [s.kernel for s in plan.steps].count("winograd_f32") == 3
    (whole,) = run(graph, images, extension).values()
    for part in (slice(0, 1), slice(30, 35)):
        (alone,) = run(graph, images[part], extension).values()
        assert alone.tobytes() == whole[part].tobytes()
    backend = CudaBackend(graph, "cuda" if torch.cuda.is_available() else "cpu", extension=extension, max_batch=4, poison=True,
                          layout="lanes")
    assert backend.run(images[28:35])["m0"].tobytes() == whole[28:35].tobytes()  # 4 + 3


def test_both_algorithms_share_constants_and_memory_is_counted(extension: ModuleType) -> None:
    graph, images = chosen(), pixels((3, 8, 8), 1)
    constants = LanesConstants(extension, DEVICE)
    results = []
    for convolution in ("auto", "direct", "auto"):
        plan = build_lanes_plan(graph, 1, convolution=convolution)
        missing, before = constants.missing_bytes(plan), sum(4 * t.numel() for pair in constants._layers.values() for t in pair)
        program = LanesProgram(plan, LanesArena(plan, DEVICE, poison=True), constants, torch.from_numpy(images).to(DEVICE), poison=True)
        assert sum(4 * t.numel() for pair in constants._layers.values() for t in pair) == before + missing
        assert constants.missing_bytes(plan) == 0
        program()
        results.append(program.logits["m0"].cpu().numpy())
    assert results[0].tobytes() == results[2].tobytes() != results[1].tobytes()
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=1e-4 * float(np.abs(results[1]).max()))


def test_the_back_end_has_the_switch(extension: ModuleType) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    direct = CudaBackend(chosen(), device, extension=extension, max_batch=1, convolution="direct")
    images = pixels((3, 8, 8), 1)
    assert direct.run(images)["m0"].tobytes() == run(chosen(), images, extension, "direct")["m0"].tobytes()
    with pytest.raises(InputError, match="convolution auto or direct"):
        CudaBackend(chosen(), device, extension=extension, convolution="winograd")
