"""Every C++ kernel once, on small odd shapes, for compute-sanitizer: ``python -m benchmarks.gpu.small_shapes`` prints one line of JSON.

Graphs run through the back end in every variant, without CUDA graphs, and their logits are compared with the numpy reference; the
direct layers also in the register tiles and Winograd configurations that are measured. ``missing`` names the launchers
of the extension that nothing here started: with a new kernel, a shape that reaches it belongs here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial, wraps
from types import ModuleType
from typing import Any

import numpy as np
import torch

from hce_engine import _cuda_native
from hce_engine.backends import reference
from hce_engine.graph import Graph, merge

from . import variants
from .float_graphs import zoo
from .float_operands import Operands, Planned, winograd_bound
from .float_shapes import FloatLayer

BATCH = 64  # two tiles
IMAGES = 37  # the second one with empty lanes
RELATIVE = 1e-4  # of the largest logit; the sums are short
LAYERS = (
    FloatLayer("odd", 3, 9, 7), FloatLayer("odd", 5, 7, 9, 3, 2), FloatLayer("odd", 9, 17, 5, 1, residual=True),
    FloatLayer("odd", 7, 16, 6, residual=True), FloatLayer("odd", 6, 6, 7, 3, 1, 6), FloatLayer("odd", 6, 9, 5, 3, 1, 3),
    FloatLayer("odd", 33, 11, 1, 1), FloatLayer("odd", 65, 10, 3), FloatLayer("odd", 16, 32, 8), FloatLayer("odd", 64, 64, 8, residual=True),
)


class Noting:
    """An extension whose launchers are noted as they start."""

    def __init__(self, extension: ModuleType) -> None:
        self._extension, self.started = extension, set()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._extension, name)
        if name not in launchers(self._extension):
            return found

        @wraps(found)
        def noting(*arguments: Any, **keys: Any) -> Any:
            self.started.add(name)
            return found(*arguments, **keys)

        return noting


def launchers(extension: ModuleType) -> set[str]:
    """Functions that take a device and a stream, but those that ask about them."""
    return {name for name in dir(extension) if name != "synchronize"
            and f"{name}(device: " in (text := getattr(extension, name).__doc__ or "") and "stream: " in text}


def graph_error(graph: Graph, variant: str, device: str, extension: Any, images: np.ndarray) -> float:
    """The largest error of a member in parts of its largest logit."""
    made = variants.backend(graph, BATCH, variant, device=device, extension=extension)
    got = made.run(images)
    want = reference.run(graph, images.transpose(0, 3, 1, 2))
    return max(float(np.abs(got[name] - want[name]).max() / np.abs(want[name]).max()) for name in want)


def checks_of(layer: FloatLayer, device: str, extension: Any) -> Iterator[tuple[str, Callable[[], object]]]:
    """What to run, by name: each raises ArithmeticError if it is wrong."""
    operands = Operands.of(layer, BATCH, "cpu")  # whose references no tool has to watch
    direct = Planned(operands, variants.DIRECT, device, extension)
    yield f"{layer.name}, {variants.DIRECT}", direct.checked
    for variant in (v for v in variants.VARIANTS if v != variants.DIRECT):
        yield f"{layer.name}, {variant}", partial(planned, operands, variant, device, extension)
    for name, start in direct.tiles():
        yield f"{layer.name}, tile {name}", partial(direct.checked, start)
    for m in direct.winograd_sizes():
        bound = winograd_bound(operands, m)
        for name, start in direct.winograd(m):
            yield f"{layer.name}, F({m}x{m}) {name}", partial(direct.checked, start, bound)


def planned(operands: Operands, variant: str, device: str, extension: Any) -> None:
    Planned(operands, variant, device, extension).checked()


def checks(device: str, extension: Any) -> Iterator[tuple[str, Callable[[], object]]]:
    for layer in LAYERS:
        yield from checks_of(layer, device, extension)
    pair = merge({"a": zoo(0), "b": zoo(1)})
    images = np.random.default_rng(5).integers(0, 256, (IMAGES, *pair.input.spec.shape[1:], 3), dtype=np.uint8)
    for variant in variants.VARIANTS:
        yield f"every other operation, {variant}", partial(within, pair, variant, device, extension, images)


def within(graph: Graph, variant: str, device: str, extension: Any, images: np.ndarray) -> None:
    error = graph_error(graph, variant, device, extension, images)
    if not error <= RELATIVE:
        raise ArithmeticError(f"expected an error of at most {RELATIVE}, got {error:.3g}")


def run_all(device: str, extension: Any) -> dict[str, Any]:
    """checks: how many ran.  refused: configurations that a kernel does not take.  wrong: what is, and why.  started, missing: launchers."""
    noting = Noting(extension)
    count, refused, wrong = 0, 0, []
    for name, check in checks(device, noting):
        count += 1
        try:
            check()
        except ValueError:
            refused += 1
        except ArithmeticError as error:
            wrong.append(f"{name}: {error}")
    return {"checks": count, "refused": refused, "started": sorted(noting.started),
            "missing": sorted(launchers(extension) - noting.started), "wrong": wrong}


def main() -> int:
    variants.eager()
    found = run_all("cuda", _cuda_native.extension())
    torch.cuda.synchronize()
    print(json.dumps(found))
    return int(bool(found["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
