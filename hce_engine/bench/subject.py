"""The artifact under comparison: its engines, its float networks for peers, its logits on the sample, and the checks on them."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..artifact import Artifact
from ..backends import reference
from ..engine import Engine
from ..graph import Graph
from ..preprocess import to_nchw
from .checks import LARGEST_ERROR, Check, largest_error, logits_of, same_as, same_classes, same_logits
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
        self._references: dict[str, np.ndarray] = {}

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
        """Our CPU engine's logits of the sample."""
        if member not in self._logits:
            self._logits[member] = self.engine(member, 1)(self.sample.images)
        return self._logits[member]

    def check(self, member: str) -> Check:
        """Our CPU engine against the reference back end; an ensemble is the mean of members that are checked one by one."""
        if member not in self._checks:
            images = self.sample.images[:_REFERENCE_IMAGES]
            self._checks[member] = self.against_reference(member, self.engine(member, 1)(images))
        return self._checks[member]

    def against_reference(self, member: str, logits: np.ndarray, allowed: float = LARGEST_ERROR) -> Check:
        """logits: of the sample, of which the first few are compared."""
        graph = self._voters(member)
        if member not in self._references:
            images = self.sample.images[:_REFERENCE_IMAGES]
            expected = reference.run(graph, to_nchw(images, self.artifact.input))
            self._references[member] = reference.mean_logits([expected[m.name] for m in graph.members])
        wanted = self._references[member]
        return same_as("reference", logits[: len(wanted)], wanted, self._exact(graph), allowed)

    def against_cpu(self, member: str, logits: np.ndarray, allowed: float) -> Check:
        """logits: of the whole sample, by our kernels on another device."""
        return same_as("CPU", logits, self.logits(member), self._exact(self._voters(member)), allowed)

    def largest_error(self, member: str, arithmetic: str) -> float:
        """What logits of the row may differ by if floats are multiplied so, of the largest logit."""
        graph = self._voters(member)
        return max(largest_error(arithmetic, graph.only(m.name)) for m in graph.members)

    def _voters(self, member: str) -> Graph:
        """Of a row: one member, or all that vote."""
        return self.graph.only(*(m.name for m in self.graph.voters)) if member == ENSEMBLE else self.graph.only(member)

    @staticmethod
    def _exact(graph: Graph) -> bool:
        return all(not is_float(graph, m.name) for m in graph.members)

    def check_peer(self, session: Session, member: str, precision: str, batch: int) -> Check:
        """A peer's session of a float member against our CPU engine's logits of the same member."""
        prepare = partial(normalized, self.graph.only(member), spec=self.artifact.input)
        theirs = logits_of(session, self.sample.images, batch, prepare)
        if precision == "int8":
            return same_classes(theirs, self.logits(member), self.sample.real)
        return same_logits(theirs, self.logits(member), self.largest_error(member, precision))
