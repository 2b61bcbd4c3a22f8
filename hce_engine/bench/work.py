"""Which peer runs what for which row: the same work as ours, in the peer's best form of it.

    member of the artifact      an fp32 peer runs                         an int8 peer runs
    float (o, s)                that very graph                           -
    quantized (q)               -                                         its own int8 form of the float original
    ensemble                    its members one after the other and       q in int8, float members by the fp32 peer of
                                their mean, the original in place of q    the same runtime, and their mean
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..graph import Graph
from .networks import is_float, original_of
from .peers import Peer

ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class Part:
    """One network on one peer. network: the float member whose graph it runs, or quantizes."""

    peer: str
    network: str


@dataclass(frozen=True)
class PeerRow:
    """One line of the comparison. parts: what runs, one after the other; empty where ``skipped`` says why nothing does."""

    engine: str
    member: str
    parts: tuple[Part, ...]
    skipped: str | None = None


def own_rows(graph: Graph, members: Sequence[str]) -> tuple[str, ...]:
    """The rows that our engine gets: the members, and the ensemble if all that vote are among them."""
    voters = [m.name for m in graph.voters]
    both = len(voters) > 1 and set(voters) <= set(members)
    return (*members, ENSEMBLE) if both else tuple(members)


def peer_rows(graph: Graph, members: Sequence[str], peers: Sequence[Peer]) -> list[PeerRow]:
    """The rows of all peers for those of ours, peer by peer; what a peer cannot do is a row that says why."""
    rows = []
    for peer in peers:
        absent = peer.missing()
        for member in own_rows(graph, members):
            row = _row(graph, peer, member)
            if row is not None:
                rows.append(PeerRow(peer.name, member, (), absent) if absent else row)
    return rows


def _row(graph: Graph, peer: Peer, member: str) -> PeerRow | None:
    """None where the peer has nothing to compare: float members on int8 peers, quantized ones on fp32 peers."""
    names = [m.name for m in graph.voters] if member == ENSEMBLE else [member]
    quantized = [name for name in names if not is_float(graph, name)]
    if not quantized if peer.precision == "int8" else quantized and member != ENSEMBLE:
        return None
    original = original_of(graph)
    if quantized and original is None:
        return PeerRow(peer.name, member, (), f"the artifact has no float original of {', '.join(quantized)} for it to run")
    parts = []
    for name in names:
        if name not in quantized:
            parts.append(Part(peer.float_peer if peer.precision == "int8" else peer.name, name))
        elif original is not None:
            parts.append(Part(peer.name, original))
    return PeerRow(peer.name, member, tuple(parts))
