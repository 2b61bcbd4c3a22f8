"""``hce bench --device cuda``: what it says without a GPU, and from the command line to tables and JSON with one that is made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hce_engine import _cuda_native, artifact
from hce_engine.artifact import Artifact
from hce_engine.backends.cuda import gpu
from hce_engine.bench import conditions
from hce_engine.errors import UnsupportedError
from hce_engine.graph import Graph, merge
from tests.bench.conftest import SPEC, members
from tests.bench.fake_gpu import FakeBackend, FakeDevice

QUICK = ("--device", "cuda", "--batch", "2,4", "--rounds", 6, "--seconds", 0.001)


@pytest.fixture(scope="module")
def ensemble_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ensemble") / "model.hce"
    artifact.save(path, Artifact(merge(members(), {"o": "reference"}), SPEC))
    return path


@pytest.fixture
def as_if_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[FakeDevice]:
    made: list[FakeDevice] = []

    def device(arithmetic: str, max_batch: int | None) -> FakeDevice:
        assert (arithmetic, max_batch) == ("ieee", None)
        made.append(FakeDevice())
        return made[-1]

    monkeypatch.setattr("hce_engine.bench.cuda_device.Gpu", device)
    monkeypatch.setattr(gpu, "missing", lambda: None)
    monkeypatch.setattr(_cuda_native, "available", lambda: (True, ""))
    monkeypatch.setattr(conditions, "crowded", lambda others, threads, cores: False)
    return made


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_reason_and_the_dry_run_are_named(run_hce: Callable, ensemble_path: Path) -> None:
    result = run_hce("bench", ensemble_path, *QUICK)
    assert result.code == 3
    assert result.err.count("\n") == 1 and "CUDA" in result.err and "--dry-run" in result.err


def test_from_a_model_to_verdicts(run_hce: Callable, ensemble_path: Path, as_if_on_a_gpu: list[FakeDevice], tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    result = run_hce("bench", ensemble_path, *QUICK, "--peers", "torch-fp32,torch-bf16", "--json", out)
    assert result.code == 0, result.err
    for words in (
        "batch 2, images and logits on the GPU; a GPU", "batch 4, from the host and back; a GPU", "best ms", "FASTER",
        "hce ensemble runs its parts by streams, overlap 0.50", "clocks: nvidia-smi gave none",
        "2.00x the uncompressed original on torch-bf16, the fastest bfloat16 peer", "fastest float32 peer", "Float members: ieee.",
    ):
        assert words in result.out, words
    assert result.err.count("timing 10 rows in 6 rounds") == 4
    facts = json.loads(out.read_text())
    assert (facts["schema_version"], facts["command"], facts["device"], facts["model"]) == (1, "bench", "cuda", "model.hce")
    assert len(facts["digest"]) == 64 and len(facts["rows"]) == 2 * 2 * 10
    assert all(row["verified"] for row in facts["rows"])
    assert len(as_if_on_a_gpu) == 1


def test_markdown_and_missing_peers(run_hce: Callable, ensemble_path: Path, as_if_on_a_gpu: list[FakeDevice]) -> None:
    result = run_hce("bench", ensemble_path, *QUICK, "--peers", "tensorrt-fp32", "--members", "s", "--format", "markdown")
    assert result.code == 0, result.err
    assert result.out.count("| member | engine | images/s | ms/batch | spread | best ms | ratio | 95 % interval | HCE is |") == 4
    assert "tensorrt-fp32 s skipped: tensorrt" in result.out and "not installed" in result.out


def test_rows_of_ours_that_fail_are_exit_code_one(
    run_hce: Callable, ensemble_path: Path, as_if_on_a_gpu: list[FakeDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(FakeBackend):
        def warm_up(self, batches: object) -> None:
            raise UnsupportedError("cuda back end", expected="9 bytes", got="8 bytes", fix="use a smaller batch")

    def off(graph: Graph) -> FakeBackend:
        return FakeBackend(graph, lambda z: z + np.float32(1))

    for make, words in ((Full, "hce s skipped: cuda back end: expected 9 bytes"), (off, "hce s not timed: reference: logits")):
        monkeypatch.setattr("hce_engine.bench.cuda_device.Gpu", lambda arithmetic, max_batch, make=make: FakeDevice(make))
        result = run_hce("bench", ensemble_path, *QUICK, "--peers", "none", "--members", "s")
        assert result.code == 1, result.err
        assert words in result.out


@pytest.mark.parametrize(("options", "code", "words"), [
    (("--peers", "openvino-fp32"), 2, "torch-compile-fp32"), (("--members", "x"), 2, "q, s, o"), (("--threads", "2"), 3, "--threads"),
    (("--isa", "avx2"), 3, "--isa"), (("--batch", "0"), 2, "from 1 to 65536"),
])
def test_what_it_refuses(
    run_hce: Callable, ensemble_path: Path, as_if_on_a_gpu: list[FakeDevice], options: tuple[str, ...], code: int, words: str
) -> None:
    result = run_hce("bench", ensemble_path, *QUICK, *options)
    assert result.code == code
    assert words in result.err


def test_float_members_need_their_kernels(
    run_hce: Callable, ensemble_path: Path, as_if_on_a_gpu: list[FakeDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cuda_native, "available", lambda: (False, "no nvcc that day"))
    result = run_hce("bench", ensemble_path, *QUICK, "--peers", "none")
    assert result.code == 3 and "no nvcc that day" in result.err and "--members q" in result.err
    assert run_hce("bench", ensemble_path, *QUICK, "--peers", "none", "--members", "q").code == 0


def test_arithmetic_is_of_float_members_on_a_gpu(run_hce: Callable, ensemble_path: Path) -> None:
    result = run_hce("bench", ensemble_path, "--arithmetic", "tf32x3", "--peers", "none")
    assert result.code == 3 and "--device cuda" in result.err
    result = run_hce("bench", ensemble_path, "--dry-run", "--members", "q", "--arithmetic", "tf32x3")
    assert result.code == 2 and "a float member" in result.err


@pytest.mark.parametrize("where", [("--dry-run",), ("--device", "cpu", "--peers", "none")])
def test_the_largest_batch_is_of_an_engine_on_a_gpu(run_hce: Callable, ensemble_path: Path, where: tuple[str, ...]) -> None:
    result = run_hce("bench", ensemble_path, *where, "--max-batch", 8)
    assert result.code == 3 and "--max-batch" in result.err


def test_the_reference_is_no_part_of_the_ensemble(run_hce: Callable, ensemble_path: Path) -> None:
    facts = json.loads(run_hce("bench", ensemble_path, "--dry-run", "--batch", 64, "--json", "-").out)
    voters = json.loads(run_hce("bench", ensemble_path, "--dry-run", "--batch", 64, "--members", "q,s", "--json", "-").out)
    assert (facts["members"], facts["voters"], list(facts["alone"])) == (["q", "s", "o"], ["q", "s"], ["q", "s", "o"])
    assert facts["totals"] == voters["totals"]
    alone, total = facts["alone"], facts["totals"]
    assert total["macs"] == alone["q"]["macs"] + alone["s"]["macs"]
    assert total["launches"] == alone["q"]["launches"] + alone["s"]["launches"] + 1
    longest = max(alone[m]["sequential_bound_seconds"] for m in "qs")
    assert longest < total["perfect_overlap_bound_seconds"] < total["sequential_bound_seconds"]
    shown = run_hce("bench", ensemble_path, "--dry-run", "--batch", 64).out
    for words in ("ensemble of q, s, sequential", "ensemble of q, s, perfect overlap", "at most images/s"):
        assert words in shown


def test_an_audit_is_of_the_cpu(run_hce: Callable, ensemble_path: Path) -> None:
    result = run_hce("audit", ensemble_path, "--device", "cuda")
    assert result.code == 3
    assert "--device cpu" in result.err and "hce bench --device cuda" in result.err
