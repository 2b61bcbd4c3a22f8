"""Which configuration each step of a plan for the GPU gets, and what the step costs. The only place that decides it.

A measured configuration for the GPU, the kernel's sources and the shape comes first (tuned.py); the defaults of
kernels/configurations.py depend on the shape alone. So a plan never depends on timing inside the process.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...kernels.configurations import (
    ConvConfig,
    DepthwiseConfig,
    GemmConfig,
    HeadConfig,
    conv_candidates,
    default_conv_config,
    default_depthwise_config,
    default_gemm_config,
    default_head_config,
    depthwise_candidates,
    gemm_candidates,
)
from ...kernels.formats import MapFormat, weight_format
from .plan import Cost, Layer, Map, Step, Weights
from .storage import weight_storages
from .tuned import Tuned

if TYPE_CHECKING:
    from .lowering import Draft


def shape_key(step: Step, layer: Layer, x: MapFormat, weight_dtype: str, batch: int) -> str:
    """What a measurement depends on, for people and for tables."""
    oc, _, kh, kw = layer.weight.shape
    outputs = [f"{key}{v.bits}" if isinstance(v, Map) else "logits" for key, v in step.writes.items()]
    parts = [f"x{x.bits}[{x.channels}x{x.height}x{x.width}]", f"{weight_dtype}[{oc}x{kh}x{kw}]"]
    if step.geometry is not None:
        g = step.geometry
        parts += [f"stride{g.stride[0]},{g.stride[1]}", f"dilation{g.dilation[0]},{g.dilation[1]}", f"out{g.out[0]}x{g.out[1]}"]
    parts += ["+".join(sorted(outputs)), *(["residual"] if "residual" in step.reads else []), f"images{batch}"]
    return " ".join(parts)


_KINDS: dict[str, type] = {
    "conv2d": ConvConfig, "gemm": GemmConfig, "depthwise_conv2d": DepthwiseConfig, "head": HeadConfig,
}


def _pixels(step: Step, batch: int) -> int:
    return batch * step.geometry.out[0] * step.geometry.out[1] if step.geometry is not None else batch


def _default(step: Step, layer: Layer, x: MapFormat, batch: int) -> Any:
    shape, pixels = layer.weight.shape, _pixels(step, batch)
    if step.launcher == "conv2d":
        return default_conv_config(shape, x, pixels, layer.storages, layer.dilation_w)
    if step.launcher == "gemm":
        return default_gemm_config(shape, x, batch, layer.storages)
    if step.launcher == "depthwise_conv2d":
        return default_depthwise_config(shape[2:], x, pixels)
    return default_head_config(shape[0], shape[1])


def candidates(step: Step, batch: int) -> list[Any]:
    """The configurations that a tuner measures for a step of a plan for ``batch`` images, the default first."""
    if step.weights is None:
        return []
    layer, x, pixels = step.weights.layer, step.weights.x, _pixels(step, batch)
    if step.launcher == "conv2d":
        return list(conv_candidates(layer.weight.shape, x, pixels, layer.storages, layer.dilation_w))
    if step.launcher == "gemm":
        return list(gemm_candidates(layer.weight.shape, x, batch, layer.storages))
    if step.launcher == "depthwise_conv2d":
        return list(depthwise_candidates(layer.weight.shape[2:], x, pixels))
    return [step.config]


def with_config(step: Step, config: Any, source: str, batch: int) -> Step:
    """``step``, a layer, cut and counted for another configuration."""
    assert step.weights is not None
    layer, x = step.weights.layer, step.weights.x
    cost = replace(step.cost, read=step.cost.read - step.weights.bytes)
    if isinstance(config, DepthwiseConfig):
        form, size, walked = None, layer.weight[0].size * x.padded, 0
    else:
        bits = 8 if isinstance(config, HeadConfig) else config.weight_bits
        form = weight_format(layer.weight.shape, x, bits, config.block_k, config.block_n, layer.dilation_w)
        rows = 1 if isinstance(config, HeadConfig) else config.block_m
        size, walked = form.bytes, -(-_pixels(step, batch) // rows) * rows * form.blocks * form.block_n * form.inner
    split = isinstance(config, GemmConfig) and config.split_k > 1
    sums = batch * form.blocks * form.block_n if split and form is not None else 0
    return replace(
        step, config=config, source=source, weights=Weights(layer, x, form, size), launches=2 if split else 1,
        workspace_bytes=4 * sums, cost=replace(cost, read=cost.read + size, walked=walked),
    )


def _usable(config: Any, layer: Layer) -> bool:
    """Whether a layer may have a configuration that was measured for its shape: its weights may lie so, and it is not the
    loop of more than 4 warps that Triton is known to miscompile."""
    miscompiled = isinstance(config, ConvConfig) and not config.unroll and config.num_warps > 4
    return getattr(config, "weight_bits", 8) in layer.storages and not miscompiled


def _kernel(draft: Draft) -> str:
    """``conv2d_u4xs4_u8+u4``: launcher, operands, outputs."""
    if draft.layer is None:
        return draft.launcher
    results = "+".join(v.dtype if isinstance(v, Map) else "f32" for v in draft.writes.values())
    return f"{draft.launcher}_{draft.kind}_{results}"


def _moved(draft: Draft, batch: int, image_bytes: int) -> tuple[int, int]:
    """(read, written) bytes of a step, weights left out."""
    read = batch * sum(value.bytes for value in draft.reads.values())
    written = batch * sum(value.bytes for value in draft.writes.values())
    if draft.launcher in ("load_pixels", "quantize_floats"):
        read = batch * image_bytes
    if draft.launcher in ("quantize_floats", "mark"):  # the flags
        read, written = (read, written + 4 * batch) if draft.launcher == "quantize_floats" else (4 * batch, 0)
    if draft.launcher == "gather":  # only the pixels that are taken
        x, y = draft.reads["x"], draft.writes["y"]
        assert isinstance(x, Map) and isinstance(y, Map)
        pixels = batch * y.height * y.width
        read = pixels * sum(x.form.pixel_bytes)
        written = written if draft.arguments["whole"] else pixels * x.channels
    return read, written


def step(draft: Draft, batch: int, image_bytes: int, tuned: Tuned) -> Step:
    """The step of a draft for ``batch`` images of ``image_bytes``."""
    read, written = _moved(draft, batch, image_bytes)
    made = Step(tuple(n.name for n in draft.nodes), _kernel(draft), draft.launcher, draft.reason, draft.reads, draft.writes,
                draft.arguments, draft.geometry, cost=Cost(read, written))
    if draft.layer is None:
        return made
    source = draft.reads["x"]
    assert isinstance(source, Map)
    # The head multiplies its pooled codes, which are u8.
    x = MapFormat(source.channels, 1, 1, 8) if draft.launcher == "head" else source.form
    layer = replace(draft.layer, storages=weight_storages(draft.layer, draft.weight_dtype, x))
    made = replace(
        made, shape=shape_key(made, layer, x, draft.weight_dtype, batch), weights=Weights(layer, x, None, 0),
        cost=Cost(read, written, _pixels(made, batch) * layer.macs),
    )
    kind: type[Any] = _KINDS[made.launcher]
    found = tuned.find(made.launcher, made.shape, kind)
    if found is not None and _usable(found[0], layer):
        return with_config(made, *found, batch)
    made = with_config(made, _default(made, layer, x, batch), "default", batch)
    form = made.weights.form if made.weights is not None else None
    if form is not None and form.bits < 8:
        made = replace(made, reason=f"{made.reason}; weights packed in {form.bits} bits, since few pixels share them")
    return made
