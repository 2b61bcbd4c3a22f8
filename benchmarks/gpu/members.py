"""Whole networks: the quantized member on our kernels beside the float network in torch, images per second.

``device``: images are on the GPU, ours as uint8 pixels, the rivals' already normalised in their own type and memory format;
one CUDA graph on either side. ``host``: uint8 pixels in pinned memory to logits in host memory, one batch after the other,
nothing overlapped; on the rivals' side normalisation is part of it. Networks have random weights and the batch norm
statistics of random images; the quantized member is calibrated on some, which changes no time. Its logits are held against
the exact reference (hce_engine/backends/reference.py) to the bit, the rivals' against float64.
"""

from __future__ import annotations

import copy
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hce_engine.backends import reference
from hce_engine.backends.cuda.gpu import GpuRuntime
from hce_engine.backends.cuda.program import Arena, Constants, Program
from hce_engine.capture import capture
from hce_engine.graph import Graph
from hce_engine.kernels import configurations
from hce_engine.plan.cuda import build_plan, tuned
from hce_engine.preprocess import InputSpec, to_nchw
from hce_engine.training.freeze import freeze
from hce_engine.training.models import resolve
from hce_engine.training.quantize import QuantModule, calibrate

from . import measure, stage, tune
from .networks import KINDS, Folded, Kind, precision, with_statistics
from .shapes import MEMBER_BATCHES

NAME = "members"
SECONDS = 2.0
BITS = {"resnet20": (4, 3), "resnet56": (4,), "resnet50": (4,)}
CALIBRATION = {"resnet20": 64, "resnet56": 64, "resnet50": 8}
CHECKED = {"resnet20": 4, "resnet56": 4, "resnet50": 1}  # images that the slow, exact reference computes
COMPILE_SECONDS = 90.0
# Variants of torch.compile. Every one is captured as a CUDA graph here, which is what its mode reduce-overhead would do.
COMPILED = {"compile": "max-autotune-no-cudagraphs", "compile-default": "default"}
CONFIGS = {"conv2d": configurations.ConvConfig, "gemm": configurations.GemmConfig}


@dataclass(frozen=True)
class Network:
    folded: Folded
    quantized: dict[int, Graph]
    input: InputSpec


@lru_cache(maxsize=1)
def network(name: str) -> Network:
    torch.manual_seed(0)
    module, arch = resolve(name)
    count, shape = CALIBRATION[name], arch.input.shape
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8)
    with_statistics(module, normalised(images.permute(0, 2, 3, 1), arch.input, torch.float32))
    graph = capture(module, arch.input, member="q")
    quantized = {}
    for bits in BITS[name]:
        twin = QuantModule(graph, bits, bits)
        calibrate(twin, images.float(), method="min-max")
        quantized[bits] = freeze(twin)
    return Network(Folded(module), quantized, arch.input)


def normalised(pixels: Tensor, spec: InputSpec, dtype: torch.dtype) -> Tensor:
    """uint8 (N, H, W, C) -> (N, C, H, W) as the float network takes it, channels_last."""
    mean = torch.tensor(spec.mean, device=pixels.device) * 255
    scale = 1 / (255 * torch.tensor(spec.std, device=pixels.device))
    images = ((pixels.float() - mean) * scale).to(dtype)
    return images.permute(0, 3, 1, 2)


def remember_tuned(out: Path) -> None:
    """Lets plans of this process find what was tuned: in a cache of its own, the user's is left alone."""
    table = tune.table(out)
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="hce-gpu-")
    for kernel, entry in table["kernels"].items():
        tuned.remember(table["gpu"], kernel, {shape: CONFIGS[kernel](**fields) for shape, fields in entry["configs"].items()})


class Ours:
    """A quantized member as one CUDA graph over device-resident pixels, and its way from the host and back."""

    def __init__(self, graph: Graph, batch: int) -> None:
        runtime = GpuRuntime()
        self.plan = build_plan(graph, batch, runtime.gpu)
        arena = Arena(self.plan, runtime.device, poison=True)
        self.program = Program(self.plan, arena, Constants(runtime.device), runtime.device, poison=True)
        self.images = torch.randint(0, 256, self.program.images.shape, dtype=torch.uint8)
        self.program.images.copy_(self.images)
        self.recording = measure.Recording([self.program], warm=1)
        self.logits = self.program.logits[graph.members[0].name]
        self.pinned_in, self.pinned_out = self.images.pin_memory(), torch.empty(self.logits.shape).pin_memory()

    def differing(self, graph: Graph, spec: InputSpec, count: int) -> int:
        """Logits of the first images that are not those of the reference, from poisoned memory."""
        expected = reference.run(graph, to_nchw(self.images[:count].numpy(), spec))[graph.members[0].name]
        got = self.logits[:count].cpu().numpy()
        return int((got.view(np.uint32) != expected.astype(np.float32).view(np.uint32)).sum())

    def from_host(self) -> None:
        self.program.images.copy_(self.pinned_in, non_blocking=True)
        self.recording.graph.replay()
        self.pinned_out.copy_(self.logits, non_blocking=True)

    def details(self) -> dict[str, Any]:
        tuned_steps = sum(step.source not in ("", "default") for step in self.plan.steps)
        cost = self.plan.cost
        return {
            "launches": self.plan.launches, "kb_per_image": measure.digits(cost.bytes / self.plan.batch / 1000, 4),
            "walked_per_mac": measure.digits(cost.walked / cost.macs, 3), "tuned_steps": tuned_steps,
            "bytes": cost.bytes, "macs": cost.macs,
        }


