"""Stages and their driver without a GPU: what is resumed, given up, and reported."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as driver
from benchmarks.gpu import pool, report, stage

FOLDER = Path(__file__).parent
MODULES = ("ceilings", "suite", "accuracy", "repeats", "equality", "tune", "float_layers", "ensemble", "sanitizer", "members", "layers", "gemm")


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("PYTHONPATH", str(stage.ROOT))
    return monkeypatch


def fake(name: str, weight: float = 1.0) -> driver.Stage:
    return driver.Stage(name, (sys.executable, str(FOLDER / "fake_stage.py"), name), weight)


def items_of(out: Path, name: str) -> dict[str, stage.Result]:
    return stage.read(out, name)["items"]


def test_a_stage_goes_on_behind_a_cuda_error_and_the_next_run_behind_all_results(
    tmp_path: Path, names: pytest.MonkeyPatch
) -> None:
    names.setenv("FAKE", "a poisons b wrong long")
    codes = driver.drive([fake("one")], tmp_path, 60)
    document = stage.read(tmp_path, "one")
    assert codes == {"one": stage.LATE} and document["pending"] == ["long"] and not document["complete"]
    assert not document["held"] and set(document["items"]) == {"a", "poisons", "b", "wrong"}
    assert document["items"]["a"]["process"] != document["items"]["b"]["process"]
    names.setenv("FAKE", "a poisons b wrong c")
    assert driver.drive([fake("one")], tmp_path, 60) == {"one": stage.FAILED}
    after = stage.read(tmp_path, "one")
    assert after["complete"] and after["items"]["a"] == document["items"]["a"] and "c" in after["items"]
    assert driver.drive([fake("one")], tmp_path, 60) == {"one": stage.FAILED}  # skipped, and still not forgotten
    assert stage.read(tmp_path, "one") == after


def test_a_stage_that_breaks_does_not_stop_the_others(tmp_path: Path, names: pytest.MonkeyPatch) -> None:
    names.setenv("FAKE", "a dies b")
    codes = driver.drive([fake("broken"), fake("after")], tmp_path, 60)
    assert set(codes.values()) == {9} and driver.verdict([9, stage.HELD]) == stage.FAILED
    names.setenv("FAKE", "a b raises")
    codes = driver.drive([fake("broken"), fake("third")], tmp_path, 60)
    assert codes == {"broken": stage.FAILED, "third": stage.FAILED}
    assert "ValueError: as asked" in items_of(tmp_path, "third")["raises"]["error"]
    assert "--- broken" in (tmp_path / "run.log").read_text()
    assert not list(tmp_path.glob(".hce-*"))


def test_a_stage_past_its_deadline_is_ended_and_keeps_what_it_has(tmp_path: Path, names: pytest.MonkeyPatch) -> None:
    names.setattr(driver, "GRACE", 0.0)
    names.setattr(driver, "LEAST", 1.0)
    names.setenv("FAKE", "a sleep1.2 sleep600")
    start = time.monotonic()
    codes = driver.drive([fake("slow"), fake("never", 1e-3)], tmp_path, 12)
    assert codes == {"slow": stage.LATE, "never": stage.LATE} and time.monotonic() - start < 30
    document = stage.read(tmp_path, "slow")
    assert set(document["items"]) == {"a", "sleep1.2"} and document["pending"] == ["sleep600"]
    assert stage.read(tmp_path, "never") == {}
    assert driver.verdict(list(codes.values())) == stage.LATE


def test_an_item_waits_for_what_it_needs(tmp_path: Path) -> None:
    document = stage.Document(tmp_path, "x", {})
    items = [stage.Item("long", 1e6, dict), stage.Item("after", 0, dict, "long"), stage.Item("free", 0, dict)]
    assert stage.measure(document, items, stage.Deadline(time.time() + 9)) == stage.LATE
    assert set(document.items) == {"free"} and document.content["pending"] == ["long", "after"]
    assert stage.measure(document, items, stage.Deadline(time.time() + 2e6)) == stage.HELD and set(document.items) == {"long", "after", "free"}


def test_results_of_other_sources_are_not_continued(tmp_path: Path) -> None:
    first = stage.Document(tmp_path, "x", {"gpu": "one"})
    first.add("a", {"held": True})
    first.save()
    assert "a" in stage.Document(tmp_path, "x", {"gpu": "one"}).items
    assert not stage.Document(tmp_path, "x", {"gpu": "another"}).items
    (tmp_path / "x.json").write_text("[1")
    assert stage.read(tmp_path, "x") == {}


def test_verdicts() -> None:
    assert driver.verdict([stage.HELD]) == stage.HELD
    assert driver.verdict([stage.HELD, stage.LATE]) == stage.LATE
    assert driver.verdict([stage.LATE, stage.POISONED]) == stage.FAILED
    assert driver.verdict([stage.HELD, stage.UNSUPPORTED]) == stage.UNSUPPORTED


def test_every_stage_is_driven() -> None:
    assert [s.command[-1].rpartition(".")[2] for s in driver.STAGES] == list(MODULES)
    assert driver.SECONDS < 600


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
@pytest.mark.parametrize("name", MODULES)
def test_without_a_gpu_a_stage_says_so(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"benchmarks.gpu.{name}")
    assert stage.main(module.NAME, module.run, ["--out", str(tmp_path)]) == stage.UNSUPPORTED
    assert "expected a CUDA device" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_gpu_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert driver.main([str(tmp_path / "out")]) == stage.UNSUPPORTED
    assert "run this on a machine with an NVIDIA GPU" in capsys.readouterr().err


def test_results_depend_on_the_sources_of_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "ROOT", tmp_path)
    (tmp_path / "csrc" / "cuda" / "kernels").mkdir(parents=True)
    file = tmp_path / "csrc" / "cuda" / "kernels" / "x.h"
    digests = set()
    for text in ("1", "2"):
        file.write_text(text)
        (file.parent / "notes.md").write_text(text)
        digests.add(stage.sources_digest())
    file.with_suffix(".md").write_text("3")
    assert len(digests) == 2 and stage.sources_digest() in digests


def test_arguments_are_checked(tmp_path: Path) -> None:
    out, deadline = stage.arguments("x", ["--out", str(tmp_path / "new"), "--deadline", "7"])
    assert out.is_dir() and deadline.unix == 7 and deadline.left() < 0
    for argv in ([], ["--out"]):
        with pytest.raises(SystemExit, match="2"):
            stage.arguments("x", argv)
    with pytest.raises(SystemExit, match="2"):
        driver.main([str(tmp_path), "--only", "nothing"])
    usage = subprocess.run(["bash", str(stage.ROOT / "benchmarks/gpu/run.sh")], capture_output=True, text=True, check=False)
    assert usage.returncode == 2 and "usage" in usage.stderr


def test_the_script_builds_in_place_where_packages_are_managed_by_others(tmp_path: Path, names: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\necho \"called: $*\"\ncase \"$*\" in *pip*) exit 1;; *benchmarks.gpu*) exit 75;; esac\nexit 0\n"
    )
    python.chmod(0o755)
    names.setenv("PYTHON", str(python))
    names.setenv("HCE_GPU_SECONDS", "100")
    out = tmp_path / "out"
    command = ["bash", str(stage.ROOT / "benchmarks/gpu/run.sh"), str(out), "--only", "gemm"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    log = (out / "run.log").read_text()
    assert finished.returncode == stage.LATE and "setup.py -q build_ext --inplace" in log
    assert f"called: -m benchmarks.gpu {out} --seconds" in finished.stdout and finished.stdout.rstrip().endswith("--only gemm")


def test_a_worker_that_dies_hangs_or_ends_is_replaced(names: pytest.MonkeyPatch) -> None:
    results: dict[str, pool.Message] = {}
    tasks = [{"key": f"{do}{i}", "do": do} for i, do in enumerate(("answer", "die", "answer", "last", "answer", "hang", "answer"))]
    command = [sys.executable, str(FOLDER / "fake_worker.py")]
    pool.run(command, tasks, 1, 6.0, lambda: 100.0, lambda task, answer: results.__setitem__(task["key"], answer))
    assert [result["held"] for result in results.values()] == [True, False, True, True, True, False, True]
    assert results["die1"]["error"] == "the worker ended with code 9" and "no answer" in results["hang5"]["error"]
    assert results["answer2"]["process"] == results["last3"]["process"] != results["answer4"]["process"]
    assert "last" not in results["last3"]
    pool.run(command, tasks, 2, 6.0, lambda: 1.0, lambda task, answer: pytest.fail("no time was left"))
    short = iter((100.0, 1.0))  # the task that the end of the time cuts short has no result
    pool.run(command, [{"key": "x", "do": "hang"}] * 2, 1, 100.0, lambda: next(short, 0.0), lambda task, answer: pytest.fail(str(answer)))


def test_the_outcomes_of_tests_are_noted_and_known_ones_left_out(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\ndef test_good(): pass\ndef test_bad(): assert 0, 'why'\n@pytest.mark.skip(reason='no need')\ndef test_not(): pass\n"
    )
    outcomes, known = tmp_path / "outcomes", tmp_path / "known"
    known.write_text("[]")
    environment = {**os.environ, "HCE_TEST_OUTCOMES": str(outcomes), "HCE_TEST_KNOWN": str(known), "PYTHONPATH": str(stage.ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.gpu.outcomes", "-p", "no:cacheprovider", str(tmp_path)]
    subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, check=False)
    lines = [json.loads(line) for line in outcomes.read_text().splitlines()]
    assert [line[1] for line in lines] == ["passed", "failed", "skipped"]
    assert "why" in lines[1][3] and "no need" in lines[2][3]
    known.write_text(json.dumps([line[0] for line in lines[:2]]))
    outcomes.unlink()
    subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, check=False)
    assert [json.loads(line)[1] for line in outcomes.read_text().splitlines()] == ["skipped"]


def test_the_report_names_what_is_there_what_fails_and_what_is_missing(tmp_path: Path) -> None:
    contender = {"median_us": 12.5, "percent_of_bound": 63.0}
    document = stage.Document(tmp_path, "gemm", {"gpu": "some"})
    document.add("8192x8192x1", {"held": False, "contenders": {"ours w4a8": contender, "ours w3a8": {"held": False, "error": "7 logits differ"}}})
    document.content["pending"] = ["8192x8192x16"]
    document.save()
    text = report.tables(tmp_path)
    assert "12.5 (63 %)" in text and "FAILED gemm: 8192x8192x1: ours w3a8: 7 logits differ" in text
    assert "not measured, gemm: 1 items" in text and "not measured: members" in text
