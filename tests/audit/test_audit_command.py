"""``hce audit`` from end to end on a small model: its JSON, what it prints, its picture, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import hce_engine as hce
from hce_engine.artifact import Artifact
from hce_engine.audit.picture import draw
from hce_engine.audit.reasons import ALL_CODES
from hce_engine.cli import main

QUICK = ("--peers", "none", "--batch", "20", "--rounds", "2", "--seconds", "0.002", "--repeats", "3")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["audit", *(str(a) for a in arguments)])
    out, err = capsys.readouterr()
    return stopped.value.code, out, err


@pytest.fixture(scope="module")
def report(small_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("report") / "audit.json"
    with pytest.raises(SystemExit) as stopped:
        main(["audit", str(small_path), *QUICK, "--sweep", "--ratios", "0.2,0.4,0.5", "--json", str(path)])
    assert stopped.value.code == 0
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_totals_are_of_the_ensemble(report: dict[str, Any]) -> None:
    assert (report["schema_version"], report["command"], report["original"]["member"]) == (1, "audit", "o")
    assert set(report["members"]) == {"q", "s", "ensemble"} and report["total"] == report["members"]["ensemble"]
    for name, values in report["members"].items():
        share = (1 - values["time_ratio"]) / (1 - values["flops_ratio"])
        assert values["realised_share"] == pytest.approx(share), name
        assert values["bound_share"] == pytest.approx((1 - values["time_ratio"]) / (1 - values["bound_ratio"]))
        assert set(values["lost"]) == set(ALL_CODES)
        assert 1 - sum(values["lost"].values()) == pytest.approx(values["profile_realised_share"])
        assert values["seconds"] > 0 and values["bound_reached"] > 0
    assert report["total"]["flops_ratio"] == pytest.approx(sum(report["members"][m]["flops_ratio"] for m in "qs"))


def test_every_layer_is_there_with_its_reasons(report: dict[str, Any]) -> None:
    assert [(row["layer"], row["member"]) for row in report["layers"]][:6] == [
        (name, "q") for name in ("stem", "blocks.0.first", "blocks.0.second", "blocks.1.first", "blocks.1.second", "head")
    ]
    assert len(report["layers"]) == 12
    for row in report["layers"]:
        missing = row["realised_share"] is not None and row["realised_share"] < 1 - 1e-9
        assert bool(row["reasons"]) == missing, row
    assert {row["kernel"] for row in report["rest"]["q"]} >= {"load_u8", "pool_avg_u8"}


def test_the_sweep_is_held_against_the_original(report: dict[str, Any]) -> None:
    sweep = report["sweep"]
    assert {p["axis"] for p in sweep["points"]} == {"pruning", "bits"} and {p["engine"] for p in sweep["points"]} == {"hce"}
    assert [p["value"] for p in sweep["points"] if p["axis"] == "bits"] == [8, 4, 3]
    assert set(sweep["lines"]) == {"hce"}
    assert not sweep["skipped"]


@pytest.mark.parametrize(("ending", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_the_picture_is_drawn_from_the_report(report: dict[str, Any], tmp_path: Path, ending: str, magic: bytes) -> None:
    engines = ("openvino-fp32", "openvino-int8", "a-new-one")
    others = [{**p, "engine": e, "time_ratio": 0.9} for p in report["sweep"]["points"] for e in engines]
    path = tmp_path / f"sweep{ending}"
    draw({**report, "sweep": {**report["sweep"], "points": report["sweep"]["points"] + others}}, path)
    assert path.read_bytes().startswith(magic)
    draw({**report, "sweep": {"points": []}}, path)


def test_what_it_prints(small_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, small_path, *QUICK, "--algorithm", "direct")
    assert code == 0, err
    assert "direct convolutions" in out and "of the promised saving" in out and "Layers of q" in out and "Layers of s" in out
    assert "Traceback" not in err


def test_what_it_refuses(small_path: Path, small: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = tmp_path / "alone.hce"
    hce.build({"q": small.graph.only("q")}, small.input, path=alone)
    code, _, err = run(capsys, alone, *QUICK)
    assert code == 3 and "float original" in err
    assert run(capsys, small_path, *QUICK, "--picture", tmp_path / "p.png")[0] == 2
    assert run(capsys, small_path, *QUICK, "--sweep", "--picture", tmp_path / "p.pdf")[0] == 2
    assert run(capsys, small_path, *QUICK, "--sweep", "--ratios", "0.5,1.5")[0] == 2
    assert run(capsys, small_path, *QUICK, "--ratios", "half", "--sweep")[0] == 2
    assert run(capsys, small_path, *QUICK, "--peers", "nobody")[0] == 2
    assert run(capsys, small_path, *QUICK, "--device", "cuda")[0] == 3
    assert run(capsys, small_path, *QUICK, "--threads", "1024")[0] == 3
    assert run(capsys, small_path, *QUICK, "--json", small_path)[0] == 2
