"""A plan of float members on NHWC maps in device memory: what differs from image lanes (lanes_program.py)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ...plan.cuda.lanes_plan import LaneStep, LaneWeights, NhwcConfig
from ...plan.cuda.nhwc_weights import pack_nhwc
from .lanes_program import LanesConstants, LanesProgram, aligned_copy


class NhwcConstants(LanesConstants):
    """Packed weights on the device, one per layer and number of columns."""

    def _pack(self, weights: LaneWeights, step: LaneStep) -> tuple[torch.Tensor, torch.Tensor]:
        packed = weights.weight
        if isinstance(step.config, NhwcConfig):
            packed = pack_nhwc(packed, weights.groups, step.config.columns)
        return aligned_copy(packed, self.device), aligned_copy(weights.bias, self.device)


class NhwcProgram(LanesProgram):
    """Launches of one plan; images and logits as in image lanes."""

    limited = False  # convolutions have one thread block per tile

    def builder(self, kernel: str) -> Callable[[LaneStep], dict[str, Any]]:
        return partial(BUILDERS[kernel], self) if kernel in BUILDERS else super().builder(kernel)

    def _residual(self, step: LaneStep) -> tuple[int, int, int, int] | None:
        return self.ref(step.reads["residual"]) if "residual" in step.reads else None

    def _conv2d(self, step: LaneStep) -> dict[str, Any]:
        assert isinstance(step.config, NhwcConfig)
        return {**self._window(step), "config": step.config.values()}

    def _depthwise(self, step: LaneStep) -> dict[str, Any]:
        y = step.writes["y"]
        shape = (self.plan.batch, y.height, y.width, *step.arguments["window"], y.depth)
        return {"x": self.ref(step.reads["x"], *step.arguments["padding"]), "y": self.ref(y), "residual": self._residual(step),
                "shape": shape, **self._layer(step)}

    def _sum(self, step: LaneStep) -> dict[str, Any]:
        y = step.writes["y"]
        shape = (self.plan.batch, y.height, y.width, y.depth, step.arguments["segments"])
        return {"x": self.ref(step.reads["x"]), "y": self.ref(y), "residual": self._residual(step), "shape": shape,
                "limits": step.arguments["limits"]}

    def _store(self, step: LaneStep) -> dict[str, Any]:
        flags = self.flags.data_ptr() if self.flags is not None else 0
        return {"x": self.ref(step.reads["x"]), "out": self.logits[step.member].data_ptr(), "count": self.plan.batch,
                "classes": self.plan.classes, "flags": flags}

    def _flatten(self, step: LaneStep) -> dict[str, Any]:
        x = step.reads["x"]
        return {"x": self.ref(x), "y": self.ref(step.writes["y"]), "shape": (self.plan.batch, x.height, x.width, x.channels)}


BUILDERS: dict[str, Callable[[NhwcProgram, LaneStep], dict[str, Any]]] = {
    "conv2d_nhwc_f32": NhwcProgram._conv2d, "sum_segments_f32": NhwcProgram._sum, "depthwise_nhwc_f32": NhwcProgram._depthwise,
    "load_images_nhwc": LanesProgram._load, "store_logits_nhwc": NhwcProgram._store, "copy_channels_f32": LanesProgram._copy,
    "flatten_nhwc_f32": NhwcProgram._flatten,
}  # fmt: skip
