"""The real peers, where they are installed, on every float operation and on the tiny ensemble."""

from __future__ import annotations

import os

import numpy as np
import pytest

from hce_engine.artifact import Artifact
from hce_engine.backends import reference
from hce_engine.bench.isa import hold_peers
from hce_engine.bench.networks import normalized, without_normalization
from hce_engine.bench.peers import PEERS, Network, Peer
from hce_engine.bench.sample import Sample
from hce_engine.bench.subject import Subject
from hce_engine.errors import UnsupportedError
from hce_engine.graph import Graph
from tests.backends.graphs import GraphBuilder

pytestmark = pytest.mark.filterwarnings("ignore")  # other projects' warnings are not ours to fail on


def peer(name: str) -> Peer:
    """The peer, unless it is not installed here."""
    made = PEERS[name]()
    if made.missing():
        pytest.skip(made.missing() or "")
    return made


def stack(b: GraphBuilder) -> str:
    """Every float operation but ``mean``, as a map."""
    x = b.conv("image", 8, low=0.0, high=6.0)
    y = b.conv(x, 8, kernel=(3, 1), padding=(1, 0), groups=8, low=0.0)
    x = b.conv(y, 8, kernel=(1, 1), padding=(0, 0), residual=x, low=0.0)
    x = b.add("max_pool2d", [x], {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1)})
    x = b.add("avg_pool2d", [x], {"kernel": (2, 2), "stride": (1, 1), "padding": (1, 1), "count_include_pad": 0})
    y = b.add("strided_slice", [x], {"h": (0, 9, 2), "w": (1, 8, 2)})
    y = b.add("channel_pad", [y], {"before": 1, "after": 2})
    z = b.conv(x, 11, stride=(2, 2), dilation=(2, 2), padding=(2, 3))
    z = b.add("strided_slice", [z], {"h": (0, 5, 1), "w": (0, 4, 1)})
    x = b.add("add", [y, z], {"min": 0.0, "max": None})
    x = b.add("concat", [x, b.add("clamp", [y], {"min": -0.5, "max": None})])
    return b.add("clamp", [x], {"min": None, "max": 4.0})


def float_graph() -> Graph:
    b = GraphBuilder((3, 8, 8), "f32", seed=4)
    x = b.add("flatten", [b.add("global_avg_pool", [stack(b)])])
    features = b.specs[x].shape[0]
    heads = []
    for _ in range(2):
        params = {"weight": b.rng.normal(0, 1, (5, features)).astype(np.float32), "bias": b.rng.normal(0, 1, 5).astype(np.float32)}
        heads.append(b.add("linear", [x], {"min": None, "max": None}, params))
    return b.finish(b.add("mean", heads))


@pytest.mark.parametrize("name", [name for name in PEERS if PEERS[name].precision == "fp32" and name != "torch-compile"])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_float_operation_means_the_same_there(name: str, batch: int) -> None:
    made = peer(name)
    graph = float_graph()
    images = np.random.default_rng(0).normal(0, 1, (batch, 3, 8, 8)).astype(np.float32)
    session = made.build(Network("m0", graph, images), batch, 1)
    session.load(images)
    expected = reference.run(graph, images)["m0"]
    np.testing.assert_allclose(session(), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_codes_are_refused_by_the_onnx_model(ensemble: Artifact) -> None:
    pytest.importorskip("onnx")
    from hce_engine.bench.peers.onnx_model import to_onnx

    with pytest.raises(UnsupportedError, match="float original"):
        to_onnx(ensemble.graph.only("q"))


@pytest.mark.parametrize("name", PEERS)
def test_peers_pass_their_check(name: str, ensemble: Artifact, noise: Sample) -> None:
    made, subject = peer(name), Subject(ensemble, noise, None)
    session = made.build(subject.network("o"), 4, 1, together=True)
    check = subject.check_peer(session, "o", made.precision, 4)
    assert check.passed, check.text
    assert made.describe(subject.network("o")).startswith("o ") or made.describe(subject.network("o")).startswith("o,")
    assert set(made.versions()) == set(made.packages)


@pytest.mark.parametrize("name", ["onnxruntime-fp32", "openvino-fp32", "openvino-int8"])
def test_profiles_name_our_layers(name: str, ensemble: Artifact, noise: Sample) -> None:
    made, network = peer(name), Subject(ensemble, noise, None).network("o")
    layers = made.profile(network, 4, 1, calls=3)
    convolutions = {node.name for node in network.graph.nodes if node.op == "conv2d"}
    assert all(any(conv in layer.name for layer in layers) for conv in convolutions)
    assert all(layer.seconds >= 0 for layer in layers)
    assert 0 < sum(layer.seconds for layer in layers) < 1


def test_a_peer_without_a_profiler_says_so(ensemble: Artifact, noise: Sample) -> None:
    with pytest.raises(UnsupportedError, match="profiler"):
        PEERS["torch"]().profile(Subject(ensemble, noise, None).network("o"), 1, 1, 1)


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    made = PEERS["torch"]()
    monkeypatch.setattr(type(made), "packages", ("torch", "no-such-package"))
    assert made.missing() == "no-such-package not installed; pip install 'hce-engine[peers]'"
    assert set(made.versions()) == {"torch"}


def test_normalization_is_taken_off_and_done_before(ensemble: Artifact, noise: Sample) -> None:
    graph = ensemble.graph.only("o")
    bare = without_normalization(graph)
    assert bare.input.spec.dtype == "f32"
    assert all(node.op != "normalize" for node in bare.nodes)
    images = normalized(graph, noise.images, ensemble.input)
    expected = reference.run(graph, noise.images.transpose(0, 3, 1, 2))["o"]
    np.testing.assert_array_equal(reference.run(bare, images)["o"], expected)


def test_instruction_sets_are_held_before_the_peers_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    for key in limits:
        monkeypatch.delenv(key, raising=False)
    with pytest.raises(UnsupportedError, match="ONEDNN_MAX_CPU_ISA=AVX2"):  # torch is here already
        hold_peers("avx2")
    for key, value in limits.items():
        monkeypatch.setenv(key, value)
    assert hold_peers("avx2") == limits
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX2"
