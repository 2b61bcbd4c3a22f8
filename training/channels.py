"""Which channels of a float graph can be removed together, found from the graph alone.

Every channel of every tensor gets an identity. A convolution or linear layer makes new ones; batch norms, activations,
pools and depthwise convolutions pass them on; an addition makes its operands' channels one; flatten repeats them per
pixel. What is then one channel must be kept or removed as one, in every filter that makes it and every weight that
reads it. The logits, the image, and whatever meets a zero-padded map or a grouped convolution stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from hce_engine.errors import GraphError
from hce_engine.graph import Graph, Node

Array = np.ndarray

PAD = -1  # identity of a zero map made by channel_pad
_PASSING = ("normalize", "batch_norm", "clamp", "max_pool2d", "avg_pool2d", "global_avg_pool", "strided_slice")


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that live and die together.

    name: the first layer that makes them.  channels: how many there are.
    producers: convolutions and linear layers whose output channels (weight axis 0, bias) they are, depthwise included.
    norms: batch norms that scale them.  consumers: layers whose weight axis 1 reads them.
    internal: True if they meet no addition and no concat, so they are internal to one block.
    slots: for each producer and norm, the index within the group of each of its output channels, PAD for a channel of
        none, int64 (OC,).
    """

    name: str
    channels: int
    producers: tuple[str, ...]
    norms: tuple[str, ...]
    consumers: tuple[str, ...]
    internal: bool
    slots: Mapping[str, Array] = field(repr=False, compare=False)


def is_depthwise(node: Node) -> bool:
    """One filter per input channel, so an output channel exists exactly if its input channel does."""
    groups = node.attrs.get("groups", 1)
    return node.op == "conv2d" and 1 < groups == node.params["weight"].shape[0] and node.params["weight"].shape[1] == 1


