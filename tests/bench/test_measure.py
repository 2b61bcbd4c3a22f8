"""The whole comparison with peers that behave and peers that do not."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from hce_engine.artifact import Artifact
from hce_engine.bench import conditions
from hce_engine.bench import measure as module
from hce_engine.bench.conditions import ThreadUse
from hce_engine.bench.measure import measure
from hce_engine.bench.peers import Peer
from hce_engine.bench.sample import Sample, random_images
from hce_engine.engine import Engine
from hce_engine.errors import UnsupportedError
from hce_engine.graph import merge
from hce_engine.preprocess import InputSpec
from tests.backends.graphs import GraphBuilder
from tests.bench.conftest import SHAPE, fake

KEYS = {
    "engine", "member", "batch", "threads", "runs", "versions", "isa_held", "skipped", "verified", "check", "build_seconds", "threads_used",
    "processors_used", "images_per_second", "seconds", "noisy", "against", "rounds",
}


def run(artifact: Artifact, sample: Sample, *peers: Peer, **options: Any) -> tuple[dict[str, Any], dict[tuple[str, str], dict[str, Any]]]:
    settings = {"batches": (4,), "threads": (1,), "rounds": 6, "seconds": 0.004, **options}
    report = measure(artifact, peers, sample, **settings)
    return report, {(row["engine"], row["member"]): row for row in report["rows"]}


def test_a_report_has_every_row_with_every_key(ensemble: Artifact, noise: Sample) -> None:
    report, rows = run(ensemble, noise, fake("a-fp32"), fake("a-int8", "int8", float_peer="a-fp32"))
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert list(rows) == [
        ("hce", "q"), ("hce", "s"), ("hce", "o"), ("hce", "ensemble"), ("a-fp32", "s"), ("a-fp32", "o"), ("a-fp32", "ensemble"),
        ("a-int8", "q"), ("a-int8", "ensemble"),
    ]
    for row in report["rows"]:
        assert set(row) == KEYS
        assert row["verified"] is True and row["skipped"] is None and row["check"]
        assert (row["batch"], row["threads"], row["threads_used"]) == (4, 1, 1)
        assert row["images_per_second"] == pytest.approx(4 / row["seconds"]["median"])
        assert row["seconds"]["minimum"] <= row["seconds"]["quartiles"][0] <= row["seconds"]["median"] <= row["seconds"]["quartiles"][1]
        assert len(row["rounds"]) == 6 and sum(map(len, row["rounds"])) == row["seconds"]["samples"]
        if row["engine"] == "hce":
            assert row["against"] is None
        else:
            assert row["against"]["interval"][0] <= row["against"]["ratio"] <= row["against"]["interval"][1]
            assert row["against"]["verdict"] == "SLOWER"  # a fake answers at once
    assert "mean of o on a fake and s on a fake" in rows["a-int8", "ensemble"]["runs"]
    assert "to the bit" in rows["hce", "q"]["check"]
    (claim,) = report["claims"]
    assert (claim["peer"], claim["precision"], claim["verdict"], claim["batch"], claim["threads"]) == ("a-fp32", "fp32", "SLOWER", 4, 1)
    assert report["conditions"][0]["batch"] == 4
    assert report["versions"]["numpy"] == np.__version__
    assert len(np.unique(Engine(ensemble, "reference", members=("q",))(noise.images))) > 10  # or equal bits would say little


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts are given whatever else the machine does."""
    monkeypatch.setattr(conditions, "crowded", lambda others, threads, cores: False)


def test_a_crowded_machine_gives_no_verdicts(ensemble: Artifact, noise: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "crowded", lambda others, threads, cores: True)
    report, rows = run(ensemble, noise, fake("a-fp32"))
    assert report["conditions"][0]["crowded"]
    assert rows["a-fp32", "s"]["against"]["verdict"] == "UNCLEAR"
    assert rows["a-fp32", "s"]["against"]["interval"][1] < 1
    assert report["claims"][0]["verdict"] == "UNCLEAR"


