"""What pyproject.toml cannot say: where the packages lie, and how the C++ and the CUDA extension are compiled.

Only ``hce_engine`` may land in site-packages (``kernels`` is the name of another project), so the folders ``kernels/``
and ``training/`` are mapped to sub-packages here. The two links of the same names inside ``hce_engine/`` show the same
to type checkers and to a bare checkout; they are not followed, because an sdist has no links.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
LINKED = {"hce_engine.kernels": "kernels", "hce_engine.training": "training"}


def packages() -> list[str]:
    """Every folder with an ``__init__.py`` under the three source roots, by its import name."""
    found = []
    for package, folder in {"hce_engine": "hce_engine", **LINKED}.items():
        for init in sorted((ROOT / folder).rglob("__init__.py")):
            if not any(parent.is_symlink() for parent in init.parents if parent.is_relative_to(ROOT)):
                found.append(".".join([package, *init.parent.relative_to(ROOT / folder).parts]))
    return found


# One set of flags for every file, because a result may not depend on the file that computed it: no contraction of
# a * b + c into one rounding, no -march=native. Instruction sets are raised per file, by the end of its name, and such a
# file is entered only after the processor was asked (csrc/cpu).
FLAGS = ["-O3", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra", "-g0", "-pthread"]
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"]
ISA_FLAGS = {"_avx2": AVX2, "_avx512vnni": AVX512, "_amx": [*AVX512, "-mamx-tile", "-mamx-int8"]}


# HCE_SANITIZE=address,undefined or thread: the C++ extension with checks compiled in, for tests (tests/backends/test_sanitizers.py).
# Fused and vectorised code stays as it is; -O1 keeps the reports readable and the build short.
SANITIZERS = os.environ.get("HCE_SANITIZE", "")
if SANITIZERS:
    FLAGS = ["-O1", *FLAGS[1:-2], "-g1", "-pthread", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all"]


def isa_flags(source: str) -> list[str]:
    """Flags of one source: ``conv2d_avx2.cpp`` -> AVX2 and FMA, ``conv2d.cpp`` -> none (baseline x86-64)."""
    stem = Path(source).stem
    return next((flags for suffix, flags in ISA_FLAGS.items() if stem.endswith(suffix)), [])


# CUDA C++ (csrc/cuda): machine code for sm_80 and sm_90a, and PTX that the driver compiles for newer GPUs. No contraction here
# either; where a kernel fuses, it says so.
CUDA_FLAGS = [
    "-O3", "-std=c++17", "--fmad=false", "--threads=2", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall",
    "-gencode=arch=compute_80,code=[sm_80,compute_80]", "-gencode=arch=compute_90a,code=sm_90a",
]
OLDEST_CUDA = 12  # the first that knows sm_90a


def find_nvcc() -> str | None:
    """The CUDA compiler: of the toolkit that CUDA_HOME or CUDA_PATH names, on PATH, or in /usr/local/cuda; None without one."""
    if os.environ.get("HCE_CUDA") == "0":
        return None
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=os.path.join(named, "bin") if named else None)
    nvcc = nvcc or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        return None
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    release = re.search(r"release (\d+)\.", text)
    if release is None or int(release[1]) < OLDEST_CUDA:
        print(f"setup.py: {nvcc} is not of CUDA {OLDEST_CUDA} or newer; building without hce_engine._cuda", file=sys.stderr)
        return None
    return nvcc


def cuda_toolkit(nvcc: str) -> tuple[str, str]:
    """(folder of the headers, folder of the static runtime) of an nvcc, which may be a link or a script."""
    command = [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull]
    top = re.search(r"^#\$ TOP=(.*)$", subprocess.run(command, capture_output=True, text=True, check=False).stderr, re.M)
    root = Path(top[1].strip()).resolve() if top else Path(nvcc).resolve().parent.parent
    places = ("lib*/libcudart_static.a", "targets/*/lib/libcudart_static.a")
    library = next((path for place in places for path in sorted(root.glob(place))), None)
    if library is None or not (root / "include" / "cuda_runtime_api.h").exists():
        raise SystemExit(f"setup.py: expected the CUDA runtime's headers and libcudart_static.a under {root}, of {nvcc}; "
                         "install the whole toolkit, or set HCE_CUDA=0 to build without GPU kernels")
    return str(root / "include"), str(library.parent)


def sources_and_headers(folder: Path, *suffixes: str) -> tuple[list[str], list[str]]:
    """(files to compile, everything they may include), relative to the checkout."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [str(path.relative_to(ROOT)) for path in files]
    return ([n for n in names if n.endswith(suffixes)], [n for n in names if n.endswith((".h", ".inc"))])


