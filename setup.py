"""What pyproject.toml cannot say: where the packages lie, and how the C++ extension is compiled.

Only ``hce_engine`` may land in site-packages (``kernels`` is the name of another project), so the folders ``kernels/``
and ``training/`` are mapped to sub-packages here. The two links of the same names inside ``hce_engine/`` show the same
to type checkers and to a bare checkout; they are not followed, because an sdist has no links.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext

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


def isa_flags(source: str) -> list[str]:
    """Flags of one source: ``conv2d_avx2.cpp`` -> AVX2 and FMA, ``conv2d.cpp`` -> none (baseline x86-64)."""
    stem = Path(source).stem
    return next((flags for suffix, flags in ISA_FLAGS.items() if stem.endswith(suffix)), [])


def extensions() -> list[Pybind11Extension]:
    """``hce_engine._C`` from csrc/**/*.cpp; no torch headers, so it serves every version of torch."""
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.cpp"))
    headers = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".inc"))
    if not sources:
        return []
    extension = Pybind11Extension(
        "hce_engine._C", sources, depends=[*headers, "setup.py"], include_dirs=["csrc"], cxx_std=17,
        extra_compile_args=FLAGS, extra_link_args=["-pthread"],
    )
    return [extension]


class BuildExt(build_ext):
    """Compiles in parallel, each file with the flags of its name, and only files older than their sources."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # A fixed place, also in editable installs, so that a second build compiles only what changed.
        self.build_temp = str(ROOT / "build" / f"objects-{sys.implementation.cache_tag}")

    def build_extensions(self) -> None:
        self.compiler.compile = self.compile_all
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
            compiler._compile(obj, source, extension, cc_args, [*extra, *isa_flags(source)], pp_opts)

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(compile_one, (obj for obj in objects if obj in build)))
        return objects


setup(
    packages=packages(),
    package_dir={"hce_engine": "hce_engine", **LINKED},
    package_data={"": ["py.typed", "*.pyi", "*.json", "*.toml", "*.html", "recipes/*.toml"]},
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExt},
)
