"""A plan of float members in device memory: packed weights, maps in image lanes, and launches of the extension in order.

Everything is allocated here, so that a run does nothing but launch, eagerly or while a CUDA graph is captured. The extension
takes addresses; the tensors behind them live as long as the program. With tensors of the CPU and the extension built for the
host the same code runs without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import torch

from ...arithmetic import IEEE, SPLIT_ARITHMETICS
from ...plan.cuda.lanes_plan import (
    MAP_ALIGNMENT,
    TILE,
    ConvConfig,
    LaneMap,
    LaneSlot,
    LanesPlan,
    LaneStep,
    LaneWeights,
    WinogradConfig,
)
from ...plan.cuda.split_weights import pack_split
from ...plan.cuda.winograd_weights import pack_winograd
from .work import Work

Ref = tuple[int, int, int, int]  # address of pixel (0, 0); strides of a tile, a row and a pixel in floats
Start = Callable[[int], None]  # starts one launch on a stream, given its handle


def device_index(device: str) -> int:
    return torch.device(device).index or 0


def current_stream(device: str) -> int:
    """Handle of the caller's stream; 0 on the CPU, where launches return when their work is done."""
    return torch.cuda.current_stream(device).cuda_stream if torch.device(device).type == "cuda" else 0


class LanesConstants:
    """Packed weights on the device, one per layer, arithmetic, algorithm and cut: plans for different batches share them."""

    def __init__(self, extension: ModuleType, device: str) -> None:
        self.extension, self.device = extension, device
        self._layers: dict[tuple[str, str, tuple[int, ...]], tuple[torch.Tensor, torch.Tensor]] = {}

    @staticmethod
    def key(step: LaneStep) -> tuple[str, str, tuple[int, ...]]:
        assert step.weights is not None
        return (step.weights.name, step.arithmetic, step.config.packing if step.config is not None else ())

    def missing_bytes(self, plan: LanesPlan) -> int:
        new = {self.key(s): s.weights.packed_bytes for s in plan.steps if s.weights is not None}
        return sum(size for key, size in new.items() if key not in self._layers)

    def get(self, step: LaneStep) -> tuple[torch.Tensor, torch.Tensor]:
        """(weights, bias) of a step."""
        key = self.key(step)
        if key not in self._layers:
            assert step.weights is not None
            self._layers[key] = self._pack(step.weights, step)
        return self._layers[key]

    def _pack(self, weights: LaneWeights, step: LaneStep) -> tuple[torch.Tensor, torch.Tensor]:
        packed = weights.weight
        if step.arithmetic != IEEE:
            packed = pack_split(packed, step.arithmetic).view("float32")  # words, which nothing takes for numbers
        elif isinstance(step.config, WinogradConfig):
            packed = pack_winograd(packed, step.config.output, step.config.channels)
        elif isinstance(step.config, ConvConfig):
            packed = self.extension.pack_conv_weights(packed, groups=weights.groups, channels=step.config.channels)
        return aligned_copy(packed, self.device), aligned_copy(weights.bias, self.device)


