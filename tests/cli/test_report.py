"""``hce report`` from the command line: what it writes, says and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hce_engine import artifact


@pytest.fixture
def evaluation(run_hce: Callable, model: Path, labelled: Path, tmp_path: Path) -> Path:
    path = tmp_path / "eval.json"
    assert run_hce("eval", model, "--data", labelled, "--json", path).code == 0
    return path


def test_an_evaluation_becomes_a_page(run_hce: Callable, model: Path, evaluation: Path, tmp_path: Path) -> None:
    page, facts = tmp_path / "out" / "report.html", tmp_path / "report.json"
    result = run_hce("report", evaluation, "-o", page, "--pictures", tmp_path / "figures", "--json", facts)
    assert result.code == 0, result.err
    assert "pictures: 1" in result.out and "Temperature scaling is left out" in result.err
    told = json.loads(facts.read_text())
    assert told["command"] == "report" and told["pictures"] == ["error-overlap-q-s"] and len(told["left_out"]) == 1
    assert (tmp_path / "figures" / "error-overlap-q-s.svg").read_bytes().startswith(b"<?xml")
    text = page.read_text()
    measured = json.loads(evaluation.read_text())
    assert measured["ledger"] == json.loads(json.dumps(artifact.load(model).ledger))
    assert "Cost of one image" in text and "FLOPs, paper" in text
    assert f"{measured['ledger']['ensemble']['macs'] / 1000:.1f} k" in text
    assert f"{100 * measured['accuracy']['ensemble']:.2f} %" in text and "ensemble, mean of probabilities" in text


def test_eval_shows_the_mean_of_probabilities(run_hce: Callable, model: Path, labelled: Path) -> None:
    assert "mean of probabilities" in run_hce("eval", model, "--data", labelled).out


def test_wrong_use_is_one_sentence(run_hce: Callable, evaluation: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert run_hce("report", evaluation).code == 2  # no --out
    assert run_hce("report", "-o", page).code == 2  # nothing to report on
    missing = run_hce("report", tmp_path / "none", "-o", page)
    assert missing.code == 2 and missing.err.count("\n") == 1 and "report on" in missing.err
    over = run_hce("report", evaluation, "-o", evaluation)
    assert over.code == 2 and "an input of this command" in over.err
    assert not page.exists()


def test_a_missing_extra_is_unsupported_here(evaluation: Path, tmp_path: Path) -> None:
    code = ("import sys; sys.modules['matplotlib'] = None\n"
            f"import hce_engine.cli as c; c.main(['report', {str(evaluation)!r}, '-o', {str(tmp_path / 'r.html')!r}])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "hce-engine[report]" in done.stderr and done.stderr.count("\n") == 1