def test_a_peer_that_computes_something_else_is_not_timed(ensemble: Artifact, noise: Sample) -> None:
    wrong = fake("wrong-fp32", change=lambda z: z + np.float32(0.1))
    random = fake("wrong-int8", "int8", change=lambda z: z[::-1] * -3, float_peer="right-fp32")
    _, rows = run(ensemble, noise, wrong, fake("right-fp32"), random)
    for key, row in rows.items():
        bad = key[0].startswith("wrong")
        assert row["verified"] is not bad
        assert (row["rounds"] is None) is bad and (row["images_per_second"] is None) is bad
    assert "differ by at most 1.0e-01" in rows["wrong-fp32", "o"]["check"]
    assert "relative error" in rows["wrong-int8", "q"]["check"]


def test_a_missing_or_broken_peer_is_a_row_and_no_error(ensemble: Artifact, noise: Sample) -> None:
    absent, broken = fake("absent-fp32", absent="x not installed"), fake("broken-fp32", error=RuntimeError("no such\n kernel"))
    report, rows = run(ensemble, noise, absent, broken)
    assert rows["absent-fp32", "o"]["skipped"] == "x not installed"
    assert rows["broken-fp32", "ensemble"]["skipped"] == "RuntimeError while building: no such kernel"
    assert all(row["check"] is None and row["rounds"] is None for (name, _), row in rows.items() if name != "hce")
    assert report["claims"] == []


def test_a_peer_with_too_many_threads_is_not_timed(ensemble: Artifact, noise: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "thread_use", lambda call, seconds: ThreadUse(2 if type(call).__name__ == "FakeSession" else 1, 1.0))
    _, rows = run(ensemble, noise, fake("greedy-fp32"))
    assert rows["hce", "s"]["verified"]
    assert not rows["greedy-fp32", "s"]["verified"]
    assert "used 2 threads" in rows["greedy-fp32", "s"]["check"]
    assert rows["greedy-fp32", "ensemble"]["rounds"] is None


def test_settings_are_a_grid_and_sessions_are_shared_within_one(ensemble: Artifact, noise: Sample) -> None:
    peer, lines = fake("a-fp32"), []
    report, _ = run(ensemble, noise, peer, batches=(1, 3), members=("q", "s"), say=lines.append)
    assert [(c["batch"], c["threads"]) for c in report["conditions"]] == [(1, 1), (3, 1)]
    assert {row["member"] for row in report["rows"]} == {"q", "s", "ensemble"}
    assert [s.network.member for s in peer.sessions] == ["s", "o"] * 2  # type: ignore[attr-defined]
    assert "building o on a-fp32" in lines
    assert lines[-1] == "timing 5 rows in 6 rounds"


def test_peers_without_a_switch_for_the_instruction_set_say_so(ensemble: Artifact, noise: Sample) -> None:
    report, rows = run(ensemble, noise, fake("a-fp32"), isa="portable", limits={"ONEDNN_MAX_CPU_ISA": "SSE41"})
    assert rows["hce", "s"]["isa_held"] and not rows["a-fp32", "s"]["isa_held"]
    assert report["claims"] == []  # nobody to compare with
    assert report["isa"] == "portable" and report["isa_limits"] == {"ONEDNN_MAX_CPU_ISA": "SSE41"}


def test_float_images_and_no_normalization() -> None:
    b = GraphBuilder(SHAPE, "f32", seed=5)
    spec = InputSpec("float32_nchw", SHAPE, (0.0,) * 3, (1.0,) * 3, low=-1.0)
    artifact = Artifact(merge({"o": b.finish(b.conv("image", 2, stride=(4, 4)))}), spec)
    sample = random_images(spec)
    assert sample.images.dtype == np.float32 and -1 <= sample.images.min() < -0.9 and 0.9 < sample.images.max() <= 1
    _, rows = run(artifact, sample, fake("a-fp32"), batches=(100,))
    assert list(rows) == [("hce", "o"), ("a-fp32", "o")]
    assert all(row["verified"] for row in rows.values())


def test_more_threads_than_there_are_is_an_error(ensemble: Artifact, noise: Sample) -> None:
    with pytest.raises(UnsupportedError, match="ask for fewer"):
        run(ensemble, noise, threads=(1, 1000))
