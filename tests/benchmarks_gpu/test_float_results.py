"""What becomes of results of float members and ensembles: verdicts, tables, one file per card, the page; from documents made up here."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import __main__ as driver
from benchmarks.gpu import accuracy, ensemble, float_layers, goals, names, page, repeats, report, sanitizer, stage
from hce_engine import cli
from hce_engine.backends import reference
from hce_engine.errors import UnsupportedError

CASE, BATCH = goals.CASE, goals.BATCH
IDENTITY = {"gpu": "Some GPU", "torch": "1", "triton": "2", "sources": "abc"}


def rate(time: float, **more: Any) -> dict[str, Any]:
    return {"median_us": time, "images_per_s": BATCH / time * 1e6, **more}


def ensemble_items(compile_us: float = 4000.0, percent: float = 83.0) -> dict[str, Any]:
    ours = {"q": rate(300.0, host=rate(600.0), host_several=rate(500.0)), "s plain": rate(700.0),
            "s direct": rate(900.0, percent_of_ffma=percent), "o plain": rate(1500.0), "o direct": rate(2000.0),
            "ensemble sequential": rate(1000.0), "ensemble streams": rate(850.0, host=rate(1200.0)),
            "ensemble tf32x3": rate(600.0), "s fp16x3": {"held": False, "error": "too far from float64"}}
    times = {name: r["median_us"] for name, r in ours.items() if "median_us" in r}
    ratios = {name: {"q": 0.14, "s": 0.435, "o": 1.0, "ensemble": 0.575}[name.split()[0]] for name in ensemble.rows()}
    plain = {"case": CASE, "batch": BATCH, "held": False, "contenders": ours, "overlap": ensemble.overlaps(times),
             "realised": ensemble.realised(times, ratios)}
    compiled = {"case": CASE, "batch": BATCH, "held": True, "overlap": {}, "realised": {}, "contenders": {
        "ensemble streams": rate(800.0), "torch fp32 compile-default": rate(compile_us), "torch tf32 compile-default": rate(1200.0)}}
    return {names.plain_key(CASE, BATCH): plain, names.compiled_key(CASE, BATCH, "compile-default", "fp32+tf32"): compiled}


def layer_item() -> dict[str, Any]:
    told = {"direct": {"median_us": 20.0, "max_error": 3e-7, "mean_error": 1e-8}, "F(2x2)": {"median_us": 10.0, "max_error": 9e-7, "mean_error": 2e-8},
            "cuDNN fp32 NHWC": {"median_us": 30.0, "error": 1e-7}, "tf32x3": {"why": "planned like another"}}
    result = {"layer": "x 32x32 16->7 3x3", "network": "x", "batch": 4096, "macs": 500_000_000, "walked": 600_000_000, "bytes": 1_000_000,
              "contenders": told, "held": True}
    return result | float_layers.bounds(result, {"ffma_tflops": 60.0, "copy_gb_s": 3000.0})


def write(out: Path, name: str, items: dict[str, Any], **more: Any) -> None:
    document = stage.Document(out, name, IDENTITY)
    document.items.update(items)
    document.content.update(more)
    document.save()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    write(folder, "ensemble", ensemble_items())
    write(folder, "float_layers", {"x 32x32 16->7 3x3, batch 4096": layer_item()})
    write(folder, "machine", {"ffma_tflops": {"value": 60.0, "unit": "TFLOP/s", "datasheet": 67.0}, "environment": {"torch": "2.13"}})
    write(folder, "tests", {}, counts={"passed": 7, "failed": 1})
    write(folder, "sanitizer", {"memcheck": sanitizer.outcome(0, '{"checks": 9, "started": ["a"], "missing": [], "wrong": []}\n', "ERROR SUMMARY: 0 errors"),
                                "racecheck": {"why": "compute-sanitizer was not found"}})
    write(folder, "members", {"resnet20, batch 4096": {"contenders": {"ours w4a4": rate(300.0, host=rate(600.0), percent_of_bound=71.4)}}})
    write(folder, "repeats", {"plain, auto": {"repeats": 1000, "differing": 0, "held": True}})
    return folder


def test_overlap_and_realised_share() -> None:
    times = {"q": 300.0, "s plain": 700.0, "s direct": 900.0, "o plain": 1500.0, "o direct": 2000.0, "ensemble sequential": 1000.0, "ensemble streams": 850.0}
    assert ensemble.overlaps(times)["streams"] == 0.5 and ensemble.overlaps({"q": 1.0}) == {}
    found = ensemble.realised(times, {"q": 0.14, "s direct": 0.435, "s plain": 0.435, "o plain": 1.0, "ensemble streams": 0.575})
    assert found["s direct"] == {"time_ratio": 0.45, "flops_ratio": 0.435, "realised_share": 0.973}  # against the direct o
    assert found["ensemble streams"]["realised_share"] == 1.02 and set(found) == {"q", "s direct", "s plain", "ensemble streams"}
    assert ensemble.realised({"q": 1.0}, {"q": 0.1}) == {}


def test_goals_are_judged_only_where_they_were_measured() -> None:
    assert [g.verdict for g in goals.goals({})] == [goals.NOT_MEASURED] * 3
    rows = goals.goals(ensemble_items())
    assert [(g.measured, g.verdict) for g in rows] == [(83.0, "reached"), (5.0, "reached"), (1.5, "reached")]
    rows = goals.goals(ensemble_items(compile_us=2000.0, percent=79.0))
    assert [(g.got, g.verdict) for g in rows[:2]] == [("79 %", "missed"), ("2.5x", "missed")]
    items = ensemble_items()
    items[names.compiled_key(CASE, BATCH, "compile", "fp32")] = {"case": CASE, "batch": BATCH, "contenders": {
        "ensemble sequential": rate(1000.0), "torch fp32 compile": rate(3500.0)}}
    assert goals.speedup(items, "fp32") == 3.5  # the faster mode of the rival counts, beside the ensemble of its run
    assert goals.speedup(items, "fp16") is None and goals.speedup(items, "fp32", "another") is None


def test_bounds_of_a_layer() -> None:
    result = layer_item()
    assert result["ffma_bound_us"] == 20.0 and result["percent_of_ffma"] == {"direct": 100.0, "F(2x2)": 200.0, "cuDNN fp32 NHWC": 66.7}
    assert result["speedup_over_cudnn"] == 3.0 and result["bound_by"] == "ffma_tflops"
    assert "ffma_bound_us" not in float_layers.bounds(result, {})


def test_what_fails_is_told_but_a_lost_gpu_is_not_kept() -> None:
    told: dict[str, dict[str, Any]] = {}
    for name, error, ours in (
        ("wrong", ArithmeticError("7 differ"), True), ("broken", RuntimeError("no such launch"), True),
        ("absent", UnsupportedError("x", expected="a layout", got="none", fix="wait"), True), ("large", MemoryError("too large"), True),
        ("rival", RuntimeError("no such algorithm"), False), ("wrong rival", ArithmeticError("far off"), False),
    ):
        with float_layers.keep(told, name, ours):
            raise error
    assert {name for name, result in told.items() if not result.get("held", True)} == {"wrong", "broken", "wrong rival"}
    assert "no such algorithm" in told["rival"]["why"] and "a layout" in told["absent"]["why"]
    with pytest.raises(RuntimeError), float_layers.keep(told, "lost"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_the_sanitizer_is_believed_and_a_missing_one_claims_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    line = json.dumps({"checks": 3, "started": ["conv2d_f32"], "missing": [], "wrong": []})
    assert sanitizer.outcome(0, line, "========= ERROR SUMMARY: 0 errors")["held"]
    assert sanitizer.outcome(0, line, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)")["held"]
    bad = sanitizer.outcome(99, line, "========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)")
    assert (bad["held"], bad["errors"], bad["error"]) == (False, 2, "2 errors")
    missing = line.replace('"missing": []', '"missing": ["pool_f32"]')
    assert sanitizer.outcome(0, missing, "ERROR SUMMARY: 0 errors")["error"] == "not started: pool_f32"
    wrong = line.replace('"wrong": []', '"wrong": ["x: far off"]')
    assert "far off" in sanitizer.outcome(1, wrong, "ERROR SUMMARY: 0 errors")["error"]
    refused = sanitizer.outcome(1, "", "========= Error: Device not supported. Please refer to the documentation")
    assert "held" not in refused and "Device not supported" in refused["why"]
    broken = sanitizer.outcome(1, "Traceback", "ERROR SUMMARY: 0 errors")
    assert not broken["held"] and "without a summary" in broken["error"]
    monkeypatch.setattr(sanitizer, "find", lambda: None)
    assert sanitizer.check("memcheck", stage.Deadline(0)) == {"why": "compute-sanitizer was not found"}


def test_a_tool_that_the_end_of_the_time_cuts_short_has_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "compute-sanitizer"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(sanitizer, "find", lambda: str(slow))
    monkeypatch.setattr(sanitizer, "LEAST", 0.0)
    monkeypatch.setattr(sanitizer, "MARGIN", 0.0)
    document, deadline = stage.Document(tmp_path, "sanitizer", {}), stage.Deadline(time.time() + 0.3)
    assert stage.measure(document, sanitizer.items(deadline), deadline) == stage.LATE
    assert not document.items and document.content["pending"] == list(sanitizer.TOOLS)
    monkeypatch.setattr(sanitizer, "SECONDS", 0.1)
    assert sanitizer.check("memcheck", stage.Deadline(time.time() + 9)) == {"held": False, "error": "no end within 0 s"}


def test_repeats_are_compared_between_modes() -> None:
    document = type("Document", (), {"items": {"plain, streams": {"variant": "plain", "digests": {"s": "1"}}, "tf32x3, auto": {"variant": "tf32x3", "digests": {"s": "2"}}}})()
    same = {"variant": "plain", "differing": 0, "digests": {"s": "1"}}
    assert repeats.compared(same, document) == {"held": True}
    assert not repeats.compared(same | {"differing": 1}, document)["held"]
    other = repeats.compared(same | {"digests": {"s": "3"}}, document)
    assert other == {"held": False, "error": "other bytes than plain, streams"}


def test_logits_of_both_devices_are_compared() -> None:
    q, s = np.ones((2, 3), np.float32), np.full((2, 3), 4.0, np.float32)
    cpu = {"q": q, "s": s, "ensemble": reference.mean_logits([q, s])}
    assert accuracy.compared(cpu, cpu, cpu, ["q", "s"])["held"]
    near = s + np.float32(1e-4)
    cuda = {"q": q, "s": near, "ensemble": reference.mean_logits([q, near])}
    assert accuracy.compared(cpu, cuda, cuda, ["q", "s"])["held"]
    for name, value in (("q", np.nextafter(q, 2, dtype=np.float32)), ("s", s + 1), ("ensemble", s), ("s", s * np.nan)):
        assert not accuracy.compared(cpu, {**cuda, name: value}, cuda, ["q", "s"])["held"]
    assert not accuracy.compared(cpu, cuda, cpu, ["q", "s"])["held"]


def test_commands_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On devices that are here; the commands run in this process."""
    def command(*words: str) -> None:
        with pytest.raises(SystemExit) as stopped:
            cli.main(list(words))
        assert stopped.value.code == 0

    monkeypatch.setattr(accuracy, "DEVICES", ("cpu", "reference"))
    monkeypatch.setattr(accuracy, "command", command)
    records = np.random.default_rng(0).integers(0, 256, (5, 3073), dtype=np.uint8)
    records[:, 0] = range(5)
    records.tofile(tmp_path / "test_batch.bin")
    result = accuracy.evaluated(str(tmp_path))
    assert result["total"] == 5 and set(result["right"]["cpu"]) == {"q", "s", "o", "ensemble"} and set(result["right"]) == {"cpu", "reference"}
    predicted = accuracy.predicted(str(tmp_path))
    assert predicted == {"held": True, "rows": 5, "differing": 0}


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"hce eval nothing\.hce .* ended with code"):
        accuracy.command("eval", "nothing.hce", "--data", "nowhere")


