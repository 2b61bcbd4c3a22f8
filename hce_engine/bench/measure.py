"""One comparison: build, check, time in turns, compare. Everything that is measured together is in one run.

    report = measure(artifact, peers, sample, batches=(1, 128), threads=(1, 2))

Per batch size and thread count every session is built and checked, every row's threads are counted, and the rows that passed
are timed in turns (comparison.py). cuda_measure.py does it on a GPU.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from .. import __version__
from ..artifact import Artifact
from ..backends.reference import mean_logits
from ..errors import UnsupportedError
from ..machine import processor
from ..threads import available_threads
from .comparison import Admission, Built, Comparison, Rows, Say
from .conditions import ThreadUse, Watch, in_turns, thread_use
from .memory import keep_freed_memory
from .peers import PEERS, Peer, Session
from .report import OURS, add_verdicts, claims, setting_of
from .sample import Sample
from .subject import Subject
from .turns import Call, HostClock, settle
from .work import ENSEMBLE, Part

ROUNDS, SECONDS = 9, 0.2
_COUNTING = 0.1  # seconds over which threads are counted


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
            setting = _Setting(subject, crew, batch, count, limits or {}, say)
            setting.fill(names, peers)
            watch, restless = Watch(), setting.time(rounds, seconds)
            conditions.append({"batch": batch, "threads": count, "restless_turns": restless, **watch.read(count)})
            all_rows += setting.rows
            del setting  # its sessions make room for those of the next
    crowded = {setting_of(condition) for condition in conditions if condition["crowded"]}
    add_verdicts(all_rows, crowded)
    packages = {name: found for peer in peers for name, found in peer.versions().items()}
    return {
        "machine": f"{processor()}, {subject.isa}", "isa": subject.isa, "isa_limits": dict(limits or {}), "sample": sample.source,
        "keeps_freed_memory": kept,
        "versions": {"hce_engine": __version__, "python": platform.python_version(), "numpy": np.__version__, **packages},
        "round_count": rounds, "turn_seconds": seconds, "conditions": conditions,
        "claims": claims(all_rows, crowded, {peer.name: peer.precision for peer in peers}), "rows": all_rows,
    }


class _Setting(Comparison):
    """One batch size and thread count."""

    def __init__(
        self, subject: Subject, crew: Mapping[str, Peer], batch: int, threads: int, limits: Mapping[str, str], say: Say
    ) -> None:
        super().__init__(subject, crew, {"batch": batch, "threads": threads}, batch, threads, HostClock(), say)
        self.limits = limits

    def own_row(self, member: str) -> None:
        start = perf_counter()
        engine = self.subject.engine(member, self.threads)
        images = self.subject.batch(self.batch)
        runs = f"{member} from pixels, {engine.isa}" if member != ENSEMBLE else f"{', '.join(engine.member_names)} at once from pixels, {engine.isa}"
        row = self.add(OURS, member, runs, {"hce_engine": __version__}, _facts(held=True))
        row["build_seconds"] = perf_counter() - start
        call = partial(engine, images)
        self.admit(row, Admission(call, [self.subject.check(member)], _count(call)))

    def facts_of(self, peer: Peer) -> dict[str, Any]:
        return _facts(held=not self.limits or bool(set(self.limits) & set(peer.isa_variables)))

    def together(self, peer: Peer, parts: int) -> bool:
        return parts > 1 and peer.own_threads and self.threads > 1

    def threads_of(self, session: Session) -> ThreadUse:
        return _count(session)

    def join(self, parts: Sequence[Part], built: Sequence[Built]) -> Admission:
        checks = [part.check for part in built]
        if len(built) == 1:
            return Admission(built[0].session, checks, built[0].use)
        call = partial(_mean, [part.session for part in built])
        return Admission(call, checks, in_turns([part.use for part in built if part.use is not None], _count(call)))


def _facts(held: bool) -> dict[str, Any]:
    """Keys of the rows of a CPU."""
    return {"isa_held": held, "threads_used": None, "processors_used": None}


def _count(call: Call) -> ThreadUse:
    settle()
    return thread_use(call, _COUNTING)


def _mean(sessions: Sequence[Session]) -> np.ndarray:
    """The ensemble as a user of the peer would write it."""
    return mean_logits([session() for session in sessions])
