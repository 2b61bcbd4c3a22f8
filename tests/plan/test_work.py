"""What steps are said to do, against shapes that can be counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from hce_engine.errors import UnsupportedError
from hce_engine.graph import Graph
from hce_engine.plan.cpu import build_plan, select
from hce_engine.plan.cpu.plan import Step
from hce_engine.plan.cpu.winograd_codes import WinogradCodes
from hce_engine.plan.cpu.work import Work, step_work
from tests.backends.graphs import GraphBuilder


def _conv(graph: Graph, winograd: bool = False) -> tuple[Step, Work]:
    plan = build_plan(graph, "portable", lambda *_: select.ConvChoice(winograd, "test"), select.direct_conv_u8)
    step = next(s for s in plan.steps if s.macs)
    return step, step_work(step)


def _float_graph(c: int, oc: int, size: int, **options: object) -> Graph:
    b = GraphBuilder((c, size, size))
    return b.finish(b.conv(b.normalize(), oc, **options))  # type: ignore[arg-type]


def test_a_direct_float_layer_computes_what_it_counts() -> None:
    _, work = _conv(_float_graph(5, 7, 6))
    assert (work.kind, work.macs, work.executed) == ("f32", 9 * 5 * 7 * 36, 9 * 5 * 7 * 36)
    assert work.bytes == 36 * 64 * (5 + 7) + 4 * 9 * 5 * 7
    assert work.working_set == 64 * (5 * 8 * 8 + 7 * 36) + 4 * 9 * 5 * 7  # the input has a halo of one pixel


@pytest.mark.parametrize(("size", "tiles"), [(8, 4), (6, 4), (5, 4), (4, 1)])
def test_winograd_computes_whole_tiles(size: int, tiles: int) -> None:
    _, work = _conv(_float_graph(5, 7, size), winograd=True)
    assert work.macs == 9 * 5 * 7 * size * size
    assert work.executed == tiles * (36 * 5 * 7 + 144 * 5 + 100 * 7)
    assert work.unpadded == pytest.approx(size * size / 16 * (36 * 5 * 7 + 144 * 5 + 100 * 7))


@pytest.mark.parametrize(("c", "oc", "groups", "executed"), [
    (16, 16, 1, 16 * 16), (13, 9, 1, 16 * 12), (2, 3, 1, 16), (6, 12, 3, 3 * 16),
])
def test_codes_are_padded_to_units_of_four(c: int, oc: int, groups: int, executed: int) -> None:
    """Three groups of 2 inputs and 4 outputs read one unit each."""
    b = GraphBuilder((c, 5, 5))
    _, work = _conv(b.finish(b.qconv(b.codes("u4"), oc, groups=groups)))
    assert (work.kind, work.macs) == ("u4", 9 * (c // groups) * oc * 25)
    assert work.executed == 9 * 25 * executed


@pytest.mark.parametrize(("codes", "storage", "kind"), [("u8", "s8", "u8"), ("u8", "s4", "u8"), ("u3", "s3", "u4")])
def test_kinds_follow_the_input_codes(codes: str, storage: str, kind: str) -> None:
    b = GraphBuilder((16, 4, 4))
    step, work = _conv(b.finish(b.qconv(b.codes(codes), 16, weight_dtype=storage)))
    assert work.kind == kind
    maps = 16 * 4 * 64 * 2
    assert work.bytes == maps + step.packed_bytes == maps + {"s8": 64, "s4": 32, "s3": 24}[storage] * 9 * 16 * 16 // 64


def test_halos_and_copies_move_what_they_write() -> None:
    b = GraphBuilder((4, 6, 6))
    y = b.conv(b.normalize(), 4)
    z = b.add("channel_pad", [b.add("strided_slice", [y], {"h": (0, 6, 2), "w": (0, 6, 2)})], {"before": 2, "after": 2})
    plan = build_plan(b.finish(z), "portable")
    halo = next(s for s in plan.steps if s.method == "halo")
    copy = next(s for s in plan.steps if s.method == "copy")
    assert step_work(halo).bytes == (8 * 8 - 6 * 6) * 4 * 64
    assert step_work(copy).bytes == 3 * 3 * (4 + 8) * 64  # four channels read, all eight written
    assert step_work(copy).kind is None and step_work(copy).executed == 0


@pytest.mark.parametrize(("kernel", "rows"), [(3, 4), (5, 8)])
def test_depthwise_codes_take_kernel_rows_in_fours(kernel: int, rows: int) -> None:
    b = GraphBuilder((7, 9, 9))
    pad = kernel // 2
    step, work = _conv(b.finish(b.qconv(b.codes("u4"), 7, groups=7, kernel=(kernel, kernel), padding=(pad, pad))))
    assert step.kernel.endswith("_depthwise")
    assert (work.macs, work.executed) == (81 * 7 * kernel**2, 81 * 8 * rows * kernel)


def test_depthwise_floats_compute_what_they_count() -> None:
    step, work = _conv(_float_graph(6, 6, 8, groups=6))
    assert step.kernel == "conv2d_f32_depthwise"
    assert work.macs == work.executed == work.unpadded == 9 * 6 * 64


def test_kernels_that_nobody_counted_are_refused() -> None:
    step, _ = _conv(_float_graph(5, 7, 6))
    with pytest.raises(UnsupportedError, match="conv2d_f32_fft"):
        step_work(replace(step, kernel="conv2d_f32_fft"))


@pytest.mark.parametrize(("width", "tiles"), [(8, 2), (7, 2), (4, 1)])
def test_winograd_of_codes_computes_whole_tiles_of_a_row(width: int, tiles: int) -> None:
    b = GraphBuilder((5, 6, width))
    graph = b.finish(b.qconv(b.codes("u3"), 7, weight_dtype="s3"))

    def winograd(isa: str, layer: select.ConvU8Layer, fit: Callable[[], WinogradCodes]) -> select.ConvU8Choice:
        return select.ConvU8Choice("test", winograd=None if layer.logits else fit())

    plan = build_plan(graph, "portable", choose_conv_u8=winograd)
    step = next(s for s in plan.steps if s.macs)
    work = step_work(step)
    assert step.kernel.endswith("_winograd") and work.kind == "u4"
    assert work.macs == 9 * 5 * 7 * 6 * width
    assert work.executed == 6 * tiles * (18 * 8 * 8 + 23 * 8 + 88 * 8), "channels in units of 4"
