"""One comparison: build, check, time in turns, compare. Everything that is measured together is in one run.

    report = measure(artifact, peers, sample, batches=(1, 128), threads=(1, 2))

Per batch size and thread count every session is built and checked, every row's threads are counted, and the rows that passed
are timed in turns. A peer that is missing, fails to build or computes something else is a row that says so.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from .. import __version__
from ..artifact import Artifact
from ..backends.reference import mean_logits
from ..errors import UnsupportedError
from ..machine import processor
from ..threads import available_threads
from .checks import Check
from .conditions import ThreadUse, Watch, in_turns, thread_use
from .memory import keep_freed_memory
from .peers import PEERS, Peer, Session
from .report import OURS, add_check, add_times, add_verdicts, claims, new_row
from .sample import Sample
from .subject import Subject
from .turns import Call, interleaved, settle
from .work import ENSEMBLE, Part, PeerRow, own_rows, peer_rows

ROUNDS, SECONDS = 9, 0.2
_COUNTING = 0.1  # seconds over which threads are counted
Say = Callable[[str], None]
Rows = list[dict[str, Any]]


def measure(
    artifact: Artifact, peers: Sequence[Peer], sample: Sample, *, batches: Sequence[int], threads: Sequence[int],
    members: Sequence[str] | None = None, rounds: int = ROUNDS, seconds: float = SECONDS, isa: str | None = None,
    limits: Mapping[str, str] | None = None, say: Say = lambda text: None,
) -> dict[str, Any]:
    """What ``hce bench --json`` writes, but for the model's name.

    members: rows to measure, by default all. seconds: of one turn. isa: of our engine, by default the best; limits: environment
    variables that hold peers to it (``isa.hold_peers``). say: gets a line per step, and none while timing.
    Raises UnsupportedError for more threads than this process may use.
    """
    if max(threads) > available_threads():
        raise UnsupportedError("bench --threads", expected=f"at most {available_threads()}, the processors of this process",
                               got=str(max(threads)), fix="ask for fewer, or widen its affinity or control group")
    kept = keep_freed_memory()
    names = tuple(members or (m.name for m in artifact.graph.members))
    subject = Subject(artifact, sample, isa)
    # An int8 peer runs float members of an ensemble on its sister, whether that is measured too or not.
    crew = {peer.float_peer: PEERS[peer.float_peer]() for peer in peers if peer.float_peer in PEERS} | {p.name: p for p in peers}
    all_rows: Rows = []
    conditions = []
    for batch in batches:
        for count in threads:
            say(f"batch {batch}, {count} thread{'s' * (count > 1)}")
            setting = _Setting(subject, crew, peers, names, batch, count, limits or {}, say)
            watch, restless = Watch(), setting.time(rounds, seconds)
            conditions.append({"batch": batch, "threads": count, "restless_turns": restless, **watch.read(count)})
            all_rows += setting.rows
            del setting  # its sessions make room for those of the next
    crowded = {(c["batch"], c["threads"]) for c in conditions if c["crowded"]}
    add_verdicts(all_rows, crowded)
    packages = {name: found for peer in peers for name, found in peer.versions().items()}
    return {
        "machine": f"{processor()}, {subject.isa}", "isa": subject.isa, "isa_limits": dict(limits or {}), "sample": sample.source,
        "keeps_freed_memory": kept,
        "versions": {"hce_engine": __version__, "python": platform.python_version(), "numpy": np.__version__, **packages},
        "round_count": rounds, "turn_seconds": seconds, "conditions": conditions, "claims": claims(all_rows, crowded), "rows": all_rows,
    }


class _Setting:
    """One batch size and thread count: sessions, the rows they serve, and the calls of those that may be timed."""

    def __init__(
        self, subject: Subject, crew: Mapping[str, Peer], peers: Sequence[Peer], members: Sequence[str], batch: int, threads: int,
        limits: Mapping[str, str], say: Say,
    ) -> None:
        self.subject, self.batch, self.threads, self.limits, self.say = subject, batch, threads, limits, say
        self.crew = crew
        self._sessions: dict[tuple[Part, bool], _Built | str] = {}  # or why there is none
        self.rows: Rows = []
        self._calls: dict[str, Call] = {}
        for member in own_rows(subject.graph, members):
            self._own_row(member)
        for row in peer_rows(subject.graph, members, peers):
            self._peer_row(row)

    def time(self, rounds: int, seconds: float) -> int:
        """Adds times to the rows that were verified; how many turns began on a process that was not quiet."""
        self.say(f"timing {len(self._calls)} rows in {rounds} rounds")
        series, restless = interleaved(self._calls, rounds, seconds)
        for row in self.rows:
            if row["verified"]:
                add_times(row, series[_name(row)])
        return restless

    def _own_row(self, member: str) -> None:
        start = perf_counter()
        engine = self.subject.engine(member, self.threads)
        images = self.subject.batch(self.batch)
        runs = f"{member} from pixels, {engine.isa}" if member != ENSEMBLE else f"{', '.join(engine.member_names)} at once from pixels, {engine.isa}"
        row = new_row(OURS, member, self.batch, self.threads, runs, {"hce_engine": __version__})
        row["build_seconds"] = perf_counter() - start
        call = partial(engine, images)
        self._admit(row, call, [self.subject.check(member)], _count(call))

    def _peer_row(self, planned: PeerRow) -> None:
        peer = self.crew[planned.engine]
        texts = [self.crew[part.peer].describe(self.subject.network(part.network)) for part in planned.parts]
        runs = f"mean of {' and '.join(texts)}" if planned.member == ENSEMBLE and texts else "".join(texts)
        row = new_row(planned.engine, planned.member, self.batch, self.threads, runs, peer.versions())
        row["isa_held"] = not self.limits or bool(set(self.limits) & set(peer.isa_variables))
        parts = [self._built(part, together=len(planned.parts) > 1) for part in planned.parts]
        built = [part for part in parts if not isinstance(part, str)]
        row["skipped"] = planned.skipped or next((part for part in parts if isinstance(part, str)), None)
        if row["skipped"]:
            self.rows.append(row)
            return
        row["build_seconds"] = sum(part.seconds for part in built)
        call: Call = built[0].session
        use = built[0].use
        if len(built) > 1:
            call = partial(_mean, [part.session for part in built])
            use = in_turns([part.use for part in built], _count(call))
        self._admit(row, call, [part.check for part in built], use)

    def _admit(self, row: dict[str, Any], call: Call, checks: Sequence[Check], use: ThreadUse) -> None:
        """Keeps the row; its call is timed if everything held."""
        add_check(row, checks, use)
        self.rows.append(row)
        if row["verified"]:
            self._calls[_name(row)] = call

    def _built(self, part: Part, together: bool) -> _Built | str:
        """The checked session of a network on a peer, or why it cannot be built."""
        peer = self.crew[part.peer]
        key = (part, together and peer.own_threads and self.threads > 1)
        if key not in self._sessions:
            self.say(f"building {part.network} on {part.peer}")
            start = perf_counter()
            try:
                session = peer.build(self.subject.network(part.network), self.batch, self.threads, together=key[1])
                seconds = perf_counter() - start
                check = self.subject.check_peer(session, part.network, peer.precision, self.batch)
                session.load(self.subject.normalized_batch(part.network, self.batch))
                self._sessions[key] = _Built(session, check, _count(session), seconds)
            except Exception as error:  # peers raise whatever they like, and none of it may end the comparison
                self._sessions[key] = f"{type(error).__name__} while building: {' '.join(str(error).split())[:200]}"
        return self._sessions[key]


class _Built(NamedTuple):
    """A session with its input in place, what its logits and threads were found to be, and how long building it took."""

    session: Session
    check: Check
    use: ThreadUse
    seconds: float


def _count(call: Call) -> ThreadUse:
    settle()
    return thread_use(call, _COUNTING)


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['engine']} {row['member']}"


def _mean(sessions: Sequence[Session]) -> np.ndarray:
    """The ensemble as a user of the peer would write it."""
    return mean_logits([session() for session in sessions])