def aligned(floats: int, device: str, fill: float) -> torch.Tensor:
    """float32 memory that begins at a pair of lines. CUDA's allocator sees to it; memory of the CPU may begin anywhere."""
    whole = torch.full((floats + MAP_ALIGNMENT // 4,), fill, dtype=torch.float32, device=device)
    return whole[-whole.data_ptr() % MAP_ALIGNMENT // 4 :][:floats]


def aligned_copy(values: Any, device: str) -> torch.Tensor:
    memory = aligned(values.size, device, 0.0)
    memory.copy_(torch.tensor(values, dtype=torch.float32).reshape(-1))
    return memory


class LanesArena:
    """The slots of a plan for up to ``capacity`` tiles; smaller batches use the first tiles of the same memory.

    poison: pixels start out as NaN, so that a result which depends on unwritten memory shows. Halos are zero.
    """

    def __init__(self, plan: LanesPlan, device: str, poison: bool) -> None:
        self.slots, self.capacity = plan.slots, plan.tiles
        self.memory = [aligned(plan.tiles * s.tile_bytes // 4, device, 0.0) for s in plan.slots]
        if poison:
            for slot, memory in zip(self.slots, self.memory, strict=True):
                self.inner(slot, memory).fill_(float("nan"))

    @staticmethod
    def inner(slot: LaneSlot, memory: torch.Tensor) -> torch.Tensor:
        """The pixels of a slot, ``[tile, row, column, line, lane]``, without the halo."""
        (depth, h, w), (top, left, bottom, right) = slot.form, slot.halo
        whole = memory.view(-1, h + top + bottom, w + left + right, depth, TILE)
        return whole[:, top : top + h, left : left + w]

    @staticmethod
    def bytes(plan: LanesPlan) -> int:
        return plan.tiles * plan.arena_bytes_per_tile + MAP_ALIGNMENT * len(plan.slots)


class LanesProgram:
    """Launches of one plan.

    images: static input of ``plan.batch`` images, uint8 ``(N, H, W, C)`` or float32 ``(N, C, H, W)``; other programs may read
    it too.  logits: member -> static output, float32 ``(N, classes)``.
    """

    limited = True  # kernels loop over their work, so any grid computes all of it

    def __init__(
        self, plan: LanesPlan, arena: LanesArena, constants: LanesConstants, images: torch.Tensor, poison: bool = False
    ) -> None:
        assert arena.slots == plan.slots and arena.capacity >= plan.tiles and len(images) == plan.batch
        self.plan, self.arena, self.constants, self.images = plan, arena, constants, images
        self.extension, self.device = constants.extension, constants.device
        self.index = device_index(self.device)
        fill = float("nan") if poison else 0.0
        self.flags = torch.full((plan.batch,), fill, dtype=torch.float32, device=self.device) if plan.float_images else None
        self.logits = {name: torch.full((plan.batch, plan.classes), fill, dtype=torch.float32, device=self.device)
                       for name in plan.members}
        self._kept: list[torch.Tensor] = []  # small constants that launches point at
        self.members = plan.members
        self.launches = [self._start(step) for step in plan.steps]

    def __call__(self) -> None:
        stream = current_stream(self.device)
        for launch in self.launches:
            launch(stream)

    def work(self, share: float | None = None) -> list[Work]:
        """The launches with their names and costs. share: of the thread blocks that fill the GPU, the same bytes; None fills
        it."""
        launches = self.launches
        if share is not None:
            parts = self.extension.GRID_SHARES
            blocks = -min(max(round(share * parts), 1), parts)
            launches = [with_blocks(launch, step.config, blocks) for launch, step in zip(launches, self.plan.steps, strict=True)]
        return [Work(step.nodes, step.kernel, step.cost, partial(_on_current_stream, launch, self.device),
                     "" if step.config is None else str(step.config))
                for launch, step in zip(launches, self.plan.steps, strict=True)]

    # -- arguments ----------------------------------------------------------------------------------------------------

    def ref(self, value: LaneMap, rows: int = 0, columns: int = 0) -> Ref:
        """Pixel (-rows, -columns) of a map, which lies in its halo."""
        tile, row, pixel = value.strides
        first = value.first - rows * row - columns * pixel
        assert first >= 0
        return (self.arena.memory[value.slot].data_ptr() + 4 * first, tile, row, pixel)

    def vector(self, value: LaneMap) -> int:
        assert not any(value.halo)
        return self.ref(value)[0]

    def keep(self, values: Any) -> int:
        self._kept.append(aligned_copy(values, self.device))
        return self._kept[-1].data_ptr()

    def _start(self, step: LaneStep) -> Start:
        kernel = getattr(self.extension, step.kernel)
        return partial(_call, kernel, self.index, self.builder(step.kernel)(step))

    def builder(self, kernel: str) -> Callable[[LaneStep], dict[str, Any]]:
        """What makes the arguments of a kernel."""
        return partial(BUILDERS[kernel], self)

    # -- one builder per kernel ---------------------------------------------------------------------------------------

    def _layer(self, step: LaneStep) -> dict[str, Any]:
        weight, bias = self.constants.get(step)
        return {"weight": weight.data_ptr(), "bias": bias.data_ptr(), "limits": step.arguments["limits"]}

    def _window(self, step: LaneStep) -> dict[str, Any]:
        """What all convolutions take: x at tap (0, 0), y, residual and the shape; the window where it is not always 3 x 3."""
        a, x, y = step.arguments, step.reads["x"], step.writes["y"]
        residual = self.ref(step.reads["residual"]) if "residual" in step.reads else None
        shape = (self.plan.tiles, y.height, y.width, *a.get("window", ()), *a["channels"])
        return {"x": self.ref(x, *a["padding"]), "y": self.ref(y), "residual": residual, "shape": shape, **self._layer(step)}

    def _conv2d(self, step: LaneStep) -> dict[str, Any]:
        assert step.config is not None
        return {**self._window(step), "config": step.config.values()}

    def _split(self, step: LaneStep) -> dict[str, Any]:
        assert step.config is not None
        a, x, some = step.arguments, step.reads["x"], next(iter(step.writes.values()))
        maps = {**step.reads, **step.writes}
        optional = {key: self.ref(maps[key]) if key in maps else None for key in ("y", "split", "residual")}
        shape = (self.plan.tiles, some.height, some.width, *a["window"], *a["channels"])
        return {"x": self.ref(x, *a["padding"]), "x_split": x.split, **optional, "shape": shape, "factor": a["factor"],
                "config": step.config.values(), **self._layer(step)}

    def _linear(self, step: LaneStep) -> dict[str, Any]:
        assert step.config is not None
        x, y = step.reads["x"], step.writes["y"]
        return {"x": self.vector(x), "y": self.vector(y), "shape": (self.plan.tiles, x.channels, y.channels),
                "config": step.config.values(), **self._layer(step)}

    def _load(self, step: LaneStep) -> dict[str, Any]:
        a, y = step.arguments, step.writes["y"]
        flags = self.flags.data_ptr() if a["flags"] and self.flags is not None else 0
        return {"images": self.images.data_ptr(), "from_float": a["from_float"],
                "shape": (self.plan.batch, y.height, y.width, y.channels), "scale": self.keep(a["scale"]),
                "offset": self.keep(a["offset"]), "y": self.ref(y), "flags": flags}

    def _store(self, step: LaneStep) -> dict[str, Any]:
        flags = self.flags.data_ptr() if self.flags is not None else 0
        return {"x": self.vector(step.reads["x"]), "out": self.logits[step.member].data_ptr(), "count": self.plan.batch,
                "classes": self.plan.classes, "flags": flags}

    def _add(self, step: LaneStep) -> dict[str, Any]:
        a, y = step.arguments, step.writes["y"]
        b = self.ref(step.reads["b"]) if "b" in step.reads else None
        return {"a": self.ref(step.reads["a"]), "b": b, "y": self.ref(y), "shape": (self.plan.tiles, y.height, y.width, y.depth),
                "scale": a["scale"], "limits": a["limits"]}

    def _pool(self, step: LaneStep) -> dict[str, Any]:
        a, x, y = step.arguments, step.reads["x"], step.writes["y"]
        return {"kind": a["kind"], "x": self.ref(x), "y": self.ref(y), "window": a["window"],
                "shape": (self.plan.tiles, x.height, x.width, y.height, y.width, y.depth),
                "count_include_pad": a["count_include_pad"]}

    def _copy(self, step: LaneStep) -> dict[str, Any]:
        a, y = step.arguments, step.writes["y"]
        return {"x": self.ref(step.reads["x"]), "y": self.ref(y), "shape": (self.plan.tiles, y.height, y.width, a["channels"]),
                "to": a["to"], "pixels": a["pixels"]}

    def _flatten(self, step: LaneStep) -> dict[str, Any]:
        x = step.reads["x"]
        return {"x": self.ref(x), "y": self.vector(step.writes["y"]), "shape": (self.plan.tiles, x.height, x.width, x.channels)}


def _call(kernel: Callable[..., None], index: int, arguments: Mapping[str, Any], stream: int) -> None:
    kernel(index, stream, **arguments)


def _on_current_stream(launch: Start, device: str) -> None:
    launch(current_stream(device))


def with_blocks(launch: Start, config: Any, blocks: int) -> Start:
    """The same launch with other ``blocks`` (csrc/cuda/launch.h): of its configuration, or an argument of kernels without one. A
    launch whose configuration has none stays as it is: its grid is its work."""
    assert isinstance(launch, partial)
    kernel, index, arguments = launch.args
    if config is None:
        return partial(_call, kernel, index, {**arguments, "blocks": blocks})
    if not hasattr(config, "blocks"):
        return launch
    return partial(_call, kernel, index, {**arguments, "config": replace(config, blocks=blocks).values()})


BUILDERS: dict[str, Callable[[LanesProgram, LaneStep], dict[str, Any]]] = {
    "conv2d_f32": LanesProgram._conv2d, "winograd_f32": LanesProgram._conv2d, "depthwise_f32": LanesProgram._window,
    "linear_f32": LanesProgram._linear, "load_images": LanesProgram._load, "store_logits": LanesProgram._store,
    "add_f32": LanesProgram._add, "pool_f32": LanesProgram._pool, "copy_f32": LanesProgram._copy,
    "flatten_f32": LanesProgram._flatten,
    **{f"conv2d_{arithmetic}": LanesProgram._split for arithmetic in SPLIT_ARITHMETICS},
}  # fmt: skip
