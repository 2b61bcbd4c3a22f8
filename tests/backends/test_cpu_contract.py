"""What the CPU back end promises beyond numbers: no contraction, no silent choice, safe sharing."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from hce_engine import _native
from hce_engine.backends import reference
from hce_engine.backends.cpu import CpuBackend
from hce_engine.errors import GraphError, UnsupportedError
from hce_engine.graph import Graph
from hce_engine.plan.cpu import build_plan
from tests.backends.graphs import GraphBuilder, pixels


def _small() -> Graph:
    b = GraphBuilder((3, 4, 4))
    return b.finish(b.qconv("image", 4, weight_dtype="s8"))


def _disassembly() -> dict[str, str]:
    """Function name -> instructions of the extension's own code."""
    path = importlib.util.find_spec("hce_engine._C").origin  # type: ignore[union-attr]
    text = subprocess.run(["objdump", "-d", "--no-show-raw-insn", "-C", path], capture_output=True, text=True, check=True)
    functions: dict[str, str] = {}
    for block in text.stdout.split("\n\n"):
        head, _, body = block.partition("\n")
        match = re.match(r"[0-9a-f]+ <(.*)>:", head)
        if match:
            functions[match[1]] = body
    return functions


def test_no_fused_multiply_add_in_integer_kernels() -> None:
    functions = _disassembly()
    checked = 0
    for name, body in functions.items():
        if re.search(r"kernels::(ConvU8|WinogradU8|Depthwise(U8|Strip|Rows|Windows|Kernel|Pixel)|AvgPoolU8|AveragesU8|AddU8|RecodeU8|"
                     r"LoadQuantized|LoadNormalized)", name):
            assert not re.search(r"\bvfn?m(add|sub)", body), f"{name} contracts a product and a sum into one rounding"
            checked += 1
    fused = [name for name, body in functions.items() if "kernels::ConvF32" in name and re.search(r"\bvfmadd", body)]
    assert checked >= 10, "the integer kernels were not found in the disassembly"
    assert fused, "the float kernels do use fused multiply-adds, or this test reads the wrong file"


def test_packed_codes_are_what_the_inner_loop_reads() -> None:
    """The VNNI kernel multiplies codes as codes: vpdpbusd, and no conversion of a code to float before the sum."""
    if "avx512vnni" not in _native.supported_isas():
        pytest.skip("this processor has no AVX-512 VNNI")
    body = "\n".join(b for n, b in _disassembly().items() if re.search(r"kernels::ConvU8\w*<hce::avx512vnni", n))
    assert body.count("vpdpbusd") >= 16


def test_instruction_set_can_be_forced_and_is_never_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    b = GraphBuilder((3, 4, 4))
    graph = b.finish(b.qconv("image", 4, weight_dtype="s8"))
    for isa in _native.supported_isas():
        monkeypatch.setenv("HCE_ISA", isa)
        assert CpuBackend(graph).isa == isa
    monkeypatch.setenv("HCE_ISA", "sse9")
    with pytest.raises(UnsupportedError, match=r"sse9.*HCE_ISA"):
        CpuBackend(graph)


def test_one_back_end_serves_many_python_threads() -> None:
    b = GraphBuilder((3, 6, 6), seed=1)
    graph = b.finish(b.qconv("image", 8, weight_dtype="s4"))
    backend = CpuBackend(graph, threads=2)
    images = pixels((3, 6, 6), 40)
    expected = backend.run(images)["m0"].tobytes()
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(50):
            if backend.run(images)["m0"].tobytes() != expected:
                wrong.append(index)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_use_after_fork_is_an_error_and_no_end_of_the_child_hangs() -> None:
    backend = CpuBackend(_small(), threads=3)
    images = pixels((3, 4, 4), 40)
    backend.run(images)
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a hang ends with a signal instead
        code = 1
        try:
            backend.run(images)
        except UnsupportedError as error:
            code = 0 if "fork" in str(error) else 2
        del backend
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_refused_threads_are_an_error_and_the_process_lives() -> None:
    script = '''
import resource
from hce_engine.backends.cpu import CpuBackend
from hce_engine.errors import GraphError, UnsupportedError
from hce_engine.graph import Graph
from hce_engine.plan.cpu import build_plan
from tests.backends.test_cpu_contract import _small
graph = _small()
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))  # the stacks of 1024 threads need more
try:
    CpuBackend(graph, threads=1024)
except UnsupportedError as error:
    assert "1024 threads" in str(error)
    CpuBackend(graph, threads=1)
    print("refused")
'''
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})
    assert done.stdout.strip() == "refused", done.stderr


