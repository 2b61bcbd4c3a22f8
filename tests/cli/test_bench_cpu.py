"""``hce bench`` on the CPU, from the command line to tables and JSON, with PyTorch as the only real peer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hce_engine.bench import conditions
from hce_engine.bench.peers import PEERS
from tests.bench.conftest import fake

QUICK = ("--threads", 1, "--rounds", 6, "--seconds", 0.004, "--batch", 4)


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "crowded", lambda others, threads, cores: False)


def test_from_a_model_to_verdicts(run_hce: Callable, model: Path, labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    result = run_hce("bench", model, "--peers", "torch", "--data", labelled, "--json", out, *QUICK)
    assert result.code == 0, result.err
    for words in ("batch 4, 1 thread", "95 % interval", "images/s: median", "fastest float32 peer", "checked on 37 test images"):
        assert words in result.out
    assert "timing 8 rows in 6 rounds" in result.err
    facts = json.loads(out.read_text())
    assert (facts["schema_version"], facts["command"], facts["model"]) == (1, "bench", "model.hce")
    assert len(facts["digest"]) == 64
    rows = {(row["engine"], row["member"]): row for row in facts["rows"]}
    assert set(rows) == {(engine, member) for engine in ("hce", "torch") for member in ("q", "s", "o", "ensemble")}
    for row in rows.values():
        assert row["verified"] and row["images_per_second"] > 0 and row["threads_used"] == 1
    assert rows["torch", "s"]["against"]["verdict"] in ("FASTER", "SLOWER", "SAME", "UNCLEAR")
    assert facts["versions"]["torch"].startswith("2.")


def test_tables_can_be_pasted(run_hce: Callable, model: Path) -> None:
    result = run_hce("bench", model, "--peers", "none", "--format", "markdown", "--members", "s,o", *QUICK[:-1], "1,2")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines.count("| member | engine | images/s | ms/batch | spread | threads | ratio | 95 % interval | HCE is |") == 2
    assert sum(line.startswith("| s | hce |") for line in lines) == 2
    assert not any("ensemble" in line for line in lines)


def test_a_check_that_fails_is_exit_code_one(run_hce: Callable, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS, "wrong-fp32", lambda: fake("wrong-fp32", change=lambda z: z + np.float32(1)))
    result = run_hce("bench", model, "--peers", "wrong-fp32", "--members", "s", *QUICK)
    assert result.code == 1
    assert "NOT VERIFIED" in result.out and "wrong-fp32 s not timed: logits of 64 images differ" in result.out


def test_a_missing_peer_is_shown_and_no_failure(run_hce: Callable, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS, "gone-fp32", lambda: fake("gone-fp32", absent="gone not installed"))
    result = run_hce("bench", model, "--peers", "gone-fp32", "--members", "s", *QUICK)
    assert result.code == 0
    assert "gone-fp32 s skipped: gone not installed" in result.out


@pytest.mark.parametrize(("options", "words"), [
    (("--peers", "tensorrt"), "openvino-int8"), (("--members", "x"), "q, s, o"), (("--batch", "0"), "--batch 1,2"),
    (("--batch", "1,two"), "from 1 to 4096"), (("--threads", ""), "--threads"), (("--rounds", "0"), "rounds"),
    (("--dry-run", "--batch", "1,2"), "one batch size"),
])
def test_usage_errors(run_hce: Callable, model: Path, options: tuple[str, ...], words: str) -> None:
    result = run_hce("bench", model, *options)
    assert result.code == 2
    assert words in result.err


def test_what_this_machine_cannot_do(run_hce: Callable, model: Path) -> None:
    assert run_hce("bench", model, "--threads", 1000, *QUICK[2:]).code == 3
    assert run_hce("bench", model, "--isa", "mmx", *QUICK).code == 3
    assert run_hce("bench", model, "--device", "cuda").code == 3


def test_peers_are_held_to_an_instruction_set_in_a_program_of_its_own(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "hce_engine", "bench", model, "--peers", "torch", "--members", "s", "--isa", "portable", "--json", out]
    done = subprocess.run([*map(str, command), *map(str, QUICK)], capture_output=True, text=True, check=False,
                          env={k: v for k, v in os.environ.items() if k not in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")})
    assert done.returncode == 0, done.stderr
    facts = json.loads(out.read_text())
    assert facts["isa"] == "portable"
    assert facts["isa_limits"] == {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"}
