"""Processes that train together are one process that averages their gradients, and all hold the same network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hce_engine.errors import UnsupportedError
from hce_engine.training import checkpoint, distributed
from hce_engine.training.ema import MovingAverage
from hce_engine.training.graph_module import GraphModule
from hce_engine.training.progress import MetricsLog, TrainingProgress
from hce_engine.training.sgd import Sgd, learning_rate

from .float_graphs import residual
from .shared_training import KILLED, OPTIONS, batches

ROOT = Path(__file__).resolve().parents[2]


def launch(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*launcher, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)


def together(out: Path, stop: int = 0) -> list[dict[str, Tensor]]:
    """The weights of both processes; none if they were killed after ``stop`` steps."""
    out.mkdir(exist_ok=True)
    done = launch(["-m", "tests.training.shared_training", str(out), str(stop)])
    if stop:
        assert f"exitcode  : {KILLED}" in done.stderr
        return []
    assert done.returncode == 0, done.stderr[-2000:]
    return [torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def statistics(module: nn.Module) -> list[Tensor]:
    return [s for m in module.modules() if isinstance(m, nn.BatchNorm2d) for s in (m.running_mean, m.running_var)]


@torch.no_grad()
def mean_into_first(tensors: list[list[Tensor]], counts: list[int]) -> None:
    for parts in zip(*tensors, strict=True):
        parts[0].copy_(sum(n * t for n, t in zip(counts, parts, strict=True)) / sum(counts))


def by_one_process() -> dict[str, Tensor]:
    """The same training, one share after the other."""
    modules = [GraphModule(residual()).train() for _ in range(2)]
    optimizer, average = Sgd(modules[0], OPTIONS), MovingAverage(modules[0], OPTIONS.ema)
    generators = [torch.Generator().manual_seed(7) for _ in modules]
    shares = [batches((rank, 2)) for rank in range(2)]
    total, done = shares[0].steps * OPTIONS.epochs, 0
    for _ in range(OPTIONS.epochs):
        for parts in zip(*(s.epoch(g) for s, g in zip(shares, generators, strict=True)), strict=True):
            for module in modules:
                module.load_state_dict(modules[0].state_dict())
                module.zero_grad()
            for module, batch in zip(modules, parts, strict=True):
                F.cross_entropy(module(batch.images), batch.labels).backward()
            counts = [len(b.labels) for b in parts]
            mean_into_first([[p.grad for p in m.parameters()] for m in modules], counts)
            mean_into_first([statistics(m) for m in modules], counts)
            nn.utils.clip_grad_norm_(modules[0].parameters(), OPTIONS.grad_clip)
            optimizer.rate.fill_(learning_rate(OPTIONS, done, total))
            optimizer.step()
            average.update(done)
            done += 1
    return average.values


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Tensor]]]:
    out = tmp_path_factory.mktemp("two")
    return out, together(out)


def test_two_processes_are_one_that_averages(two: tuple[Path, list[dict[str, Tensor]]]) -> None:
    _, (first, second) = two
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    for key, value in by_one_process().items():
        torch.testing.assert_close(first[key], value, rtol=1e-5, atol=1e-6)


def test_the_first_process_writes_and_decides(two: tuple[Path, list[dict[str, Tensor]]]) -> None:
    records = MetricsLog(two[0] / "metrics.jsonl").lines()
    assert [(r["epoch"], r["rank"]) for r in records] == [(0, 0.0), (1, 0.0)]
    assert checkpoint.load(two[0] / "state.pt")["position"]["epoch"] == 2


@pytest.mark.slow
def test_processes_killed_and_started_again_end_in_the_same_bits(
    two: tuple[Path, list[dict[str, Tensor]]], tmp_path: Path
) -> None:
    together(tmp_path, stop=5)
    for weights in together(tmp_path):
        assert all(torch.equal(v, two[1][0][k]) for k, v in weights.items())


@pytest.mark.slow
def test_the_command_trains_in_several_processes(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text("""
        arch = "tests.training.own_network:coarse"
        data = { holdout = 99, padding = 1 }
        o = { epochs = 1, lr = 0.05, batch_size = 200 }
        q = { epochs = 1, lr = 0.01, batch_size = 200, calibration_images = 32, frozen_norm_epochs = 0 }
        s = { epochs = 1, lr = 0.02, batch_size = 200, rounds = 1, round_epochs = 0, flops_ratio = 0.7 }
    """)
    out = tmp_path / "run"
    done = launch(["-m", "hce_engine", "train", str(recipe), "--data", "digits", "--out", str(out), "--device", "cpu"])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("898 test images") == 1  # one process speaks
    assert [r["phase"] for r in MetricsLog(out / "metrics.jsonl").lines()] == ["o", "q", "s"]
    assert set(json.loads((out / "result.json").read_text())["accuracy"]) == {"o", "q", "s", "ensemble"}


def test_alone_nothing_is_exchanged() -> None:
    module = GraphModule(residual())
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with distributed.joined(torch.device("cpu")):
        assert distributed.share() == (0, 1) and distributed.is_first() and not torch.distributed.is_initialized()
        distributed.wait_for_all()
        distributed.spread(module)
        distributed.average(module, 3)
        assert distributed.agreed({"holdout": 0.5}, torch.device("cpu")) == {"holdout": 0.5}
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def rank_one_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "none"}.items():
        monkeypatch.setenv(name, value)


def test_other_processes_write_and_show_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    rank_one_of_two(monkeypatch)
    assert distributed.share() == (1, 2) and not distributed.is_first()
    checkpoint.write_json(tmp_path / "a.json", {})
    MetricsLog(tmp_path / "metrics.jsonl").append({"phase": "o", "epoch": 0})
    with TrainingProgress() as bar:
        bar.phase("o", 3)
        bar.line("a line")
    assert not list(tmp_path.iterdir()) and capsys.readouterr().err == ""


def test_every_process_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed.device_of("cuda") == torch.device("cuda", 0)
    rank_one_of_two(monkeypatch)
    assert distributed.device_of("cuda") == torch.device("cuda", 1)
    assert distributed.device_of("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UnsupportedError, match="process 2"):
        distributed.device_of("cuda")