def test_maps_beyond_memory_are_refused_before_they_are_allocated() -> None:
    """A file of a few hundred bytes may ask for any size of map, or of halo around one."""
    big = GraphBuilder((64, 1 << 12, 1 << 12))
    far = GraphBuilder((1, 1, 1))
    edge = 1 << 20
    y = far.qconv("image", 1, kernel=(1, 1), padding=(edge, edge), stride=(edge, edge))
    for b, output in ((big, big.add("global_avg_pool", [big.normalize()])), (far, y)):
        with pytest.raises(UnsupportedError, match=r"memory, got \d{11,} bytes: 3 threads"):
            CpuBackend(b.finish(output), threads=3)
    farther = far.qconv("image", 1, kernel=(1, 1), padding=(edge + 1, 0), stride=(edge, 1))
    with pytest.raises(GraphError, match="at most 2\\^20"):
        far.finish(farther)


def test_a_large_flatten_is_one_step() -> None:
    b = GraphBuilder((4, 512, 512))
    plan = build_plan(b.finish(b.normalize()), "portable")
    assert len(plan.steps) == 3
    assert all(m.pattern.strides == (0,) for s in plan.steps for m in s.writes.values())  # no memory per channel


@pytest.mark.parametrize("isa", _native.supported_isas())
def test_rows_of_a_hundred_thousand_pixels(isa: str) -> None:
    """The product of two widths does not fit 32 bits."""
    width = 100_000
    b = GraphBuilder((1, 1, width))
    codes = b.qconv("image", 4, kernel=(1, 1), padding=(0, 0), weight_dtype="s8")
    floats = b.conv(b.normalize(), 2, kernel=(1, 3), padding=(0, 1))
    ends = {"h": (0, 1, 1), "w": (width // 2, width, width // 2 - 1)}
    a = b.add("concat", [b.add("strided_slice", [codes], ends)])
    c = b.add("concat", [b.add("strided_slice", [floats], ends)] * 2)
    graph = b.finish(a, c)
    images = pixels((1, 1, width), 2)
    want = reference.run(graph, images.transpose(0, 3, 1, 2))
    got = CpuBackend(graph, isa=isa).run(images)
    np.testing.assert_array_equal(got["m0"], want["m0"])
    np.testing.assert_allclose(got["m1"], want["m1"], rtol=0, atol=1e-5)


def test_only_members_that_ran_are_returned() -> None:
    b = GraphBuilder((3, 4, 4))
    graph = b.finish(b.qconv("image", 4, weight_dtype="s8"), b.qconv("image", 4, weight_dtype="s3"))
    assert set(CpuBackend(graph).run(pixels((3, 4, 4), 2), names=["m1"])) == {"m1"}


def test_a_program_refuses_addresses_outside_its_arena() -> None:
    native = _native.extension()
    program = native.Program("portable", 640, [2, 2, 3], False)
    with pytest.raises(ValueError, match="stage"):
        program.load_codes((0, 128, 64), (16, 1, 1, 2, 2))
    program.stage(16)
    program.load_codes((0, 128, 64), (16, 1, 1, 2, 2))
    for ref in [(576, 128, 64), (64, 1 << 40, 64), (32, 128, 64), (0, -128, 64), (0, 1 << 62, 1 << 62), (1 << 62, 1 << 62, 64)]:
        with pytest.raises(ValueError, match="arena"):
            program.load_codes(ref, (16, 1, 1, 2, 2))
    with pytest.raises(ValueError, match="arena"):
        program.recode(x=(0, 128, 64), y=(512, 128, 64), extent=[2, 2, 1], recode=[65536, 0, 0, 0, 255])


def test_the_border_to_c_refuses_arrays_that_do_not_fit() -> None:
    b = GraphBuilder((3, 4, 4))
    backend = CpuBackend(b.finish(b.qconv("image", 4, weight_dtype="s8")))
    images = pixels((3, 4, 4), 4)
    for bad in (images.astype(np.int32), images[:, :3], images[:, ::-1], images.astype(np.float32)):
        with pytest.raises(ValueError, match="images"):
            backend.run(bad)