def test_the_report_has_every_stage(out: Path) -> None:
    assert sorted(report.NAMES) == sorted(one.name for one in driver.STAGES)
    text = report.tables(out)
    assert "20 (100 %)" in text and "goal: ensemble against torch.compile, float32, of the unpruned network: 3x wanted, 5x: reached" in text
    assert "FAILED ensemble: resnet20 w3a3+s43.5, batch 4096: s fp16x3: too far from float64" in text
    assert "racecheck: compute-sanitizer was not found" in text and "not measured: gemm" in text


def test_a_run_becomes_one_file_and_the_page_says_what_it_holds(out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    assert report.main([str(out), "--collect", str(folder / "some-gpu.json")]) == 0
    text = page.rendered(folder)
    assert "### Some GPU" in text and "| 3x | 5x | reached |" in text and "| `ffma_tflops` | 60 | TFLOP/s | 67 |" in text
    assert "20 (100 %)" in text and "| F(2x2) | 1 | 9.0e-07 | 2.0e-08 |" in text
    assert "Overlap: streams 0.50." in text and "Against torch.compile fp32: 5.00x (streams)." in text
    assert "| ensemble streams | 4,818,824 | 3,413,333 |" in text and "Batch 1024, 8192, 256: not measured yet." in text
    assert "| resnet20, batch 4096: ours w4a4 | 13,653,333 | 6,826,667 | 71 |" in text
    assert text.count("| ensemble streams |") == 1 and "| torch fp32 compile-default |" in text
    assert "0 errors in 9 checks of 1 kernels" in text and "| compute-sanitizer initcheck | not measured yet |" in text
    assert "| GPU beside CPU, hce eval | not measured yet |" in text and "1 failed, 7 passed" in text
    assert "#### Ensemble: resnet56 w3a3+s43.5\n\nNot measured yet." in text
    write(out, "gemm", {})
    document = json.loads((out / "gemm.json").read_text())
    (out / "gemm.json").write_text(json.dumps({**document, "identity": {**IDENTITY, "gpu": "Another"}}))
    with pytest.raises(SystemExit, match="got 2 kinds"):
        report.main([str(out), "--collect", str(folder / "mixed.json")])
    assert not (folder / "mixed.json").exists()


def test_without_a_card_nothing_is_claimed(tmp_path: Path) -> None:
    text = page.rendered(tmp_path)
    assert text.count("not measured yet |") == 6 and "No card has been measured" in text
