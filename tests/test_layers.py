"""A lower layer never imports a higher one, and no module goes by a second name.

Read from the source text, so that an import inside a function counts as well. Imports under TYPE_CHECKING do not: they
are not made when the program runs.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"hce_engine": ROOT / "hce_engine", "hce_engine.kernels": ROOT / "kernels", "hce_engine.training": ROOT / "training"}

# How kernels store and cut their operands, as plain data: all that a plan may know of them.
KERNEL_DATA = ("formats", "layer", "depthwise_layer", "description", "configurations")

# From low to high; a module belongs to the longest prefix that fits.
LAYERS: list[tuple[str, ...]] = [
    ("errors", "dtypes", "atomic", "threads", "machine"),
    ("numerics", "arithmetic", "bitpack", "_native", "_cuda_native", "peaks"),
    tuple(f"kernels.{name}" for name in KERNEL_DATA),
    ("kernels",),
    ("graph", "preprocess"),
    ("capture", "artifact", "ledger", "images"),
    ("backends.reference",),
    ("plan",),
    ("backends",),
    ("engine",),
    ("training", "builder"),
    ("bench",),
    ("audit",),
    ("training.quickstart", "cli", "__main__"),
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# The engine is what a run is measured with at the end; nothing else of training may know it.
TRAINING_MAY_RUN_ENGINE = {"hce_engine.training.evaluate"}
NO_TORCH = ("errors", "dtypes", "atomic", "threads", "machine", "numerics", "arithmetic", "bitpack", "_native", "peaks", "graph", "preprocess", "artifact",
            "ledger", "images", "backends.reference", "plan", *(f"kernels.{name}" for name in KERNEL_DATA))


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            inner = path.relative_to(folder)
            if any(parent.is_symlink() for parent in path.parents if parent.is_relative_to(ROOT)):
                continue
            parts = [package, *inner.with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str) -> set[str]:
    """Absolute names of everything that the module imports when it runs."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for statement in node.body
        for child in ast.walk(statement)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = parts[: len(parts) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            names.update(f"{source}.{alias.name}" for alias in node.names)
    return names


def layer(name: str) -> str | None:
    """The entry of LAYERS that a name of this project belongs to."""
    if not name.startswith("hce_engine."):
        return None
    inner = name.removeprefix("hce_engine.")
    fits = [entry for entry in RANK if inner == entry or inner.startswith(entry + ".")]
    return max(fits, key=len, default=None)


def test_every_module_has_a_layer() -> None:
    homeless = [name for name in MODULES if name != "hce_engine" and layer(name) is None]
    assert not homeless, f"add them to LAYERS: {homeless}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_down(name: str) -> None:
    own = layer(name)
    for target in imports(name):
        top = target.split(".")[0]
        assert top not in ("kernels", "training", "tests", "benchmarks", "pickle"), f"{name} imports {target}"
        other = layer(target)
        if own is None or other is None:
            continue
        assert RANK[other] <= RANK[own], f"{name} ({own}) imports {target} ({other}), which is higher"
        if own == "training":
            assert other != "builder", f"{name} imports {target}"
            assert other != "engine" or name in TRAINING_MAY_RUN_ENGINE, f"{name} imports {target}"


@pytest.mark.parametrize("name", sorted(name for name in MODULES if layer(name) == "plan"))
def test_plans_know_kernels_by_their_data_alone(name: str) -> None:
    known = {target for target in imports(name) if target.startswith("hce_engine.kernels.")}
    allowed = tuple(f"hce_engine.kernels.{part}." for part in KERNEL_DATA)
    assert all(target.startswith(allowed) for target in known), f"{name} imports {known}"


@pytest.mark.parametrize("name", sorted(name for name in MODULES if layer(name) in NO_TORCH))
def test_the_data_model_needs_no_torch(name: str) -> None:
    torches = {target for target in imports(name) if target.split(".")[0] in ("torch", "triton")}
    assert not torches, f"{name} imports {torches}"