class Rival:
    """The folded float network as one CUDA graph."""

    def __init__(self, made: Network, batch: int, kind: Kind, variant: str) -> None:
        self.spec, self.kind = made.input, kind
        pixels = torch.randint(0, 256, (batch, *made.input.array_shape), dtype=torch.uint8)
        count = min(batch, 8)
        with torch.no_grad():
            few = normalised(pixels[:count].cuda(), made.input, torch.float32).double()
            self.expected = copy.deepcopy(made.folded).fuse(False).double().cuda()(few)
        self.module = copy.deepcopy(made.folded).to("cuda", kind.dtype, memory_format=torch.channels_last).fuse(variant == "fused")
        self.pixels = pixels.pin_memory()
        self.images = normalised(pixels.cuda(), made.input, kind.dtype)
        call: Callable[[Tensor], Tensor] = self.module
        if variant in COMPILED:
            torch._dynamo.reset()  # every rival is the same code, of which dynamo compiles eight versions and runs others eagerly
            call = torch.compile(self.module, mode=COMPILED[variant], dynamic=False)
        self.call, self.count = call, count

    def verified(self) -> dict[str, float]:
        return measure.check_close(self.kind.name, self.call(self.images)[: self.count], self.expected, self.kind.network_bound)

    def recording(self) -> measure.Recording:
        return measure.Recording([partial(self.call, self.images)])

    def host(self) -> Callable[[], None]:
        static = torch.empty_like(self.pixels, device="cuda")
        static.copy_(self.pixels)
        spec, dtype = self.spec, self.kind.dtype
        recording = measure.Recording([lambda: self.call(normalised(static, spec, dtype))])
        logits = recording.results[0]
        back = torch.empty(logits.shape, dtype=logits.dtype).pin_memory()

        def call() -> None:
            static.copy_(self.pixels, non_blocking=True)
            recording.graph.replay()
            back.copy_(logits, non_blocking=True)

        return call


def compare(name: str, batch: int, variants: tuple[str, ...], kinds: tuple[Kind, ...], out: Path) -> stage.Result:
    """Ours in every width, and the rivals of the kinds and variants."""
    made, known = network(name), measure.ceilings(out)
    device: dict[str, measure.Recording | measure.Live] = {}
    host: dict[str, measure.Recording | measure.Live] = {}
    told: dict[str, dict[str, Any]] = {}
    for bits, graph in made.quantized.items():
        label = f"ours w{bits}a{bits}"
        member = Ours(graph, batch)
        wrong = member.differing(graph, made.input, min(CHECKED[name], batch))
        details = member.details()
        told[label] = details | {"differing": wrong, "held": wrong == 0} | measure.bound_us(known, details["bytes"], 2 * details["macs"])
        if wrong == 0:
            device[label] = member.recording
            host[label] = measure.Live(member.from_host)
    with torch.no_grad():
        for kind in kinds:
            for variant in variants:
                label = f"torch {kind.name} {variant}"
                try:
                    with precision(kind):
                        rival = Rival(made, batch, kind, variant)
                        told[label] = rival.verified()
                        device[label] = rival.recording()
                        host[label] = measure.Live(rival.host())
                except Exception as error:
                    if stage.sticky(error):
                        raise
                    told[label] = {"why": stage.failure(error)["error"]}
        timed, from_host = measure.interleave(device, SECONDS), measure.interleave(host, SECONDS)
    for label, result in timed.items():
        rate = measure.digits(batch / result["median_us"] * 1e6)
        told[label] |= result | {"images_per_s": rate}
        told[label] |= measure.percent(told[label] if "bound_us" in told[label] else {}, result["median_us"])
        told[label]["host"] = from_host[label] | {"images_per_s": measure.digits(batch / from_host[label]["median_us"] * 1e6)}
    torch.cuda.empty_cache()
    return {"held": all(r.get("held", True) for r in told.values()), "network": name, "batch": batch, "contenders": told}


def items(out: Path) -> list[stage.Item]:
    found = []
    plain = ("fused", "plain")
    for name, batches in MEMBER_BATCHES.items():
        found += [stage.Item(f"{name}, batch {batch}", 12 if position else 30, partial(compare, name, batch, plain, KINDS, out))
                  for position, batch in enumerate(batches)]
    chosen = tuple(kind for kind in KINDS if kind.name in ("fp16", "fp32"))
    for kind in reversed(chosen):
        found.append(stage.Item(f"resnet20, batch 4096, compiled {kind.name}", COMPILE_SECONDS,
                                partial(compare, "resnet20", 4096, ("compile",), (kind,), out)))
    return found


def run(document: stage.Document, out: Path, deadline: stage.Deadline) -> int:
    remember_tuned(out)
    return stage.measure(document, items(out), deadline)


if __name__ == "__main__":
    sys.exit(stage.main(NAME, run))
