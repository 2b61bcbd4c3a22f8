"""A plan for the GPU: the decided, printable list of launches that runs some members of a graph on a batch of images.

Each step names its kernel, its configuration, why both were chosen, and what it must move and compute; nothing is decided
later. Back ends obey.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...kernels.description import Geometry
from ...kernels.formats import Halo, MapFormat, WeightFormat


@dataclass(eq=False)
class Map:
    """Codes of one node for every image of the batch, as kernels/formats.py stores them.

    dtype: of the codes; bits: of storage.  pad: code of the halo, uint8 ``[channels]``.  halo grows while steps are made,
    to what all readers need.  slot: which piece of memory holds it, set by the arena.
    """

    name: str
    dtype: str
    channels: int
    height: int
    width: int
    bits: int
    pad: np.ndarray
    halo: Halo = (0, 0, 0, 0)
    slot: int = -1

    @property
    def form(self) -> MapFormat:
        return MapFormat(self.channels, self.height, self.width, self.bits, self.halo)

    @property
    def extent(self) -> tuple[int, int, int]:
        return (self.channels, self.height, self.width)

    @property
    def bytes(self) -> int:
        """Bytes of the pixels of one image, halo left out: what a kernel reads or writes once."""
        return self.height * self.width * sum(self.form.pixel_bytes)

    def widen(self, halo: Halo) -> None:
        t, l, b, r = self.halo
        self.halo = (max(t, halo[0]), max(l, halo[1]), max(b, halo[2]), max(r, halo[3]))


@dataclass(eq=False)
class Logits:
    """float32 ``(batch, classes)``, which is never shared: members' outputs and what makes them."""

    name: str
    classes: int

    @property
    def bytes(self) -> int:
        return 4 * self.classes


Value = Map | Logits


@dataclass(frozen=True, eq=False)
class Layer:
    """The constants of a convolution, depthwise convolution or linear layer, before they are packed.

    weight: int8 codes ``[OC, C, KH, KW]`` (depthwise ``[C, 1, KH, KW]``).  macs: real multiply-accumulates of one output
    pixel; less than the weight's size where groups were filled up with zeros.  storages: widths its weights may have.
    """

    name: str
    weight: np.ndarray
    bias: np.ndarray
    multiplier: np.ndarray
    offset: np.ndarray | None
    x_qmax: int
    macs: int
    dilation_w: int = 1
    storages: tuple[int, ...] = (8,)


@dataclass(frozen=True)
class Weights:
    """A layer cut for one configuration: what the back end packs, once per distinct cut."""

    layer: Layer
    x: MapFormat
    form: WeightFormat | None  # None: depthwise
    bytes: int


@dataclass(frozen=True)
class Cost:
    """Of one step over the whole batch. read, written: bytes, everything once.  macs: real multiply-accumulates.
    walked: multiply-accumulates with the padding of tiles, channels and groups."""

    read: int = 0
    written: int = 0
    macs: int = 0
    walked: int = 0

    @property
    def bytes(self) -> int:
        return self.read + self.written


def total_cost(costs: Iterable[Cost]) -> Cost:
    every = list(costs)
    return Cost(*(sum(getattr(c, key) for c in every) for key in ("read", "written", "macs", "walked")))


@dataclass(frozen=True)
class Step:
    """One call of a launcher.

    nodes: the graph nodes it computes.  kernel: a name such as ``conv2d_u4xs4_u8+u4``.  launcher: key of the back end's
    table.  reads, writes: argument name -> value.  arguments: everything else that the launcher takes.  config: a dataclass
    of kernels/configurations.py, and source: where it comes from.  shape: the key of measurements of a layer.
    """

    nodes: tuple[str, ...]
    kernel: str
    launcher: str
    reason: str
    reads: Mapping[str, Value]
    writes: Mapping[str, Value]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    geometry: Geometry | None = None
    weights: Weights | None = None
    config: Any = None
    source: str = ""
    shape: str = ""
    launches: int = 1
    workspace_bytes: int = 0
    cost: Cost = Cost()


@dataclass(frozen=True)
class Slot:
    """One piece of memory per plane: maps of one format and halo code take turns in it, so that its halo stays valid."""

    form: MapFormat
    pad: bytes

    @property
    def image_bytes(self) -> int:
        return sum(self.form.image_bytes)

    @property
    def pad_codes(self) -> np.ndarray:
        return np.frombuffer(self.pad, np.uint8)


@dataclass(frozen=True)
class Plan:
    """What :class:`hce_engine.backends.cuda.backend.CudaBackend` runs for ``batch`` images.

    outputs: member -> its logits, and ``ensemble`` -> the mean of those that vote.
    """

    batch: int
    members: tuple[str, ...]
    steps: tuple[Step, ...]
    slots: tuple[Slot, ...]
    outputs: Mapping[str, Logits]
    image_shape: tuple[int, ...]
    float_images: bool

    @property
    def arena_bytes_per_image(self) -> int:
        return sum(slot.image_bytes for slot in self.slots)

    @property
    def weight_bytes(self) -> int:
        return sum(s.weights.bytes for s in self.steps if s.weights is not None)

    @property
    def workspace_bytes(self) -> int:
        return max((s.workspace_bytes for s in self.steps), default=0)

    @property
    def launches(self) -> int:
        return sum(s.launches for s in self.steps)

    @property
    def cost(self) -> Cost:
        return total_cost(s.cost for s in self.steps)

    def __str__(self) -> str:
        cost = self.cost
        head = (f"plan {'+'.join(self.members)} on cuda for {self.batch} images: {self.launches} launches, arena "
                f"{self.arena_bytes_per_image / 1000:.1f} kB per image in {len(self.slots)} slots, weights "
                f"{self.weight_bytes / 1000:.1f} kB, {cost.bytes / self.batch / 1000:.1f} kB moved per image")
        return "\n".join([head, *(f"  {_row(s, self.batch)}" for s in self.steps)])


def row(nodes: Iterable[str], kernel: str, cost: Cost, batch: int, reason: str, config: str) -> str:
    """One line of a printed plan; bytes and multiply-accumulates per image."""
    waste = f" ({cost.walked / cost.macs:.2f}x walked)" if cost.macs and cost.walked else ""
    return (f"{'+'.join(nodes):32} {kernel:28} {cost.bytes / batch / 1000:8.2f} kB "
            f"{cost.macs / batch / 1e6:8.3f} MMAC{waste}  {reason}{config}")


def _row(step: Step, batch: int) -> str:
    config = f"  [{step.source} {short(step.config)}]" if step.config is not None else ""
    return row(step.nodes, step.kernel, step.cost, batch, step.reason, config)


_SHORT = {"block_m": "m", "block_n": "n", "block_k": "k", "block_c": "c", "weight_bits": "w"}


def short(config: Any) -> str:
    """``m128 n16 k32 w8 warps=4 unroll`` of a configuration; empty for None."""
    if config is None:
        return ""
    words = []
    for key, value in vars(config).items():
        if key == "num_stages" and getattr(config, "unroll", False):  # of the loop that there is not
            continue
        if isinstance(value, bool):
            words += [key] if value else []
        else:
            words.append(f"{_SHORT[key]}{value}" if key in _SHORT else f"{key.removeprefix('num_')}={value}")
    return " ".join(words)
