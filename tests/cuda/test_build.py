"""What hce_engine._cuda is made of, read from the file: targets, registers, spills, libraries. Needs no GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hce_engine import _cuda_native
from hce_engine.plan.cuda import nhwc_select
from hce_engine.plan.cuda.winograd_select import INPUT, OUTPUT

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {"sm_80", "sm_90a"}
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9_]*)(.*)")


def has_nvcc() -> bool:
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = [os.environ.get("PATH", ""), "/usr/local/cuda/bin", *([os.path.join(named, "bin")] if named else [])]
    return os.environ.get("HCE_CUDA") != "0" and shutil.which("nvcc", path=os.pathsep.join(places)) is not None


@pytest.fixture(scope="module")
def extension() -> Path:
    """The file of the extension, which must have been built if there is an nvcc."""
    found, reason = _cuda_native.available()
    if not found and not has_nvcc():
        pytest.skip(f"hce_engine._cuda: {reason}")
    assert found, reason
    return Path(_cuda_native.extension().__file__ or "")


@pytest.fixture(scope="module")
def cuobjdump() -> str:
    tool = shutil.which("cuobjdump") or shutil.which("cuobjdump", path="/usr/local/cuda/bin")
    if tool is None:
        triton = pytest.importorskip("triton")
        tool = str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
        if not Path(tool).exists():
            pytest.skip("cuobjdump was not found, neither in the CUDA toolkit nor in triton")
    return tool


def _text(*command: str | Path) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def resources(extension: Path, cuobjdump: str) -> dict[tuple[str, str], dict[str, int]]:
    """(target, mangled kernel) -> REG, STACK, LOCAL, ... of the resource report."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    target = kernel = ""
    for line in _text(cuobjdump, "--dump-resource-usage", extension).splitlines():
        if match := re.match(r"arch = (\S+)", line):
            target = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            kernel = match[1]
        elif "REG:" in line:
            found[target, kernel] = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", line)}
    return found


def _instructions(cuobjdump: str, extension: Path, target: str, kernel: str) -> list[tuple[int, str, str]]:
    """(address, opcode, rest) of one kernel."""
    text = _text(cuobjdump, "-arch", target, "-fun", kernel, "-sass", extension)
    return [(int(m[1], 16), m[2], m[3]) for m in map(INSTRUCTION.search, text.splitlines()) if m]


def test_it_holds_machine_code_and_portable_code(extension: Path, cuobjdump: str) -> None:
    assert set(re.findall(r"\.(sm_\w+)\.cubin", _text(cuobjdump, "-lelf", extension))) == TARGETS
    assert set(re.findall(r"\.(sm_\w+)\.ptx", _text(cuobjdump, "-lptx", extension))) == {"sm_80"}


def test_every_kernel_is_there_for_every_target(resources: dict[tuple[str, str], dict[str, int]]) -> None:
    kernels = {target: {k for t, k in resources if t == target} for target in TARGETS}
    assert kernels["sm_80"] == kernels["sm_90a"]
    tiles = [k for k in kernels["sm_80"] if "Conv2dF32" in k]
    channels = _cuda_native.extension().CONV_CHANNELS
    assert len(tiles) == sum(channels.values())


def test_the_inner_loop_on_nhwc_maps(
    extension: Path, cuobjdump: str, resources: dict[tuple[str, str], dict[str, int]]
) -> None:
    """A step of 16 channels of 8 x 8 results is 1024 multiply-adds and 64 loads of 128 bits; what else it takes is the model's."""
    for target in sorted(TARGETS):
        kernels = [k for t, k in resources if t == target and "ConvNhwcF32" in k]
        assert len(kernels) == len(nhwc_select.TILES) + 1
        for (rows, columns), tile in nhwc_select.TILES.items():
            lane_rows, lane_columns = tile.lane
            (kernel,) = (k for k in kernels if f"ConvNhwcF32ILi{rows}ELi{columns}ELi{lane_rows}ELi{lane_columns}ELb1E" in k)
            code = _instructions(cuobjdump, extension, target, kernel)
            bodies = []
            for address, opcode, rest in code:
                to = re.search(r"0x([0-9a-f]+)", rest) if opcode == "BRA" else None
                if to and int(to[1], 16) < address:
                    bodies.append([name + rest for at, name, rest in code if int(to[1], 16) <= at <= address])
            steps = [b for b in bodies if sum(i.startswith("FFMA") for i in b) == 16 * lane_rows * lane_columns]
            body = min(steps, key=len)
            assert sum(i.startswith("LDS.128") for i in body) == 4 * (lane_rows + lane_columns), target
            assert len(body) <= 1.03 * tile.instructions, f"{target} {rows}x{columns}: {len(body)}"


