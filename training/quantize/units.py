"""What the integer pipeline is made of before widths are assigned: units, and float nodes in the form of units."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hce_engine.errors import UnsupportedError
from hce_engine.graph import Node, TensorSpec


@dataclass(frozen=True)
class Pixels:
    """How codes of the image become the network's input: real = scale[c] * (code - zero[c])."""

    scale: np.ndarray  # float64 (C,)
    zero: tuple[int, ...]

    @property
    def unit(self) -> float:
        """The scale of the image's codes; what is left, scale / unit, multiplies weights.

        Any number would do for the values. This one keeps the first layer's weights, and with them the step sizes
        that are learned, of the size that the learning rate is meant for.
        """
        return float(np.float32(self.scale.mean()))


@dataclass
class Unit:
    """A step without widths. kind: pixels, conv, add, pool, recode, concat, move, head, or float (on logits).

    node: the float node it stands for.  end: the last float node that was fused into it.  norm: the batch norm behind
    a conv.  pixels: set for a conv that reads the image's codes.  first: a conv of the image.  residual: the second input of a conv is added.
    constant: weights that are not trained.  low, high: the fused clamp.  read_by: (reader, which of its inputs).
    """

    kind: str
    node: Node
    inputs: list[Unit]
    end: str
    norm: Node | None = None
    pixels: Pixels | None = None
    first: bool = False
    residual: bool = False
    constant: bool = False
    low: float | None = None
    high: float | None = None
    read_by: list[tuple[Unit, int]] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        """Vectors inside the network are kept as the maps that they were flattened from."""
        return self.inputs[0].shape if self.kind in ("add", "recode") else self.node.spec.shape


def refuse(node: Node, expected: str, got: str, fix: str) -> UnsupportedError:
    where = f" ({node.source})" if node.source else ""
    return UnsupportedError(f"quantization of {node.op} %{node.name}{where}", expected=expected, got=got, fix=fix)


def depthwise_ones(name: str, like: Node) -> Node:
    """A 1x1 depthwise convolution of ones on ``like``'s output: a per-channel scale and shift has its form."""
    c, h, w = like.spec.shape if len(like.spec.shape) == 3 else (like.spec.shape[0], 1, 1)
    attrs = {
        "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": c, "min": None, "max": None, "folded_norm": 0,
    }
    params = {"weight": np.ones((c, 1, 1, 1), np.float32), "bias": np.zeros(c, np.float32)}
    return Node(name, "conv2d", (like.name,), TensorSpec((c, h, w)), attrs, params, like.source)


def linear_as_conv(node: Node, shape: tuple[int, ...]) -> Node:
    """A linear over a flattened map of ``shape`` (C, H, W) as a convolution whose kernel is the whole map."""
    weight = node.params["weight"].reshape(-1, *shape)
    attrs = {
        "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1, "folded_norm": 0, "min": node.attrs["min"],
        "max": node.attrs["max"],
    }
    params = {"weight": weight, "bias": node.params["bias"]}
    return Node(node.name, "conv2d", node.inputs, TensorSpec((weight.shape[0], 1, 1)), attrs, params, node.source)


def check_clamp(node: Node, low: float | None, high: float | None) -> tuple[float | None, float | None]:
    if (low is not None and low > 0) or (high is not None and high < 0):
        raise refuse(node, "a clamp whose range holds 0", f"[{low}, {high}]", "shift the activation in the model")
    return low, high

