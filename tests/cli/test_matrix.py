"""``hce matrix``: the table, the JSON that results pages are made of, and the exit code of a failed run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from .test_train import RECIPE

MATRIX = """
recipe = "recipe.toml"
seeds = [0]
[rows.o]
title = "the original"
drop = ["q", "s"]
[rows.impossible]
s = { flops_ratio = 0.01 }
[ensembles.pair]
members = ["o:o", "impossible:q"]
"""


@pytest.fixture
def matrix(tmp_path: Path, own_module: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(own_module))
    monkeypatch.setenv("PYTHONPATH", str(own_module), prepend=os.pathsep)  # for the workers
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "matrix.toml").write_text(MATRIX)
    return tmp_path / "matrix.toml"


def test_one_failed_run_is_said_and_the_others_are_kept(run_hce: Callable, matrix: Path, data: Path, tmp_path: Path) -> None:
    arguments = ("matrix", matrix, "--data", data, "--out", tmp_path / "runs", "--json", tmp_path / "results.json")
    result = run_hce(*arguments)
    assert result.code == 1
    assert "impossible-s0 failed" in result.err
    assert "the original" in result.out
    value = json.loads((tmp_path / "results.json").read_text())
    rows = {row["row"]: row for row in value["rows"]}
    assert {name: row["status"] for name, row in rows.items()} == {"o": "run", "impossible": "not run", "pair": "not run"}
    assert rows["o"]["correct"] == [round(32 * rows["o"]["accuracy"][0])]
    assert value["command"] == "matrix"
    assert value["command_line"].startswith("hce matrix matrix --data DIR")
    # Gathering alone neither trains nor fails.
    again = run_hce(*arguments, "--collect")
    assert again.code == 0
    assert json.loads((tmp_path / "results.json").read_text()) == value


def test_what_is_no_matrix_is_named(run_hce: Callable, data: Path, tmp_path: Path) -> None:
    result = run_hce("matrix", "no-such-matrix", "--data", data, "--out", tmp_path / "runs")
    assert result.code == 2
    assert "resnet20-cifar10" in result.err
