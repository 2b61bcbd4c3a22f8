"""The quantization layout: which step of the integer pipeline yields which codes, decided once from the float graph.

QuantModule (gradients) and freeze (integers) both read this plan, so they cannot disagree about what is quantized, with
how many bits and around which zero point. docs/NUMERICS.md has the algebra; the rules are:

* The first convolution reads the uint8 pixels, whatever ``edge_bits`` says, and has weights of ``edge_bits``; the last
  linear has ``edge_bits`` in both. Float images are brought to 256 levels of their range, then normalised to a signed u8
  map, which the first convolution reads instead.
* A tensor whose readers all want one width, convolutions ``a_bits`` and last linears ``edge_bits``, is yielded in it
  directly. Any other is a u8 stream, and the readers that want one width share one recode of it.
* Codes are unsigned with zero point 0 where a clamp from 0 makes them so, else u8 with zero point 128; the recode of a
  signed stream to b bits has zero point 2^(b-1).
* An addition goes into the convolution that is its last-computed operand, if nothing else reads that convolution;
  a clamp goes into the step before it under the same condition.
* A batch norm that no convolution precedes is a 1x1 depthwise convolution of constant weights; a linear that is not
  the last is a convolution over the whole map; so there is one kind of weighted step besides the head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hce_engine.dtypes import activation_dtype
from hce_engine.errors import InputError
from hce_engine.graph import Graph, Node

from .fuse import fuse
from .units import Pixels, Unit

STREAM_BITS = 8  # pixels, and tensors that additions, poolings and concats read
EDGE_BITS = 8  # first and last layer, unless said otherwise


@dataclass(frozen=True)
class Codes:
    """Codes of ``bits`` bits around ``zero_point``; the real values were clamped to [low, high] first (None: no bound)."""

    shape: tuple[int, ...]
    bits: int
    zero_point: int
    low: float | None = None
    high: float | None = None

    @property
    def dtype(self) -> str:
        return activation_dtype(self.bits).name

    @property
    def signed(self) -> bool:
        return self.zero_point != 0


@dataclass(frozen=True)
class Step:
    """One step. kind: pixels, conv, add, pool, recode, concat, move, head, or float (on logits).

    node: the float node that it stands for (weights, window, attributes).  norm: the batch norm behind a conv.
    codes: what it yields, None for float logits.  pixels: set for a conv that reads the image.
    residual: a conv whose second input is added.  constant: its weights are not trained.
    bits: (weight, input) of a conv or head.
    """

    name: str
    kind: str
    node: Node
    inputs: tuple[str, ...]
    codes: Codes | None = None
    norm: Node | None = None
    pixels: Pixels | None = None
    residual: bool = False
    constant: bool = False
    bits: tuple[int, int] = (STREAM_BITS, STREAM_BITS)


@dataclass(frozen=True)
class Layout:
    steps: tuple[Step, ...]
    output: str
    input: Node
    low: float  # the range of a float image; pixels of a uint8 image are their own codes
    high: float


def layout(
    graph: Graph, w_bits: int, a_bits: int, *, edge_bits: int = EDGE_BITS, input_range: tuple[float, float] = (0.0, 1.0),
) -> Layout:
    """The layout of a legal float graph with one member.

    Raises UnsupportedError naming a node that has no integer form, InputError for a width outside 2 to 8.
    """
    for what, bits in (("weight", w_bits), ("activation", a_bits), ("edge", edge_bits)):
        if not 2 <= bits <= 8:
            raise InputError("quantization", expected=f"2 to 8 {what} bits", got=str(bits), fix="choose a width in that range")
    units, output, names = fuse(graph, input_range)
    wanted = _wanted_widths(units, a_bits, edge_bits)
    steps: dict[str, Step] = {}
    recodes: dict[tuple[str, int], str] = {}

    def add(step: Step) -> str:
        steps[step.name] = step
        return step.name

    def recoded(name: str, bits: int) -> str:
        codes = steps[name].codes
        assert codes is not None
        if codes.bits == bits:
            return name
        if (name, bits) not in recodes:
            zero = 1 << (bits - 1) if codes.signed else 0
            node = steps[name].node
            recodes[name, bits] = add(
                Step(_fresh(f"{name}.recode", steps, graph), "recode", node, (name,), Codes(codes.shape, bits, zero))
            )
        return recodes[name, bits]

    for unit in units:
        inputs = [names[id(u)] for u in unit.inputs]
        widths = (STREAM_BITS, STREAM_BITS)
        if unit.kind == "head":
            widths = (edge_bits, edge_bits)
        elif unit.kind == "conv" and unit.first:
            widths = (edge_bits, STREAM_BITS)
        elif unit.kind == "conv" and not unit.constant:
            widths = (w_bits, a_bits)
        if unit.kind in ("conv", "head"):
            inputs[0] = recoded(inputs[0], widths[1])
        codes = _yields(unit, [steps[i].codes for i in inputs], wanted.get(id(unit), STREAM_BITS))
        add(
            Step(
                names[id(unit)], unit.kind, unit.node, tuple(inputs), codes, unit.norm, unit.pixels, unit.residual,
                unit.constant, widths,
            )
        )
    return Layout(tuple(steps.values()), output, graph.input, *input_range)


def _fresh(name: str, steps: dict[str, Step], graph: Graph) -> str:
    while name in steps or name in graph:
        name += "_"
    return name


def _wanted_widths(units: list[Unit], a_bits: int, edge_bits: int) -> dict[int, int]:
    """The width that all readers of a unit want, through moves or directly, by the unit's id, where they agree on one."""
    result: dict[int, int] = {}

    def wants(reader: Unit, slot: int) -> int:
        if reader.kind == "head":
            return edge_bits
        if reader.kind == "conv" and slot == 0 and not reader.constant and not reader.first:
            return a_bits
        return result.get(id(reader), STREAM_BITS) if reader.kind == "move" else STREAM_BITS

    for unit in reversed(units):
        widths = {wants(reader, slot) for reader, slot in unit.read_by}
        if len(widths) == 1:
            result[id(unit)] = widths.pop()
    return result


def _yields(unit: Unit, sources: list[Codes | None], bits: int) -> Codes | None:
    if unit.kind in ("head", "float"):
        return None
    if unit.kind == "pixels":
        return Codes(unit.shape, STREAM_BITS, 0)
    known = [s for s in sources if s is not None]
    if unit.kind == "move":
        return replace(known[0], shape=unit.shape, low=None, high=None)
    inherits = unit.kind != "conv" and not any(s.signed for s in known)
    if unit.low == 0 or inherits:
        low = None if unit.low is None or unit.low < 0 else unit.low  # a bound below 0 does nothing to codes from 0
        return Codes(unit.shape, STREAM_BITS if unit.kind == "concat" else bits, 0, low, unit.high)
    return Codes(unit.shape, STREAM_BITS, 128, unit.low, unit.high)
