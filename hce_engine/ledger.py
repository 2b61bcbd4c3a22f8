"""The ledger: what a member costs, in every convention that is in use, side by side.

Counted are the convolutions and linear layers of a member (float or quantized) and the batch norms, folded or not.
Pooling, additions, activations, recoding, normalisation of pixels and the final mean are not counted: no published
figure that this project is compared with counts them.

Of one layer with output map ``[OC, OH, OW]``:

    macs         OC * OH * OW * (C / groups) * KH * KW; linear: O * F
    norm         2 * OC * OH * OW if a batch norm follows (its own node, or ``folded_norm`` = 1), else 0; one that could not
                 be folded has become a 1x1 depthwise convolution, and its multiplications count as macs too
    bits         (bits_w, bits_a) as trained (attribute ``bits`` of a quantized layer); (32, 32) for float32
    flops_paper  (macs + norm) * max(bits_w, bits_a) / 23, and macs + norm for float32: the convention of the HCE paper
                 (arXiv 2301.07794), reconstructed from its totals, which every target of this project is stated in. The norm elements of a quantized
                 layer are scaled like its MACs. 23 is the width of a binary32 mantissa. The 8-bit first and last
                 layer of a quantized member cost 8 / 23.
    b23, bb23, bb529   macs * max(bits_w, bits_a) / 23,  macs * bits_w * bits_a / 23,  macs * bits_w * bits_a / 23^2;
                 macs for float32. No norm term. bb23 of an 8-bit layer exceeds its MACs: the formula says so.
    bops         macs * bits_w * bits_a, float32 as 32 * 32
    params       elements of conv and linear weights and biases and of gamma and beta of batch norms, as the graph holds
                 them (folding absorbs gamma and beta into weight and bias)
    bytes        of all parameters as an artifact stores them: packed weights, biases, multipliers, offsets

A member's figures are those of running it alone. The ensemble's are those of the union of its voting members' nodes, a
shared node once; reference members are left out. ``flops_ratio`` is flops_paper of the ensemble over that of the
reference, the unpruned float network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from math import prod
from typing import Any

from . import bitpack
from .errors import GraphError
from .graph import Graph, Node

MANTISSA_BITS = 23
CONVENTION = "conv and linear MACs + 2 per batch-norm output element; quantized layers times max(bits_w, bits_a) / 23"

_LAYERS = ("conv2d", "linear", "qconv2d", "qlinear")
_TRAINABLE = ("weight", "bias", "gamma", "beta")


@dataclass(frozen=True)
class Cost:
    """Cost of a node, a member or an ensemble per image; see the module docstring for each term. Costs add up."""

    macs: int = 0
    params: int = 0
    bytes: int = 0
    flops_paper: float = 0.0
    bops: int = 0
    b23: float = 0.0
    bb23: float = 0.0
    bb529: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def as_dict(self) -> dict[str, int | float]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


def stored_bytes(node: Node) -> int:
    """Bytes of the node's parameters in an artifact."""
    total = 0
    for key, value in node.params.items():
        if key == "weight" and "weight_dtype" in node.attrs:
            rows = value.shape[0]
            total += rows * bitpack.row_bytes(value.size // rows, node.attrs["weight_dtype"])
        else:
            total += value.nbytes
    return total


def is_layer(node: Node) -> bool:
    """Whether the node is a convolution or a linear layer, float or quantized."""
    return node.op in _LAYERS


def node_macs(node: Node) -> int:
    """Multiply-accumulates of one node for one image; 0 for all but convolutions and linear layers."""
    if not is_layer(node):
        return 0
    return node.spec.elements * prod(node.params["weight"].shape[1:])


def node_cost(node: Node) -> Cost:
    """What one node adds to the ledger."""
    macs = node_macs(node)
    normed = node.op == "batch_norm" or node.attrs.get("folded_norm", 0) == 1
    flops = macs + (2 * node.spec.elements if normed else 0)
    params = sum(value.size for key, value in node.params.items() if key in _TRAINABLE)
    size = stored_bytes(node)
    if "bits" not in node.attrs:
        return Cost(macs, params, size, float(flops), macs * 32 * 32, float(macs), float(macs), float(macs))
    bits_w, bits_a = node.attrs["bits"]
    widest, product = max(bits_w, bits_a), bits_w * bits_a
    return Cost(
        macs, params, size, flops * widest / MANTISSA_BITS, macs * product, macs * widest / MANTISSA_BITS,
        macs * product / MANTISSA_BITS, macs * product / MANTISSA_BITS**2,
    )


def total_cost(nodes: Iterable[Node]) -> Cost:
    """Sum over distinct nodes."""
    return sum((node_cost(n) for n in nodes), Cost())


def member_costs(graph: Graph) -> dict[str, Cost]:
    """Cost of each member run alone, references included; every node that the member needs, once."""
    return {m.name: total_cost(graph.only(m.name).nodes) for m in graph.members}


def ensemble_cost(graph: Graph) -> Cost:
    """Cost of the voting members together; nodes that they share count once, reference members not at all."""
    return total_cost(graph.only(*(m.name for m in graph.voters)).nodes)


def _baseline(graph: Graph, costs: dict[str, Cost], reference_flops: float | None) -> tuple[str | None, float | None]:
    if reference_flops is not None:
        if not reference_flops > 0:
            raise GraphError("ledger", expected="reference_flops above 0", got=str(reference_flops),
                             fix="pass flops_paper of the unpruned network")
        return None, float(reference_flops)
    references = [m.name for m in graph.members if m.role == "reference"]
    if len(references) > 1:
        raise GraphError("ledger", expected="one reference member", got=", ".join(references),
                         fix="pass reference_flops, or keep one reference")
    return (references[0], costs[references[0]].flops_paper) if references else (None, None)


def ledger(graph: Graph, *, reference_flops: float | None = None) -> dict[str, Any]:
    """The ledger of a graph as plain JSON values, as artifacts and ``--json`` carry it.

    Keys: ``convention`` (a sentence); ``members`` ({name: {"role", macs, params, bytes, flops_paper, bops, b23, bb23,
    bb529}}); ``ensemble`` (the same figures); ``reference`` ({"member": name or null, "flops_paper": number or null});
    ``flops_ratio`` (ensemble) and ``flops_ratios`` ({member and "ensemble": ratio}), null where there is no baseline;
    ``bytes`` ({member and "ensemble": bytes}).

    reference_flops: flops_paper of the unpruned network, where the graph has no reference member; it wins over one.
    Raises GraphError for several references without it, or for one that costs nothing.
    """
    costs = member_costs(graph)
    ensemble = ensemble_cost(graph)
    name, baseline = _baseline(graph, costs, reference_flops)
    if baseline == 0:
        raise GraphError("ledger", expected="a reference with convolutions or linear layers", got=f"none in {name!r}",
                         fix="pass reference_flops")
    everything = {**costs, "ensemble": ensemble}
    ratios = {k: c.flops_paper / baseline if baseline else None for k, c in everything.items()}
    return {
        "convention": CONVENTION,
        "members": {m.name: {"role": m.role, **costs[m.name].as_dict()} for m in graph.members},
        "ensemble": ensemble.as_dict(),
        "reference": {"member": name, "flops_paper": baseline},
        "flops_ratio": ratios["ensemble"],
        "flops_ratios": ratios,
        "bytes": {k: c.bytes for k, c in everything.items()},
    }
