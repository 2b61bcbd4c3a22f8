"""Other engines' shares: the same networks, each held against that engine's own time for the original.

A runtime is a peer and its int8 sister. The baseline is its float32 run of the original; float members run in float32, quantized ones
as the runtime's own int8 form of the original, the ensemble as both with their mean (``bench.work``). Sessions are verified against
our logits before they are timed, as in ``hce bench``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..backends.reference import mean_logits
from ..bench.networks import is_float, normalized, without_normalization
from ..bench.peers import PEERS, Network, Peer, Session
from ..bench.subject import Subject
from ..bench.work import ENSEMBLE, Part, peer_rows
from ..errors import UnsupportedError
from ..graph import Graph
from .layers import layer_name
from .running import Call, Setting

Say = Callable[[str], None]
_PROFILED_CALLS = 20


@dataclass(frozen=True)
class PeerCall:
    """engine: the peer that the row is of.  baseline: name of the call that runs the original on the same runtime."""

    engine: str
    member: str
    name: str
    baseline: str
    call: Call


class PeerRuns:
    """Sessions of an artifact's members on some peers, built once; ``skipped``: by peer and member, why there is none."""

    def __init__(self, subject: Subject, original: str, peers: Sequence[Peer], setting: Setting, say: Say) -> None:
        self.subject, self.original, self.setting, self.say = subject, original, setting, say
        self.chosen = tuple(peers)
        self._peers = {peer.name: peer for peer in peers}
        self.skipped: dict[str, str] = {}
        self.failures: dict[Part, str] = {}
        self.sessions: dict[Part, Session] = {}
        self.calls: list[PeerCall] = []
        self._plan(self.chosen)

    def peer(self, name: str) -> Peer:
        """Kept for its cache of converted networks, also where it serves as the float sister of an int8 peer."""
        if name not in self._peers:
            self._peers[name] = PEERS[name]()
        return self._peers[name]

    def _plan(self, peers: Sequence[Peer]) -> None:
        graph = self.subject.graph
        members = [m.name for m in graph.members]
        quantized = any(not is_float(graph, m.name) for m in graph.voters)
        for row in peer_rows(graph, members, peers):
            peer = self.peer(row.engine)
            if row.member == ENSEMBLE and quantized and peer.precision != "int8":
                continue  # the original in place of a quantized member saves nothing
            baseline = Part(peer.float_peer, self.original)
            parts = list(dict.fromkeys([*row.parts, baseline]))
            problem = row.skipped or self.peer(peer.float_peer).missing() or next((p for p in map(self._build, parts) if p), None)
            if problem:
                self.skipped[f"{row.engine} {row.member}"] = problem
                continue
            self._add(row.engine, row.member, row.parts, baseline)

    def _add(self, engine: str, member: str, parts: Sequence[Part], baseline: Part) -> None:
        base = f"{baseline.peer} {baseline.network}"
        if not any(c.name == base for c in self.calls):
            self.calls.append(PeerCall(baseline.peer, baseline.network, base, base, self.sessions[baseline]))
        name = f"{engine} {member}"
        if name != base:
            sessions = [self.sessions[part] for part in parts]
            call: Call = sessions[0] if len(sessions) == 1 else partial(_mean, sessions)
            self.calls.append(PeerCall(engine, member, name, base, call))

    def _build(self, part: Part) -> str | None:
        """Why the session cannot be used; builds it on the first request."""
        if part in self.sessions:
            return None
        if part not in self.failures:
            self.say(f"building {part.network} on {part.peer}")
            peer = self.peer(part.peer)
            try:
                session = peer.build(self.subject.network(part.network), self.setting.batch, self.setting.threads,
                                     together=self.setting.threads > 1)
                check = self.subject.check_peer(session, part.network, peer.precision, self.setting.batch)
                session.load(self.subject.normalized_batch(part.network, self.setting.batch))
            except Exception as error:  # peers raise whatever they like, and none of it may end the audit
                self.failures[part] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            else:
                if check.passed:
                    self.sessions[part] = session
                    return None
                self.failures[part] = check.text
        return self.failures[part]

    def layers(self, peer: Peer) -> dict[str, dict[str, float]]:
        """{member: {layer: seconds per image}} of a peer that can tell, for the networks that it runs; else empty.

        Profiled in sessions of their own. An int8 peer runs the original only, under the name of the member that it stands for.
        """
        found = {}
        for call in self.calls:
            if call.engine != peer.name or call.member == ENSEMBLE:
                continue
            network = self.original if peer.precision == "int8" else call.member
            graph = self.subject.graph.only(network)
            names = {node.name: layer_name(network, node.name) for node in graph.nodes}
            try:
                times = peer.profile(self.subject.network(network), self.setting.batch, self.setting.threads, _PROFILED_CALLS)
            except UnsupportedError:
                return {}
            seconds: dict[str, float] = {}
            for time in times:
                node = longest_name_in(time.name, names)
                if node is not None:
                    seconds[names[node]] = seconds.get(names[node], 0.0) + time.seconds / self.setting.batch
            found[call.member] = seconds
        return found


def longest_name_in(text: str, names: Iterable[str]) -> str | None:
    """The longest of ``names`` that occurs in a peer's name of a step; peers put words before and behind it."""
    return max((name for name in names if name in text), key=len, default=None)


def _mean(sessions: Sequence[Session]) -> np.ndarray:
    return mean_logits([session() for session in sessions])


def variant_call(peer: Peer, graph: Graph, subject: Subject, setting: Setting) -> Call:
    """A float graph of one member of a sweep, or its int8 form, as a call; whatever the peer raises goes to the caller."""
    sample = subject.sample
    member = graph.members[0].name
    assert is_float(graph, member)
    spec = subject.artifact.input
    network = Network(member, without_normalization(graph), normalized(graph, sample.calibration, spec))
    session = peer.build(network, setting.batch, setting.threads, together=setting.threads > 1)
    session.load(normalized(graph, subject.batch(setting.batch), spec))
    return session

