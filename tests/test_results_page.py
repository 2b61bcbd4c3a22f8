"""docs/RESULTS.md says what the committed results say, good or bad."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import results_page


def test_the_page_is_up_to_date() -> None:
    if not results_page.PAGE.parent.exists():
        pytest.skip("not in a checkout")
    assert results_page.PAGE.read_text(encoding="utf-8") == results_page.rendered(), "run python -m benchmarks.results_page"


def row(name: str, kind: str, accuracy: list[float], holdout: list[float], ratio: float, **more: Any) -> dict[str, Any]:
    pairs = [[{"disagreement": 0.1, "error_overlap": 0.3}] if kind != "member" else [] for _ in accuracy]
    return {"row": name, "title": name, "kind": kind, "status": "run", "seeds": list(range(len(accuracy))), "accuracy": accuracy,
            "holdout": holdout, "flops_ratio": ratio, "nll": accuracy, "ece": accuracy, "pairs": pairs, "member_accuracy": {},
            "commits": ["abc"], "hardware": ["a machine"], "across_seeds": False, "epochs": {"o": 2, "q": 1}, **more}


def document(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"arch": "resnet20", "dataset": "CIFAR-10", "matrix": "m", "command_line": "hce matrix m", "rows": list(rows)}


HCE = {"granularity": "filter", "w_diff": 0.6, "reading": "V5"}


def test_the_holdout_chooses_and_the_test_set_does_not() -> None:
    text = "\n".join(results_page.verdict(document(
        row("lucky", "ensemble", [0.95], [0.90], 0.5, **HCE),
        row("chosen", "ensemble", [0.92], [0.93], 0.5, **HCE, control={"row": "kd", "only_this_right": [5], "only_control_right": [3]}),
        row("too dear", "ensemble", [0.96], [0.97], 0.6, **HCE),
        row("of weights", "ensemble", [0.96], [0.97], 0.5, granularity="weight", w_diff=0.6, reading="V5"),
        row("kd", "ensemble", [0.918], [0.98], 0.5, **{**HCE, "reading": "kd"}),
        row("kd too", "ensemble", [0.95], [0.99], 0.5, **{**HCE, "reading": "kd"}),
        row("other seeds", "homogeneous", [0.95], [None], 0.5),
        row("2 x q", "homogeneous", [0.925, 0.927], [0.9, 0.9], 0.35),
        row("alone", "member", [0.92], [0.9], 0.568),
    )))
    assert "**chosen**, 92.00 %" in text
    assert "missed by 1.00 points" in text and "92.35 %" in text
    assert "kd, 91.80 % at 50.0 %; the chosen row is above it by 0.20 points" in text
    assert "2 x q, 92.60 ± 0.14 % at 35.0 %; the chosen row is below it by 0.60 points" in text
    assert "alone, 92.00 % at 56.8 %; the chosen row is equal to it." in text


def test_a_goal_reached_and_rows_not_run_are_said() -> None:
    result = document(
        row("best", "ensemble", [0.931, 0.933], [0.93, 0.93], 0.567, **HCE),
        {"row": "x", "title": "rest", "kind": "member", "status": "not run", "seeds": []},
    )
    text = results_page.section(result)
    assert "reached: 93.20 %" in text and "Against plain KD at equal cost: not run." in text
    assert "| best | 2 | 2+1 | 93.20 ± 0.14 |" in text and "Not run: rest." in text
    assert "| best | 0, 1 | abc | a machine |" in text
    assert "No goal" in results_page.section({**result, "dataset": "CIFAR-100"})


def test_check_notices_an_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_page, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(results_page, "PAGE", tmp_path / "RESULTS.md")
    (tmp_path / "results").mkdir()
    assert CliRunner().invoke(results_page.main, ["--check"]).exit_code == 1
    assert CliRunner().invoke(results_page.main, []).exit_code == 0
    assert CliRunner().invoke(results_page.main, ["--check"]).exit_code == 0
    assert "`hce matrix resnet20-cifar10`" in results_page.rendered()
    (tmp_path / "results" / "m.json").write_text(json.dumps(document(row("best", "ensemble", [0.9], [0.9], 0.5, **HCE))))
    assert CliRunner().invoke(results_page.main, ["--check"]).exit_code == 1
