"""What lands in site-packages: only ``hce_engine``, with everything it needs, from a wheel and from an sdist.

Built in a copy of the checkout without its compiled objects and without the network. The C++ sources are replaced by a
small stand-in, since how long the kernels compile says nothing about packaging; that they compile is what every other
test rests on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "*.egg-info", "*.so", "__pycache__", ".*_cache", ".hypothesis", "runs",
    "quickstart", "data", "*.hce",
)
BINDINGS = """
#include <pybind11/pybind11.h>
#include "cpu/isa.h"
PYBIND11_MODULE(_C, m) {
  m.def("isa", [] { return pybind11::make_tuple(Baseline(), Avx2(), Avx512Vnni()); });
}
"""
HEADER = "int Baseline();\nint Avx2();\nint Avx512Vnni();\n"
BODY = """
#include "cpu/isa.h"
int %s() {
#if defined(__AVX512VNNI__)
  return 3;
#elif defined(__AVX2__) && defined(__FMA__)
  return 2;
#else
  return 1;
#endif
}
"""


def _python(*arguments: str | Path, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (ROOT / "setup.py").exists():
        pytest.skip("not in a checkout")
    copy = tmp_path_factory.mktemp("copy") / "checkout"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=LEFT_OUT)
    shutil.rmtree(copy / "csrc")
    (copy / "csrc" / "cpu").mkdir(parents=True)
    (copy / "csrc" / "bindings.cpp").write_text(BINDINGS)
    (copy / "csrc" / "cpu" / "isa.h").write_text(HEADER)
    for stem, name in (("isa", "Baseline"), ("isa_avx2", "Avx2"), ("isa_avx512vnni", "Avx512Vnni")):
        (copy / "csrc" / "cpu" / f"{stem}.cpp").write_text(BODY % name)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    _python("-m", "pip", "wheel", "-q", "--no-index", "--no-deps", "--no-build-isolation", "-w", "dist", ".", cwd=checkout)
    return next((checkout / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def sdist(checkout: Path) -> Path:
    _python("-c", "from setuptools import build_meta; build_meta.build_sdist('dist')", cwd=checkout)
    return next((checkout / "dist").glob("*.tar.gz"))


def sources(folder: str) -> set[str]:
    return {str(p.relative_to(ROOT)) for p in (ROOT / folder).rglob("*.py") if "__pycache__" not in p.parts}


def expected_modules() -> set[str]:
    own = {name for name in sources("hce_engine") if name.split("/")[1] not in ("kernels", "training")}
    return own | {f"hce_engine/{name}" for folder in ("kernels", "training") for name in sources(folder)}


def test_the_wheel_holds_hce_engine_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0].split("-")[0] for name in names} == {"hce_engine"}
    assert expected_modules() <= names
    assert "hce_engine/py.typed" in names
    recipes = {f"hce_engine/training/recipes/{p.name}" for p in (ROOT / "training" / "recipes").glob("*.toml")}
    assert recipes
    assert recipes <= names
    assert {"hce_engine/training/report/page.html", "hce_engine/training/pictures/anchors.toml"} <= names
    assert any(name.startswith("hce_engine/_C.") for name in names)


def test_the_wheel_names_its_licence_and_its_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    texts = {Path(n).name: archive.read(n).decode() for n in archive.namelist() if ".dist-info/" in n}
    assert "License-Expression: Apache-2.0" in texts["METADATA"]
    assert "hce = hce_engine.cli:main" in texts["entry_points.txt"]
    assert any(name.endswith("LICENSE") for name in archive.namelist())


def test_each_source_has_the_instruction_set_of_its_name(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    assert _python("-c", "import hce_engine._C as c; print(c.isa())", cwd=tmp_path).strip() == "(1, 2, 3)"


def test_the_installed_package_finds_its_parts(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "import hce_engine, hce_engine.kernels, hce_engine.training.recipe as r; print(r.RECIPES); r.load_recipe('quickstart-digits')"
    assert str(tmp_path) in _python("-c", code, cwd=tmp_path)


def test_the_sdist_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
        archive.extractall(tmp_path, filter="data")
    assert {"csrc/cpu/isa.h", "csrc/bindings.cpp", "Makefile", "constraints.txt", "LICENSE", "tests/conftest.py"} <= names
    assert not any(name.startswith(("hce_engine/kernels", "hce_engine/training")) for name in names)
    (unpacked,) = tmp_path.iterdir()
    _python("-m", "pip", "wheel", "-q", "--no-index", "--no-deps", "--no-build-isolation", "-w", "dist", ".", cwd=unpacked)
    again = zipfile.ZipFile(next((unpacked / "dist").glob("*.whl"))).namelist()
    assert sorted(again) == sorted(zipfile.ZipFile(wheel).namelist())


def test_an_editable_install_rebuilds_when_a_header_changes(checkout: Path) -> None:
    build = ("setup.py", "-q", "build_ext", "--inplace")
    _python(*build, cwd=checkout)
    objects = sorted((checkout / "build").rglob("*.o"))
    before = [o.stat().st_mtime_ns for o in objects]
    _python(*build, cwd=checkout)
    assert [o.stat().st_mtime_ns for o in objects] == before
    header = checkout / "csrc" / "cpu" / "isa.h"
    header.write_text(HEADER + "// changed\n")
    later = max(before) + 10**9
    os.utime(header, ns=(later, later))
    _python(*build, cwd=checkout)
    assert all(now > then for now, then in zip([o.stat().st_mtime_ns for o in objects], before, strict=True))
