"""The quickstart's pipeline on a small network: what it leaves behind, and what its figures are."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import hce_engine as hce
from hce_engine.training import quickstart as module
from hce_engine.training.data import digits
from hce_engine.training.datasets import TEST_SEED
from hce_engine.training.quickstart import MEMBERS, quickstart, table
from hce_engine.training.throughput import interleaved

from . import own_network

RECIPE = own_network.recipe(
    arch=f"{own_network.__name__}:coarse", data={"holdout": 0, "flip": False},
    o={"epochs": 8, "lr": 0.1, "batch_size": 64}, q={"batch_size": 64}, s={"rounds": 1, "flops_ratio": 0.8, "batch_size": 64},
)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(module: object) -> object:
        def call(x: object) -> None:
            raise RuntimeError("no C++ compiler")

        return call

    monkeypatch.setattr(torch, "compile", refuse)


@pytest.fixture
def brief_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "interleaved", partial(interleaved, rounds=1, seconds=0.01))


@pytest.mark.usefixtures("no_compiler", "brief_timing")
def test_it_leaves_a_model_and_a_report_that_agree(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    report = quickstart(tmp_path, recipe=RECIPE, threads=1, progress=False)
    torch.set_num_threads(threads)
    assert report == json.loads((tmp_path / "report.json").read_text())
    for key in ("accuracy", "bytes", "macs", "flops"):
        assert set(report[key]) == set(MEMBERS)
    assert set(report["images_per_second"]) == {*MEMBERS, "torch"}
    assert all(v > 0 for v in report["images_per_second"].values())
    assert report["torch"]["compile"] is None
    assert report["accuracy"]["ensemble"] > 0.4  # chance is a tenth
    assert 0 < report["flops_ratio"] <= 0.8
    assert report["bytes"]["ensemble"] == report["bytes"]["q"] + report["bytes"]["s"]
    engine, (_, test) = hce.load(tmp_path / "model.hce"), digits(TEST_SEED)
    right = int((np.asarray(engine(test.images.numpy())).argmax(1) == test.labels.numpy()).sum())
    assert right == report["correct"]["ensemble"]
    console = Console(width=140, file=io.StringIO())
    console.print(table(report))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Q + S  ensemble" in text and f"{100 * report['accuracy']['ensemble']:.2f} %" in text


def test_interleaved_calls_everything_and_takes_medians() -> None:
    calls = {"a": 0, "b": 0}

    def call(name: str) -> None:
        calls[name] += 1

    rates = interleaved({name: lambda name=name: call(name) for name in calls}, images=5, rounds=3, seconds=1e-5)
    assert set(rates) == {"a", "b"} and all(v > 0 for v in rates.values()) and min(calls.values()) >= 9
