"""Every other command: its result, its JSON, its errors and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hce_engine.cli import COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_and_the_shared_options(run_hce: Callable, name: str) -> None:
    result = run_hce(name, "--help")
    assert result.code == 0
    assert "Example" in result.out
    assert f"hce {name}" in result.out
    for option in ("--json", "--device", "--debug"):
        assert option in result.out


def test_usage_errors_are_two(run_hce: Callable) -> None:
    assert run_hce("no-such-command").code == 2
    assert run_hce("info").code == 2
    assert run_hce("eval", "model.hce").code == 2
    assert run_hce("info", "--device", "tpu", "model.hce").code == 2


def test_an_invalid_artifact_is_four_and_one_sentence(run_hce: Callable, tmp_path: Path, model: Path) -> None:
    damaged = tmp_path / "damaged.hce"
    whole = model.read_bytes()
    for content in (b"", b"nonsense", whole[:-1], whole[: len(whole) // 2], whole + b"x"):
        damaged.write_bytes(content)
        for command in (("info",), ("eval", "--data", tmp_path), ("run", "-o", tmp_path / "p.csv", "--", tmp_path)):
            arguments = (command[0], damaged, *[a for a in command[1:] if a != "--"])
            result = run_hce(*arguments)
            assert result.code == 4, result.err
            assert result.err.count("\n") == 1
            assert "Traceback" not in result.err


def test_debug_shows_the_traceback(run_hce: Callable, tmp_path: Path) -> None:
    (tmp_path / "bad.hce").write_bytes(b"nonsense")
    assert "Traceback" in run_hce("info", tmp_path / "bad.hce", "--debug").err


def test_cuda_is_refused_not_replaced(run_hce: Callable, model: Path, labelled: Path) -> None:
    result = run_hce("eval", model, "--data", labelled, "--device", "cuda")
    assert result.code == 3
    assert "cuda" in result.err


def test_info_counts_the_voting_members(run_hce: Callable, model: Path, tmp_path: Path) -> None:
    result = run_hce("info", model, "--layers", "--json", tmp_path / "info.json")
    assert result.code == 0, result.err
    facts = json.loads((tmp_path / "info.json").read_text())
    assert facts["schema_version"] == 1
    assert facts["flops_ratio"] == pytest.approx(2.0)  # two members as large as the reference
    assert set(facts["bytes"]) == {"q", "s", "o", "ensemble"}
    assert facts["bytes"]["ensemble"] == facts["bytes"]["q"] + facts["bytes"]["s"]
    assert facts["members"]["o"]["role"] == "reference"
    assert len(facts["layers"]["q"]) == 3
    assert facts["classes"] == ["ant", "bee", "cat", "dog"]


def test_json_to_stdout_is_json_alone(run_hce: Callable, model: Path) -> None:
    assert json.loads(run_hce("info", model, "--json", "-").out)["command"] == "info"
    assert json.loads(run_hce("doctor", "--json", "-").out)["command"] == "doctor"


def test_doctor_names_the_kernels(run_hce: Callable) -> None:
    result = run_hce("doctor", "--device", "reference")
    assert result.code == 0
    assert "reference" in result.out
    assert run_hce("doctor", "--device", "cuda").code == 3


def test_doctor_measures_peaks_on_request(run_hce: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("hce_engine.threads.available_threads", lambda: 1)
    result = run_hce("doctor", "--peaks", "--json", tmp_path / "doctor.json")
    assert result.code == 0, result.err
    assert "Measured peaks" in result.out and "triad, memory" in result.out
    peaks = json.loads((tmp_path / "doctor.json").read_text())["peaks"]
    assert [p["threads"] for p in peaks] == [1]


def test_eval_counts_right_answers(run_hce: Callable, model: Path, labelled: Path, tmp_path: Path) -> None:
    result = run_hce("eval", model, "--data", labelled, "--batch", 16, "--json", tmp_path / "eval.json")
    assert result.code == 0, result.err
    facts = json.loads((tmp_path / "eval.json").read_text())
    assert facts["total"] == 37
    assert facts["correct"]["ensemble"] == 32
    assert facts["accuracy"]["ensemble"] == pytest.approx(32 / 37)
    assert set(facts["accuracy"]) == {"q", "s", "o", "ensemble"}
    low, high = facts["members"]["ensemble"]["interval"]
    assert low < 32 / 37 < high
    assert set(facts["pairs"]) == {"q-s"}


def test_the_program_starts_without_torch() -> None:
    code = "import sys, hce_engine.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout


def test_python_dash_m_reports_errors_the_same_way(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "hce_engine", "info", tmp_path / "none.hce"], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert done.stderr.startswith("hce: ")
    assert done.stderr.count("\n") == 1
