"""The comparison on a GPU: our members and ensemble beside peers on the same card, in turns.

    report = measure(artifact, peers, sample, device, batches=(256, 1024))

Each batch size is measured on two paths, each a setting of its own:

    device   images and logits stay on the GPU, calls are queued one behind the other; timed by CUDA events
    host     images of the host to logits on the host, one batch after the other; timed by the host's clock

Peers get normalised images in their own type on the first path, and the pixels that we get on the second.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import __version__
from ..artifact import Artifact
from ..errors import HceError
from ..machine import processor
from .checks import Check, in_batches, same_logits
from .comparison import Admission, Built, Comparison, Rows, Say
from .conditions import Watch
from .cuda_calls import DeviceCall, HostCall
from .cuda_device import Backend, Device
from .measure import ROUNDS, SECONDS
from .networks import is_float, normalization
from .peers import CudaPeer, CudaSession, Peer, Session
from .report import OURS, add_verdicts, claims, setting_of
from .sample import Sample
from .subject import Subject
from .turns import Call
from .work import ENSEMBLE, Part

DEVICE, HOST = "device", "host"
PATHS = (DEVICE, HOST)


def measure(
    artifact: Artifact, peers: Sequence[CudaPeer], sample: Sample, device: Device, *, batches: Sequence[int],
    members: Sequence[str] | None = None, rounds: int = ROUNDS, seconds: float = SECONDS, say: Say = lambda text: None,
) -> dict[str, Any]:
    """What ``hce bench --device cuda --json`` writes, but for the model's name; arguments as of :func:`measure.measure`.

    What our engine cannot run, for want of memory for example, is a row that says so.
    """
    names = tuple(members or (m.name for m in artifact.graph.members))
    subject = Subject(artifact, sample, None)
    crew = {peer.name: peer for peer in peers}
    all_rows: Rows = []
    conditions = []
    for batch in batches:
        shared = _Shared(subject, device, crew, {}, {}, batch)
        for path in PATHS:
            say(f"batch {batch}, path {path}")
            setting = _Setting(shared, path, say)
            setting.fill(names, peers)
            watch = Watch()
            with device.clocks() as clocks:
                restless = setting.time(rounds, seconds)
            conditions.append({"batch": batch, "path": path, "restless_turns": restless, **watch.read(1), "clocks": clocks.summary()})
            all_rows += setting.rows
        del setting, shared  # what they hold makes room for the next batch size
        device.release()
    crowded = {setting_of(condition) for condition in conditions if condition["crowded"]}
    add_verdicts(all_rows, crowded)
    packages = {name: found for peer in peers for name, found in peer.versions().items()}
    return {
        "device": "cuda", "machine": device.name, "gpu": device.facts(), "processor": processor(), "arithmetic": device.arithmetic,
        "sample": sample.source,
        "versions": {"hce_engine": __version__, "python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__,
                     **packages},
        "round_count": rounds, "turn_seconds": seconds, "conditions": conditions,
        "claims": claims(all_rows, crowded, {peer.name: peer.precision for peer in peers}), "rows": all_rows,
    }


class _Own(NamedTuple):
    """Our engine for a row, warm, and what its logits were found to be."""

    backend: Backend
    checks: tuple[Check, ...]
    seconds: float


class _Shared(NamedTuple):
    """What the paths of one batch size share."""

    subject: Subject
    device: Device
    crew: Mapping[str, Peer]
    sessions: dict[tuple[Part, bool], Built | str]
    engines: dict[str, _Own | str]
    batch: int


class _Setting(Comparison):
    """One batch size on one path."""

    def __init__(self, shared: _Shared, path: str, say: Say) -> None:
        device, batch = shared.device, shared.batch
        timer = device.events() if path == DEVICE else device.clock()
        super().__init__(shared.subject, shared.crew, {"batch": batch, "path": path}, batch, 1, timer, say, shared.sessions)
        self.path, self.device, self._engines = path, device, shared.engines

    def own_row(self, member: str) -> None:
        names = [m.name for m in self.subject.graph.voters] if member == ENSEMBLE else [member]
        runs = f"{member} from pixels" if member != ENSEMBLE else f"{', '.join(names)} from pixels, mean on the GPU"
        multiplied = self.device.arithmetic if any(is_float(self.subject.graph, name) for name in names) else "codes"
        facts = {"precision": multiplied, "tf32": False, "concurrency": None}
        row = self.add(OURS, member, runs, {"hce_engine": __version__}, facts)
        own = self._engine(member, names)
        if isinstance(own, str):
            row["skipped"] = own
            return
        timing = own.backend.timing(self.batch)
        row["build_seconds"], row["concurrency"] = own.seconds, None if timing is None else timing.to_json()
        self.admit(row, Admission(self._own_call(own.backend), own.checks))

    def _own_call(self, backend: Backend) -> Call:
        images = self.subject.batch(self.batch)
        given = torch.from_numpy(images).to(self.device.runtime.device) if self.path == DEVICE else images
        return partial(backend.run, given, ensemble_only=True)

    def _engine(self, member: str, names: Sequence[str]) -> _Own | str:
        if member not in self._engines:
            self.say(f"warming up {member}")
            try:
                self._engines[member] = self._warm(member, names)
            except HceError as error:
                self._engines[member] = str(error)
        return self._engines[member]

    def _warm(self, member: str, names: Sequence[str]) -> _Own:
        """Everything is checked in batches of the size that is timed: other sizes run other programs."""
        start = perf_counter()
        backend = self.device.backend(self.subject.graph.only(*names))
        backend.warm_up([self.batch])
        seconds = perf_counter() - start
        run = partial(backend.run, ensemble_only=True)
        images, allowed = self.subject.sample.images, self.subject.largest_error(member, self.device.arithmetic)
        logits = in_batches(lambda some: np.asarray(run(some)["ensemble"]), images, self.batch)
        # Both engines may be off by what is allowed.
        checks = (self.subject.against_reference(member, logits, allowed), self.subject.against_cpu(member, logits, 2 * allowed))
        batch = self.subject.batch(self.batch)
        from_gpu = run(torch.from_numpy(batch).to(self.device.runtime.device))["ensemble"].cpu().numpy()
        same = from_gpu.tobytes() == np.asarray(run(batch)["ensemble"]).tobytes()
        return _Own(backend, (*checks, Check(same, f"tensors and arrays give {'the same bytes' if same else 'different logits'}")), seconds)

    def facts_of(self, peer: Peer) -> dict[str, Any]:
        return {"precision": peer.precision, "tf32": peer.precision == "tf32", "concurrency": None}

    def together(self, peer: Peer, parts: int) -> bool:
        return False

    def threads_of(self, session: Session) -> None:
        return None

    def join(self, parts: Sequence[Part], built: Sequence[Built]) -> Admission:
        checks = [part.check for part in built]
        sessions = [part.session for part in built if isinstance(part.session, CudaSession)]
        if self.path == DEVICE:
            return Admission(DeviceCall(self.device.runtime, sessions), checks)
        peers = [self.crew[part.peer] for part in parts]
        constants = [normalization(self.subject.graph.only(part.network)) for part in parts]
        compiled = all(isinstance(peer, CudaPeer) and peer.compiled for peer in peers)
        call = HostCall(self.device, self.subject.batch(self.batch), sessions, constants, compiled)
        return Admission(call, [*checks, self._same_from_host(call, parts, sessions, peers)])

    def _same_from_host(self, call: HostCall, parts: Sequence[Part], sessions: Sequence[CudaSession], peers: Sequence[Peer]) -> Check:
        """Pixels from the host give what the sessions, which were checked, give for normalised images; these are gone by then."""
        for part, session in zip(parts, sessions, strict=True):
            session.load(self.subject.normalized_batch(part.network, self.batch))
        network = DeviceCall(self.device.runtime, sessions)
        network()
        expected = network.result().cpu().numpy().copy()
        for session in sessions:
            session.load(np.zeros(tuple(session.input.shape), np.float32))
        allowed = max(self.subject.largest_error(part.network, peer.precision) for part, peer in zip(parts, peers, strict=True))
        check = same_logits(call(), expected, allowed)
        return Check(check.passed, f"from pixels of the host: {check.text}")
