"""Which peer runs what: the same work, or a row that says why not."""

from __future__ import annotations

from hce_engine.artifact import Artifact
from hce_engine.bench.networks import is_float, original_of
from hce_engine.bench.work import Part, PeerRow, own_rows, peer_rows
from tests.bench.conftest import fake

FP32, INT8 = fake("runtime-fp32"), fake("runtime-int8", "int8", float_peer="runtime-fp32")


def test_a_whole_artifact(ensemble: Artifact) -> None:
    graph = ensemble.graph
    assert [is_float(graph, name) for name in "qso"] == [False, True, True]
    assert original_of(graph) == "o"
    assert own_rows(graph, ("q", "s", "o")) == ("q", "s", "o", "ensemble")
    assert peer_rows(graph, ("q", "s", "o"), [FP32, INT8]) == [
        PeerRow("runtime-fp32", "s", (Part("runtime-fp32", "s"),)),
        PeerRow("runtime-fp32", "o", (Part("runtime-fp32", "o"),)),
        PeerRow("runtime-fp32", "ensemble", (Part("runtime-fp32", "o"), Part("runtime-fp32", "s"))),
        PeerRow("runtime-int8", "q", (Part("runtime-int8", "o"),)),
        PeerRow("runtime-int8", "ensemble", (Part("runtime-int8", "o"), Part("runtime-fp32", "s"))),
    ]


def test_some_members(ensemble: Artifact) -> None:
    assert own_rows(ensemble.graph, ("q",)) == ("q",)
    assert own_rows(ensemble.graph, ("o", "s")) == ("o", "s")
    assert [row.member for row in peer_rows(ensemble.graph, ("q",), [FP32, INT8])] == ["q"]
    assert own_rows(ensemble.graph, ("q", "s")) == ("q", "s", "ensemble")


def test_without_an_original_quantized_members_cannot_be_matched(ensemble: Artifact) -> None:
    graph = ensemble.graph.only("q", "s")
    rows = {(row.engine, row.member): row for row in peer_rows(graph, ("q", "s"), [FP32, INT8])}
    assert rows["runtime-fp32", "s"].parts
    for key in (("runtime-int8", "q"), ("runtime-int8", "ensemble"), ("runtime-fp32", "ensemble")):
        assert rows[key].parts == ()
        assert "no float original of q" in (rows[key].skipped or "")


def test_one_float_member_alone(ensemble: Artifact) -> None:
    graph = ensemble.graph.only("o")
    assert own_rows(graph, ("o",)) == ("o",)
    assert peer_rows(graph, ("o",), [FP32, INT8]) == [PeerRow("runtime-fp32", "o", (Part("runtime-fp32", "o"),))]


def test_a_missing_peer_has_all_its_rows(ensemble: Artifact) -> None:
    absent = fake("runtime-fp32", absent="not installed")
    rows = peer_rows(ensemble.graph, ("q", "s", "o"), [absent])
    assert [(row.member, row.parts, row.skipped) for row in rows] == [
        (name, (), "not installed") for name in ("s", "o", "ensemble")
    ]
