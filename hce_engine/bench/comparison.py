"""One setting of a comparison, whatever the device: sessions are built and checked, and the rows that passed are timed in turns.

A peer that is missing, fails to build or computes something else is a row that says so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

from .checks import Check
from .conditions import ThreadUse
from .peers import Peer, Session
from .report import Setting, add_check, add_times, new_row
from .subject import Subject
from .turns import Call, Timer, interleaved
from .work import ENSEMBLE, Part, PeerRow, own_rows, peer_rows

Say = Callable[[str], None]
Rows = list[dict[str, Any]]
Made = TypeVar("Made")


@dataclass(frozen=True)
class Built:
    """A session with its input in place, what its logits were found to be, and how long building it took. use: its threads, where
    they are counted."""

    session: Session
    check: Check
    seconds: float
    use: ThreadUse | None = None


@dataclass(frozen=True)
class Admission:
    """What a row wants to be timed with, and what was found of it."""

    call: Call
    checks: Sequence[Check]
    use: ThreadUse | None = None


class Comparison(ABC):
    """rows: of one setting, in the order in which they are reported.

    crew: every peer that may be asked for a part of a row, by name.  batch, threads: what sessions are built for.  sessions: those
    that there are already, or why there is none; settings may share them.
    """

    def __init__(
        self, subject: Subject, crew: Mapping[str, Peer], setting: Setting, batch: int, threads: int, timer: Timer, say: Say,
        sessions: dict[tuple[Part, bool], Built | str] | None = None,
    ) -> None:
        self.subject, self.crew, self.setting, self.batch, self.threads = subject, crew, setting, batch, threads
        self.timer, self.say = timer, say
        self.rows: Rows = []
        self._calls: dict[str, Call] = {}
        self._sessions = {} if sessions is None else sessions

    def fill(self, members: Sequence[str], peers: Sequence[Peer]) -> None:
        for member in own_rows(self.subject.graph, members):
            self.own_row(member)
        for planned in peer_rows(self.subject.graph, members, peers):
            self._peer_row(planned)

    def time(self, rounds: int, seconds: float) -> int:
        """Adds times to the rows that were verified; how many turns began on a process that was not quiet."""
        self.say(f"timing {len(self._calls)} rows in {rounds} rounds")
        series, restless = interleaved(self._calls, rounds, seconds, self.timer)
        for row in self.rows:
            if row["verified"]:
                add_times(row, series[_name(row)])
        return restless

    # -- what depends on the device -----------------------------------------------------------------------------------

    @abstractmethod
    def own_row(self, member: str) -> None:
        """Adds our row of a member or of the ensemble, by :meth:`add` and :meth:`admit`."""

    @abstractmethod
    def facts_of(self, peer: Peer) -> dict[str, Any]:
        """Keys of a peer's row that this device adds."""

    @abstractmethod
    def together(self, peer: Peer, parts: int) -> bool:
        """Whether a session of a row of so many parts must be built for being called in turn with others."""

    @abstractmethod
    def threads_of(self, session: Session) -> ThreadUse | None:
        """Who works in a session's calls, where threads are counted."""

    @abstractmethod
    def join(self, parts: Sequence[Part], built: Sequence[Built]) -> Admission:
        """One call of all parts of a row; whatever it raises is the row's reason."""

    # -- rows ---------------------------------------------------------------------------------------------------------

    def add(self, engine: str, member: str, runs: str, versions: Mapping[str, str], facts: Mapping[str, Any]) -> dict[str, Any]:
        row = new_row(engine, member, self.setting, runs, versions) | dict(facts)
        self.rows.append(row)
        return row

    def admit(self, row: dict[str, Any], asked: Admission) -> None:
        """The row's call is timed if everything held."""
        add_check(row, asked.checks, asked.use)
        if row["verified"]:
            self._calls[_name(row)] = asked.call

    def _peer_row(self, planned: PeerRow) -> None:
        peer = self.crew[planned.engine]
        texts = [self.crew[part.peer].describe(self.subject.network(part.network)) for part in planned.parts]
        runs = f"mean of {' and '.join(texts)}" if planned.member == ENSEMBLE and texts else "".join(texts)
        row = self.add(planned.engine, planned.member, runs, peer.versions(), self.facts_of(peer))
        parts = [self._built(part, len(planned.parts)) for part in planned.parts]
        built = [part for part in parts if not isinstance(part, str)]
        row["skipped"] = planned.skipped or next((part for part in parts if isinstance(part, str)), None)
        if row["skipped"]:
            return
        row["build_seconds"] = sum(part.seconds for part in built)
        joined = attempt(partial(self.join, planned.parts, built))
        if isinstance(joined, str):
            row["skipped"] = joined
        else:
            self.admit(row, joined)

    def _built(self, part: Part, parts: int) -> Built | str:
        """The checked session of a network on a peer, or why it cannot be built."""
        key = (part, self.together(self.crew[part.peer], parts))
        if key not in self._sessions:
            self.say(f"building {part.network} on {part.peer}")
            self._sessions[key] = attempt(partial(self._build, part, key[1]))
        return self._sessions[key]

    def _build(self, part: Part, together: bool) -> Built:
        peer, start = self.crew[part.peer], perf_counter()
        session = peer.build(self.subject.network(part.network), self.batch, self.threads, together=together)
        seconds = perf_counter() - start
        check = self.subject.check_peer(session, part.network, peer.precision, self.batch)
        session.load(self.subject.normalized_batch(part.network, self.batch))
        return Built(session, check, seconds, self.threads_of(session))


def attempt(build: Callable[[], Made]) -> Made | str:
    """What is built, or why it is not: peers raise whatever they like, and none of it may end the comparison."""
    try:
        return build()
    except Exception as error:
        return f"{type(error).__name__} while building: {' '.join(str(error).split())[:200]}"


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['engine']} {row['member']}"