def test_nothing_spills(resources: dict[tuple[str, str], dict[str, int]]) -> None:
    assert resources
    wrong = {key: usage for key, usage in resources.items() if usage["STACK"] or usage["LOCAL"]}
    assert not wrong


def _loops(code: list[tuple[int, str, str]]) -> list[list[str]]:
    """Opcodes of each loop: what lies between a jump backwards and where it leads."""
    found = []
    for address, opcode, rest in code:
        to = re.search(r"0x([0-9a-f]+)", rest) if opcode == "BRA" else None
        if to and int(to[1], 16) < address:
            found.append([name for at, name, _ in code if int(to[1], 16) <= at <= address])
    return found


def test_the_inner_loop_is_multiply_adds(
    extension: Path, cuobjdump: str, resources: dict[tuple[str, str], dict[str, int]]
) -> None:
    """Of the instructions in the loop of a full register tile, eight in nine do the work; 64 of 68 would beside loads alone."""
    for target in sorted(TARGETS):
        (kernel,) = (k for t, k in resources if t == target and "Conv2dF32ILi2ELi8E" in k)
        loops = _loops(_instructions(cuobjdump, extension, target, kernel))
        best = max(body.count("FFMA") / len(body) for body in loops if body.count("FFMA") >= 64)
        assert best >= 0.885, f"{target}: {best:.3f}"


@pytest.mark.parametrize(("m", "tile"), [(4, "ILi4ELi1ELi8E"), (4, "ILi4ELi2ELi9E"), (2, "ILi2ELi1ELi16E")])
def test_the_transforms_have_the_instructions_that_plans_count(
    m: int, tile: str, extension: Path, cuobjdump: str, resources: dict[tuple[str, str], dict[str, int]]
) -> None:
    """A loop with the loads of a tile's pixels and the stores of its frequencies, and loops with the stores of its outputs, with and
    without the loads of a residual; of two alike the longer one is of tiles that reach beyond the map."""
    (kernel,) = (k for t, k in resources if t == "sm_90a" and "WinogradF32" + tile in k)
    loops = _loops(_instructions(cuobjdump, extension, "sm_90a", kernel))
    inputs = [len(b) for b in loops if b.count("STS") == (m + 2) ** 2 == b.count("LDG")]
    assert min(inputs) == pytest.approx(INPUT[m], rel=0.1)
    for residual in (False, True):
        loads = 1 + residual * m * m  # the bias
        outputs = [len(b) for b in loops if b.count("STG") == m * m and b.count("LDG") == loads]
        assert outputs and min(outputs) == pytest.approx(OUTPUT[m, residual], rel=0.1)


def test_the_loops_of_split_operands(
    extension: Path, cuobjdump: str, resources: dict[tuple[str, str], dict[str, int]]
) -> None:
    """Two steps of 2 pixels and 16 outputs, 48 products of matrices: what stands beside them, by how operands come. Split maps need
    nothing but loads and addresses. The rule that selects configurations counts on these numbers."""
    most = {"E0ELb0": 245, "E1ELb1": 185, "E2ELb1": 185, "E1ELb0": 510, "E2ELb0": 420}  # tf32x3; split maps; float maps
    for target in sorted(TARGETS):
        kernels = [k for t, k in resources if t == target and "Conv2dSplit" in k]
        assert len(kernels) == 4 * len(most)
        for form, instructions in most.items():
            (kernel,) = (k for k in kernels if f"Arithmetic{form}ELi2E" in k)
            code = _instructions(cuobjdump, extension, target, kernel)
            bodies = [body for body in _loops(code) if body.count("HMMA") == 48]
            assert min(map(len, bodies)) <= instructions, f"{kernel} on {target}"
            loads = min(body.count("LDG") for body in bodies)
            assert loads == (36 if form.endswith("Lb1") else 12 if form == "E0ELb0" else 20)


