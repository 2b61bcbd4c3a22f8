"""The artifact under comparison: its engines, its float networks for peers, its logits on the sample, and the checks on them."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..artifact import Artifact
from ..backends import reference
from ..engine import Engine
from ..preprocess import to_nchw
from .checks import Check, logits_of, same_as_reference, same_classes, same_logits
from .networks import is_float, normalized, without_normalization
from .peers import Network, Session
from .sample import Sample
from .work import ENSEMBLE

_REFERENCE_IMAGES = 4  # the reference back end takes seconds per image of 224 x 224 pixels


class Subject:
    """Keeps what does not depend on batch size and threads; results of our engine do not, so its logits are made once."""

    def __init__(self, artifact: Artifact, sample: Sample, isa: str | None) -> None:
        self.artifact, self.graph, self.sample = artifact, artifact.graph, sample
        self._isa = isa
        self.isa = self.engine(artifact.graph.members[0].name, 1).isa
        self._networks: dict[str, Network] = {}
        self._logits: dict[str, np.ndarray] = {}
        self._checks: dict[str, Check] = {}

    def engine(self, member: str, threads: int) -> Engine:
        """Our engine for a row: one member, or all that vote."""
        names = tuple(m.name for m in self.graph.voters) if member == ENSEMBLE else (member,)
        return Engine(self.artifact, "cpu", threads=threads, isa=self._isa, members=names)

    def batch(self, size: int) -> np.ndarray:
        """Images of the sample as our engine takes them, repeated as often as needed."""
        images = self.sample.images
        return np.ascontiguousarray(np.resize(images, (size, *images.shape[1:])))

    def normalized_batch(self, member: str, size: int) -> np.ndarray:
        """The same images as peers take them."""
        return normalized(self.graph.only(member), self.batch(size), self.artifact.input)

    def network(self, member: str) -> Network:
        """A float member for peers; one object per member, so that they can keep what they made of it."""
        if member not in self._networks:
            graph = self.graph.only(member)
            calibration = normalized(graph, self.sample.calibration, self.artifact.input)
            self._networks[member] = Network(member, without_normalization(graph), calibration)
        return self._networks[member]

    def logits(self, member: str) -> np.ndarray:
        """Our engine's logits of the sample."""
        if member not in self._logits:
            self._logits[member] = self.engine(member, 1)(self.sample.images)
        return self._logits[member]

    def check(self, member: str) -> Check:
        """Our engine against the reference back end; an ensemble is the mean of members that are checked one by one."""
        if member not in self._checks:
            voters = [m.name for m in self.graph.voters] if member == ENSEMBLE else [member]
            graph = self.graph.only(*voters)
            images = self.sample.images[:_REFERENCE_IMAGES]
            expected = reference.run(graph, to_nchw(images, self.artifact.input))
            exact = all(not is_float(graph, name) for name in voters)
            wanted = reference.mean_logits([expected[name] for name in voters])
            self._checks[member] = same_as_reference(self.engine(member, 1)(images), wanted, exact)
        return self._checks[member]

    def check_peer(self, session: Session, member: str, precision: str, batch: int) -> Check:
        """A peer's session of a float member against our engine's logits of the same member."""
        prepare = partial(normalized, self.graph.only(member), spec=self.artifact.input)
        theirs = logits_of(session, self.sample.images, batch, prepare)
        if precision == "int8":
            return same_classes(theirs, self.logits(member), self.sample.real)
        return same_logits(theirs, self.logits(member))
