"""A tiny ensemble, and peers that are made of the reference back end so that tests can make them fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from hce_engine.artifact import Artifact
from hce_engine.backends import reference
from hce_engine.bench.peers import Network, Peer, Session
from hce_engine.bench.sample import Sample, random_images
from hce_engine.graph import Graph, merge
from hce_engine.preprocess import InputSpec
from tests.backends.graphs import GraphBuilder

SHAPE = (3, 8, 8)
SPEC = InputSpec("uint8_nhwc", SHAPE, (0.5,) * 3, (0.25,) * 3)


def members() -> dict[str, Graph]:
    q, s, o = (GraphBuilder(SHAPE, seed=seed) for seed in (10, 2, 3))
    graphs = {"q": q.finish(q.qconv(q.qconv("image", 16, weight_dtype="s8", out="u4"), 2, stride=(4, 4)))}
    for name, builder, width in (("s", s, 5), ("o", o, 8)):
        x = builder.conv(builder.normalize(), width, low=0.0)
        x = builder.conv(x, width, low=0.0, residual=x)
        graphs[name] = builder.finish(builder.conv(x, 2, stride=(4, 4)))
    return graphs


@pytest.fixture(scope="session")
def ensemble() -> Artifact:
    """q quantized, s and o float32, o as the reference; 8 classes."""
    return Artifact(merge(members(), {"o": "reference"}), SPEC)


@pytest.fixture
def noise() -> Sample:
    sample = random_images(SPEC)
    return replace(sample, images=sample.images[:10], calibration=sample.calibration[:4])


class FakeSession(Session):
    def __init__(self, network: Network, change: Callable[[np.ndarray], np.ndarray]) -> None:
        self.network, self.change = network, change
        self.calls = 0

    def load(self, images: np.ndarray) -> None:
        assert images.dtype == np.float32 and images.flags.c_contiguous
        self.logits = self.change(reference.run(self.network.graph, images)[self.network.member])

    def __call__(self) -> np.ndarray:
        self.calls += 1
        return self.logits


def fake(
    name: str, precision: str = "fp32", *, change: Callable[[np.ndarray], np.ndarray] = lambda z: z, absent: str | None = None,
    error: Exception | None = None, float_peer: str | None = None,
) -> Peer:
    """A peer that computes the right logits, changed by ``change``; or is missing; or cannot be built."""

    class Fake(Peer):
        packages = ("numpy",)

        def __init__(self) -> None:
            self.sessions: list[FakeSession] = []

        def missing(self) -> str | None:
            return absent

        def describe(self, network: Network) -> str:
            return f"{network.member} on a fake"

        def build(self, network: Network, batch: int, threads: int, together: bool = False) -> Session:
            if error:
                raise error
            self.sessions.append(FakeSession(network, change))
            return self.sessions[-1]

    Fake.name, Fake.precision, Fake.float_peer = name, precision, float_peer or name
    return Fake()