class Identities:
    """Channel identities of every tensor of a float graph: ``of[name]`` int64 (C,) or (F,), and which are one."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.of: dict[str, Array] = {}
        self.frozen: dict[int, str] = {}  # identity -> why it must stay
        self._joined: set[int] = set()  # identities that meet an addition or a concat
        self._parent: list[int] = []
        for node in graph.nodes:
            self.of[node.name] = self._visit(node)
        for member in graph.members:
            self._freeze(self.of[member.output], f"the logits of member {member.name}")
        self.root = np.array([self._find(i) for i in range(len(self._parent))], np.int64)
        self.frozen_roots = {int(self.root[i]): why for i, why in self.frozen.items()}
        self.joined_roots = {int(self.root[i]) for i in self._joined}

    def roots(self, name: str) -> Array:
        """Representative identity of each channel of a tensor; PAD for zero maps."""
        ids = self.of[name]
        return np.where(ids == PAD, PAD, self.root[np.maximum(ids, 0)])

    def _visit(self, node: Node) -> Array:
        reads = [self.of[name] for name in node.inputs]
        if node.op == "input":
            return self._freeze(self._fresh(node.spec.shape[0]), "channels of the image")
        if node.op in _PASSING:
            return reads[0]
        if node.op == "flatten":
            return np.repeat(reads[0], node.spec.shape[0] // len(reads[0]))
        if node.op == "concat":
            return self._join(np.concatenate(reads))
        if node.op in ("add", "mean"):
            out = reads[0]
            for other in reads[1:]:
                out = self._unite(node, out, other)
            return out
        if node.op == "channel_pad":
            why = f"padded with zero maps by {node.name}"
            pads = [np.full(node.attrs[k], PAD, np.int64) for k in ("before", "after")]
            return np.concatenate([pads[0], self._freeze(reads[0], why), pads[1]])
        if node.op == "linear":
            return self._fresh(node.spec.shape[0])
        if node.op == "conv2d":
            return self._convolution(node, reads)
        raise GraphError(
            f"channels of {node.op} %{node.name}", expected="a float graph", got=f"the operation {node.op}",
            fix="prune before quantization",
        )

    def _convolution(self, node: Node, reads: list[Array]) -> Array:
        if is_depthwise(node):
            out = reads[0]
        else:
            out = self._fresh(node.spec.shape[0])
            if node.attrs["groups"] > 1:
                why = f"read or made by {node.name}, a convolution in {node.attrs['groups']} groups"
                self._freeze(reads[0], why)
                self._freeze(out, why)
        return self._unite(node, out, reads[1]) if len(reads) == 2 else out

    def _fresh(self, count: int) -> Array:
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def _find(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i

    def _freeze(self, ids: Array, why: str) -> Array:
        for i in ids[ids != PAD].tolist():
            self.frozen.setdefault(i, why)
        return ids

    def _join(self, ids: Array) -> Array:
        self._joined.update(ids[ids != PAD].tolist())
        return ids

    def _unite(self, node: Node, a: Array, b: Array) -> Array:
        padded = (a == PAD) | (b == PAD)
        why = f"added to zero maps by {node.name}"
        self._freeze(a[padded], why)
        self._freeze(b[padded], why)
        for i, j in zip(a[~padded].tolist(), b[~padded].tolist(), strict=True):
            first, second = sorted((self._find(i), self._find(j)))
            self._parent[second] = first
        self._join(b)
        return self._join(np.where(a == PAD, b, a))


def _components(sets: Iterable[tuple[str, set[int]]]) -> list[tuple[list[str], set[int]]]:
    """Producers that share a channel, directly or through others."""
    found: list[tuple[list[str], set[int]]] = []
    for name, roots in sets:
        names, whole, rest = [name], set(roots), []
        for other in found:
            if other[1].isdisjoint(whole):
                rest.append(other)
            else:
                names, whole = other[0] + names, whole | other[1]
        found = [*rest, (names, whole)]
    return found


def _analyse(graph: Graph) -> tuple[list[ChannelGroup], dict[str, str], Identities]:
    ids = Identities(graph)
    layers = [n for n in graph.nodes if n.op in ("conv2d", "linear")]
    makers = [n for n in layers if not is_depthwise(n)]
    order = {n.name: k for k, n in enumerate(graph.nodes)}
    groups, excluded = [], {}
    for names, roots in _components((n.name, set(ids.roots(n.name).tolist())) for n in makers):
        names.sort(key=order.__getitem__)
        reasons = [ids.frozen_roots[r] for r in sorted(roots) if r in ids.frozen_roots]
        if reasons:
            excluded.update(dict.fromkeys(names, reasons[0]))
            continue
        index = {root: k for k, root in enumerate(sorted(roots))}

        def touches(name: str, roots: set[int] = roots) -> bool:
            return not roots.isdisjoint(ids.roots(name).tolist())

        producers = tuple(n.name for n in layers if n.name in names or (is_depthwise(n) and touches(n.name)))
        norms = tuple(n.name for n in graph.nodes if n.op == "batch_norm" and touches(n.name))
        groups.append(ChannelGroup(
            name=names[0], channels=len(index), producers=producers, norms=norms,
            consumers=tuple(n.name for n in layers if not is_depthwise(n) and touches(n.inputs[0])),
            internal=roots.isdisjoint(ids.joined_roots),
            slots={
                name: np.array([index.get(r, PAD) for r in ids.roots(name).tolist()], np.int64) for name in producers + norms
            },
        ))
    return sorted(groups, key=lambda g: order[g.name]), excluded, ids


def channel_groups(graph: Graph) -> list[ChannelGroup]:
    """All groups of channels of a float graph that can be removed, in the graph's order; see :func:`excluded`."""
    return _analyse(graph)[0]


def excluded(graph: Graph) -> dict[str, str]:
    """Layers whose output channels must stay, each with the reason."""
    return _analyse(graph)[1]


def pruning_scope(graph: Graph, scope: str) -> list[ChannelGroup]:
    """The groups of ``scope``: ``internal`` to blocks, or ``all``, the residual streams and what concats join too."""
    return [group for group in channel_groups(graph) if group.internal or scope == "all"]


def surviving(graph: Graph, kept: Mapping[str, Array]) -> dict[str, Array]:
    """Which channels of every tensor remain if group ``name`` keeps only ``kept[name]``: bool arrays by node name."""
    groups, _, ids = _analyse(graph)
    dropped = np.zeros(len(ids.root) + 1, bool)  # the last entry serves PAD, which always stays
    for group in groups:
        if group.name not in kept:
            continue
        gone = np.ones(group.channels, bool)
        gone[kept[group.name]] = False
        for name in group.producers:
            slots = group.slots[name]
            inside = slots != PAD
            dropped[ids.roots(name)[inside]] |= gone[slots[inside]]
    return {n.name: ~dropped[ids.roots(n.name)] for n in graph.nodes}
