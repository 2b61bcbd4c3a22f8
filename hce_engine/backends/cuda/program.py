"""A plan in device memory: packed weights, maps, and the launches in order. Everything is allocated and checked here, so
that a run does nothing but launch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...kernels import conv2d, depthwise_conv2d, elementwise, ensemble_mean, gemm, head, images, move, pool
from ...kernels.depthwise_layer import depthwise_arrays
from ...kernels.device import DeviceLayer, DeviceMap, empty_map, layer_on
from ...kernels.formats import SLACK
from ...kernels.launch import Launch, Recoded, Residual
from ...kernels.layer import layer_arrays
from ...plan.cuda import Map, Plan, Step, Weights
from ...plan.cuda.plan import short
from .work import Work

POISON = -91  # the byte that unwritten memory holds in tests


class Constants:
    """Packed weights on the device, one per layer and cut: plans for different buckets share them."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._layers: dict[tuple[Any, ...], Any] = {}

    @staticmethod
    def key(weights: Weights) -> tuple[Any, ...]:
        return (weights.layer.name, weights.x.bits, weights.x.padded, weights.form)

    def missing_bytes(self, plan: Plan) -> int:
        new = {self.key(s.weights): s.weights.bytes for s in plan.steps if s.weights is not None}
        return sum(size for key, size in new.items() if key not in self._layers)

    def get(self, weights: Weights) -> Any:
        key = self.key(weights)
        if key not in self._layers:
            self._layers[key] = self._pack(weights)
        return self._layers[key]

    def _pack(self, weights: Weights) -> DeviceLayer | depthwise_conv2d.DepthwiseLayer:
        layer, form = weights.layer, weights.form
        if form is None:
            arrays = depthwise_arrays(layer.weight, layer.bias, layer.multiplier, weights.x, layer.x_qmax)
            return depthwise_conv2d.depthwise_layer_on(arrays, self.device)
        return layer_on(layer_arrays(layer.weight, layer.bias, layer.multiplier, layer.offset, weights.x, layer.x_qmax,
                                     form.bits, form.block_k, form.block_n, layer.dilation_w), self.device)


class Arena:
    """The slots of a plan for up to ``capacity`` images; smaller buckets use the first images of the same memory."""

    def __init__(self, plan: Plan, device: str, poison: bool) -> None:
        self.slots, self.capacity = plan.slots, plan.batch
        fill = POISON if poison else 0
        self._maps = [empty_map(s.form, plan.batch, device, s.pad_codes, fill) for s in plan.slots]

    @staticmethod
    def bytes(plan: Plan) -> int:
        return sum(plan.batch * size + SLACK for slot in plan.slots for size in slot.form.image_bytes)

    def map(self, slot: int, batch: int) -> DeviceMap:
        whole = self._maps[slot]
        return DeviceMap(whole.form, batch, whole.planes)


