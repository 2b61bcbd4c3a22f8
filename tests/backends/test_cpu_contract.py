"""What the CPU back end promises beyond numbers: no contraction, no silent choice, safe sharing."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import threading

import numpy as np
import pytest

from hce_engine import _native
from hce_engine.backends.cpu import CpuBackend
from hce_engine.errors import UnsupportedError
from tests.backends.graphs import GraphBuilder, pixels


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
        if re.search(r"kernels::(ConvU8|AvgPoolU8|AddU8|RecodeU8|LoadQuantized|LoadNormalized)", name):
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
def test_use_after_fork_is_an_error_not_a_hang() -> None:
    b = GraphBuilder((3, 4, 4))
    backend = CpuBackend(b.finish(b.qconv("image", 4, weight_dtype="s8")), threads=2)
    images = pixels((3, 4, 4), 40)
    backend.run(images)
    child = os.fork()
    if child == 0:
        try:
            backend.run(images)
        except RuntimeError as error:
            os._exit(0 if "fork" in str(error) else 2)
        except BaseException:
            os._exit(3)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_program_refuses_addresses_outside_its_arena() -> None:
    native = _native.extension()
    program = native.Program("portable", 640, [2, 2, 3], False)
    program.load_codes((0, 128, 64))
    for ref in [(576, 128, 64), (64, 1 << 40, 64), (32, 128, 64), (0, -128, 64)]:
        with pytest.raises(ValueError, match="arena"):
            program.load_codes(ref)
    with pytest.raises(ValueError, match="arena"):
        program.recode(x=(0, 128, 64), y=(512, 128, 64), extent=[2, 2, 1], recode=[65536, 0, 0, 0, 255])


def test_the_border_to_c_refuses_arrays_that_do_not_fit() -> None:
    b = GraphBuilder((3, 4, 4))
    backend = CpuBackend(b.finish(b.qconv("image", 4, weight_dtype="s8")))
    images = pixels((3, 4, 4), 4)
    for bad in (images.astype(np.int32), images[:, :3], images[:, ::-1], images.astype(np.float32)):
        with pytest.raises(ValueError, match="images"):
            backend.run(bad)