def extensions() -> list[Pybind11Extension]:
    """``hce_engine._C`` from csrc, and ``hce_engine._cuda`` from csrc/cuda where there is an nvcc; no torch headers, so they serve
    every version of torch."""
    found = []
    sources, headers = sources_and_headers(ROOT / "csrc" / "cpu", ".cpp")
    if sources:
        found.append(Pybind11Extension(
            "hce_engine._C", ["csrc/bindings.cpp", *sources], depends=[*headers, "setup.py"], include_dirs=["csrc"], cxx_std=17,
            extra_compile_args=FLAGS, extra_link_args=["-pthread", *([f"-fsanitize={SANITIZERS}"] if SANITIZERS else [])],
        ))
    sources, headers = sources_and_headers(ROOT / "csrc" / "cuda", ".cpp", ".cu")
    nvcc = find_nvcc() if sources else None
    if nvcc:
        include, library = cuda_toolkit(nvcc)
        # The runtime is linked statically and its symbols stay inside, so that it never meets the one of torch; the driver
        # is loaded by the runtime when a GPU is used, so the module can be imported without one.
        found.append(Pybind11Extension(
            "hce_engine._cuda", sources, depends=[*headers, "setup.py"], include_dirs=[include], cxx_std=17,
            extra_compile_args=FLAGS, library_dirs=[library], libraries=["cudart_static", "rt", "dl", "pthread"],
            extra_link_args=["-Wl,--exclude-libs,ALL"],
        ))
    return found


class BuildExt(build_ext):
    """Compiles in parallel, each file with the flags of its name, and only files older than their sources."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # A fixed place, also in editable installs, so that a second build compiles only what changed.
        self.build_temp = str(ROOT / "build" / "-".join(["objects", sys.implementation.cache_tag, *SANITIZERS.split(",")]).rstrip("-"))

    def build_extensions(self) -> None:
        self.compiler.compile = self.compile_all
        if ".cu" not in self.compiler.src_extensions:
            self.compiler.src_extensions.append(".cu")
        super().build_extensions()

    def compile_all(
        self, sources: list[str], output_dir: str | None = None, macros: list[Any] | None = None,
        include_dirs: list[str] | None = None, debug: bool = False, extra_preargs: list[str] | None = None,
        extra_postargs: list[str] | None = None, depends: list[str] | None = None,
    ) -> list[str]:
        compiler = self.compiler
        macros, objects, extra, pp_opts, build = compiler._setup_compile(
            output_dir, macros, include_dirs, sources, depends, extra_postargs
        )
        cc_args = compiler._get_cc_args(pp_opts, debug, extra_preargs)
        newest = max((os.path.getmtime(path) for path in depends or ()), default=0.0)

        def compile_one(obj: str) -> None:
            source, extension = build[obj]
            if os.path.exists(obj) and os.path.getmtime(obj) > max(newest, os.path.getmtime(source)):
                return
            if extension == ".cu":
                nvcc = find_nvcc()
                assert nvcc is not None
                command = [nvcc, *CUDA_FLAGS, "-c", source, "-o", obj]
                if subprocess.run(command, check=False).returncode:
                    raise CompileError(f"{' '.join(command)} failed; HCE_CUDA=0 builds without GPU kernels")
            else:
                compiler._compile(obj, source, extension, cc_args, [*extra, *isa_flags(source)], pp_opts)

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(compile_one, (obj for obj in objects if obj in build)))
        return objects


setup(
    packages=packages(),
    package_dir={"hce_engine": "hce_engine", **LINKED},
    package_data={"": ["py.typed", "*.pyi", "*.json", "*.toml", "*.html", "recipes/*.toml", "tuned/*.json"]},
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExt},
)