class Program:
    """Launches of one plan.

    images: static input, uint8 ``(N, H, W, C)`` or float32 ``(N, C, H, W)``; its own, or one that programs share.
    logits: static outputs per member and for ``ensemble``, float32 ``(N, classes)``.  launches: in order.  step_of: the step each of them belongs to.
    parts, mean: this program is its only part, and computes the mean of its members itself.
    """

    limited = False  # Triton kernels have one thread block per tile

    def __init__(
        self, plan: Plan, arena: Arena, constants: Constants, device: str, poison: bool = False,
        images: torch.Tensor | None = None,
    ) -> None:
        assert arena.slots == plan.slots and arena.capacity >= plan.batch
        self.plan, self.arena, self.constants = plan, arena, constants
        c, h, w = plan.image_shape
        n = plan.batch
        if images is None:
            images = (torch.zeros((n, c, h, w), dtype=torch.float32, device=device) if plan.float_images
                      else torch.zeros((n, h, w, c), dtype=torch.uint8, device=device))
        self.images = images
        fill = float("nan") if poison else 0.0
        self.flags = torch.full((n,), fill, dtype=torch.float32, device=device)
        self.workspace = torch.zeros(plan.workspace_bytes // 4, dtype=torch.int32, device=device)
        self._maps: dict[int, DeviceMap] = {}
        self._logits: dict[int, torch.Tensor] = {}
        for step in plan.steps:
            for value in (*step.reads.values(), *step.writes.values()):
                if isinstance(value, Map):
                    self._maps.setdefault(id(value), arena.map(value.slot, n))
                elif id(value) not in self._logits:
                    self._logits[id(value)] = torch.full((n, value.classes), fill, dtype=torch.float32, device=device)
        self.launches: list[Launch] = []
        self.step_of: list[Step] = []
        for step in plan.steps:
            made = BUILDERS[step.launcher](self, step)
            self.launches += made
            self.step_of += [step] * len(made)
        self.logits = {name: self._logits[id(value)] for name, value in plan.outputs.items()}
        self.members = plan.members

    def map(self, value: Any) -> DeviceMap:
        return self._maps[id(value)]

    def output(self, value: Any) -> torch.Tensor:
        return self._logits[id(value)]

    def __call__(self) -> None:
        for launch in self.launches:
            launch()

    @property
    def parts(self) -> tuple[Program]:
        return (self,)

    @property
    def mean(self) -> tuple[Work, ...]:
        return ()

    def work(self, share: float | None = None) -> list[Work]:
        """The launches with their names and costs; there is no ``share`` of them."""
        assert share is None
        return [Work(step.nodes, step.kernel, launch.cost, launch, short(step.config))
                for launch, step in zip(self.launches, self.step_of, strict=True)]

    # -- one builder per launcher -------------------------------------------------------------------------------------

    def _epilogue(self, step: Step) -> dict[str, Any]:
        """y, codes, recoded and residual or logits of a step, as launchers take them."""
        a, keys = step.arguments, {}
        if "logits" in step.writes:
            return {"logits": self.output(step.writes["logits"])}
        keys = {"codes": a["codes"], "y": self.map(step.writes["y"]) if "y" in step.writes else None}
        if a["recoded"] is not None:
            codes, factor = a["recoded"]
            keys["recoded"] = Recoded(self.map(step.writes["recoded"]), codes, factor)
        if a.get("residual") is not None:
            zero_point, multiplier = a["residual"]
            keys["residual"] = Residual(self.map(step.reads["residual"]), zero_point, multiplier)
        return keys

    def _layer(self, step: Step) -> Any:
        assert step.weights is not None
        return self.constants.get(step.weights)

    def _x(self, step: Step) -> DeviceMap:
        return self.map(step.reads["x"])

    def _conv2d(self, step: Step) -> list[Launch]:
        assert step.geometry is not None
        return [conv2d.launch(_name(step), self._x(step), self._layer(step), step.geometry, step.config,
                              **self._epilogue(step))]

    def _depthwise(self, step: Step) -> list[Launch]:
        assert step.geometry is not None
        return [depthwise_conv2d.launch(_name(step), self._x(step), self._layer(step), step.geometry, step.config,
                                        **self._epilogue(step))]

    def _gemm(self, step: Step) -> list[Launch]:
        workspace = self.workspace if step.workspace_bytes else None
        return gemm.launch(_name(step), self._x(step), self._layer(step), step.config, workspace=workspace,
                           **self._epilogue(step))

    def _head(self, step: Step) -> list[Launch]:
        a = step.arguments
        return [head.launch(_name(step), self._x(step), self._layer(step), zero_point_in=a["zero_point_in"],
                            pool_multiplier=a["pool_multiplier"], pooled=a["pooled"],
                            logits=self.output(step.writes["logits"]))]

    def _load_pixels(self, step: Step) -> list[Launch]:
        return [images.load_pixels(_name(step), self.images, self.map(step.writes["y"]))]

    def _quantize_floats(self, step: Step) -> list[Launch]:
        a = step.arguments
        return [images.quantize_floats(_name(step), self.images, self.map(step.writes["y"]), a["low"], a["multiplier"],
                                       self.flags)]

    def _mark(self, step: Step) -> list[Launch]:
        return [images.mark(_name(step), self.output(step.writes["out"]), self.flags)]

    def _add(self, step: Step) -> list[Launch]:
        a, e = step.arguments, self._epilogue(step)
        return [elementwise.add(_name(step), self.map(step.reads["a"]), self.map(step.reads["b"]), e["y"],
                                zero_points=a["zero_points"], multipliers=a["multipliers"], codes=e["codes"],
                                recoded=e.get("recoded"))]

    def _recode(self, step: Step) -> list[Launch]:
        a = step.arguments
        return [elementwise.recode(_name(step), self._x(step), self.map(step.writes["y"]), zero_point_in=a["zero_point_in"],
                                   codes=a["codes"], factor=a["factor"])]

    def _max_pool(self, step: Step) -> list[Launch]:
        assert step.geometry is not None
        return [pool.max_pool(_name(step), self._x(step), self.map(step.writes["y"]), step.geometry)]

    def _average_pool(self, step: Step) -> list[Launch]:
        assert step.geometry is not None
        a = step.arguments
        return [pool.average_pool(_name(step), self._x(step), self.map(step.writes["y"]), step.geometry,
                                  zero_point_in=a["zero_point_in"], multiplier=a["multiplier"], codes=a["codes"])]

    def _gather(self, step: Step) -> list[Launch]:
        return [move.gather(_name(step), self._x(step), self.map(step.writes["y"]), **step.arguments)]

    def _ensemble_mean(self, step: Step) -> list[Launch]:
        logits = [self.output(v) for v in step.reads.values()]
        return [ensemble_mean.launch(_name(step), logits, self.output(step.writes["out"]))]


def _name(step: Step) -> str:
    return "+".join(step.nodes)


BUILDERS: dict[str, Callable[[Program, Step], list[Launch]]] = {
    "conv2d": Program._conv2d, "depthwise_conv2d": Program._depthwise, "gemm": Program._gemm, "head": Program._head,
    "load_pixels": Program._load_pixels, "quantize_floats": Program._quantize_floats, "mark": Program._mark,
    "add": Program._add, "recode": Program._recode, "max_pool": Program._max_pool, "average_pool": Program._average_pool,
    "gather": Program._gather, "ensemble_mean": Program._ensemble_mean,
}  # fmt: skip