def test_lines_are_stored_by_wide_accesses(
    extension: Path, cuobjdump: str, resources: dict[tuple[str, str], dict[str, int]]
) -> None:
    """Four images of a lane, or two where a map is split: never one, which would be four times the accesses to the same bytes."""
    some = r"Conv2dSplit\S+ELi4E|Conv2dF32ILi2ELi8E|6AddF32|FlattenF32|PoolKindE0E"
    for target in sorted(TARGETS):
        kernels = [k for t, k in resources if t == target and re.search(some, k)]
        assert len(kernels) == 5 + 4
        stores = [rest for _, opcode, rest in _instructions(cuobjdump, extension, target, ",".join(kernels)) if opcode == "STG"]
        assert len(stores) >= 2 * len(kernels)
        assert not [rest for rest in stores if not re.match(r"\.E\.(128|64) ", rest)], target


def test_what_rounds_twice_is_not_contracted(
    extension: Path, cuobjdump: str, resources: dict[tuple[str, str], dict[str, int]]
) -> None:
    for name in ("LoadImages", "AddF32", "EnsembleMean"):
        for target, kernel in resources:
            if name in kernel:
                opcodes = {opcode for _, opcode, _ in _instructions(cuobjdump, extension, target, kernel)}
                assert "FMUL" in opcodes
                assert "FFMA" not in opcodes, f"{kernel} on {target}"


def test_neither_the_driver_nor_a_shared_runtime_is_linked(extension: Path) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("readelf was not found")
    needed = re.findall(r"NEEDED.*\[(.*)\]", _text("readelf", "-d", extension))
    assert needed
    assert not [name for name in needed if "cuda" in name or "torch" in name]
    exported = [line for line in _text("readelf", "-W", "--dyn-syms", extension).splitlines() if " GLOBAL " in line and " UND " not in line]
    assert not [line for line in exported if re.search(r"\bcu(da)?[A-Z]", line)]


def test_without_a_device_errors_say_so(extension: Path) -> None:
    cuda = _cuda_native.extension()
    assert cuda.error_name(2) == "cudaErrorMemoryAllocation"
    assert "memory" in cuda.error_string(2)
    one = (1, 1, 1, 1)
    with pytest.raises(ValueError, match="add_f32: positive sizes expected"):
        cuda.add_f32(0, 0, a=(128, 0, 0, 0), b=None, y=(128, 0, 0, 0), shape=(0, 1, 1, 1), scale=1.0, limits=(0.0, 1.0))
    if cuda.driver_version():
        pytest.skip("this machine has a CUDA driver")
    with pytest.raises(cuda.CudaError, match="cudaGetDeviceCount: cudaErrorInsufficientDriver") as caught:
        cuda.device_count()
    assert (caught.value.name, caught.value.code) == ("cudaErrorInsufficientDriver", 35)
    with pytest.raises(cuda.CudaError, match="cudaErrorInsufficientDriver"):
        cuda.add_f32(0, 0, a=(128, 0, 0, 0), b=None, y=(128, 0, 0, 0), shape=one, scale=1.0, limits=(0.0, 1.0))


@pytest.mark.parametrize("skip", ["0", ""])
def test_the_two_extensions_share_no_source(skip: str) -> None:
    if not (ROOT / "setup.py").exists():
        pytest.skip("not in a checkout")
    code = ("import runpy, setuptools; setuptools.setup = lambda **k: print({e.name: e.sources for e in k['ext_modules']}); "
            "runpy.run_path('setup.py')")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "HCE_CUDA": skip}, capture_output=True,
                          text=True, check=True)
    sources: dict[str, list[str]] = eval(done.stdout)
    assert not [name for name in sources["hce_engine._C"] if "cuda" in name]
    if skip:
        assert "hce_engine._cuda" not in sources
    elif has_nvcc():
        assert all(name.startswith("csrc/cuda/") for name in sources["hce_engine._cuda"])
