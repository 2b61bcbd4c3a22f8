"""The compile check: it passes, and it fails for each reason that it should fail for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from hce_engine.kernels import budgets, check
from hce_engine.kernels.cases import all_cases
from hce_engine.kernels.compiler import compile_launch
from hce_engine.kernels.launch import INTERPRETED
from hce_engine.kernels.machine_code import parse_instructions

ROOT = Path(__file__).resolve().parents[2]
RELEASE = budgets.minor_version(version("triton"))
MEAN = "ensemble_mean: 2 members of 10 classes"


def run_check(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "hce_engine.kernels.check", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def measured(**changes: Any) -> dict[str, Any]:
    good = {
        "registers": 64, "stack": 0, "local": 0, "shared": 4096, "spills": 0, "fused": 0, "mma": "wgmma",
        "expected_mma": "wgmma", "instructions": 40.0, "unpack": 0.4, "prmt": 0,
    }
    return good | changes


BUDGET = {"instructions": 40.0, "registers": 64, "unpack": 0.4, "prmt": 0}


@pytest.mark.slow
def test_the_quick_check_passes(device: str, tmp_path: Path) -> None:
    result = run_check("--quick", "--json", str(tmp_path / "check.json"))
    assert result.returncode == 0, result.stdout + result.stderr
    cases = json.loads((tmp_path / "check.json").read_text())["cases"]
    assert len(cases) == sum(case.quick for case in all_cases())
    assert all(case["run"]["differing"] == 0 and not case["faults"] for case in cases)


def test_a_violated_budget_fails_and_is_named(device: str, tmp_path: Path) -> None:
    table = {RELEASE: {MEAN: {"90": {"instructions": 1.0, "registers": 1, "prmt": 0}}}}
    budgets.write_budgets(table, tmp_path / "budgets.json")
    result = run_check(f"--only={MEAN}", "--targets", "90", "--budgets", str(tmp_path / "budgets.json"))
    assert result.returncode == 1, result.stdout + result.stderr
    assert MEAN in result.stdout
    assert "FAILED sm_90: instructions" in result.stdout
    assert "FAILED sm_90: registers" in result.stdout


@pytest.mark.parametrize(("run", "compiled", "release", "code", "text"), [
    ({}, {}, RELEASE, 0, "1 cases, 0 failed"),
    ({"differing": 3}, {}, RELEASE, 1, "FAILED 3 values differ from the reference"),
    ({"error": "boom"}, {}, RELEASE, 1, "FAILED boom"),
    ({}, {"error": "no memory"}, RELEASE, 1, "FAILED no memory"),
    ({}, {"fused": 2}, RELEASE, 1, "FAILED sm_90: 2 fused multiply-adds"),
    ({}, {"instructions": 50.0}, RELEASE, 1, "FAILED sm_90: instructions 50, budget 40"),
    ({}, {"instructions": 50.0}, "0.1", 0, f"no budget for triton {RELEASE}"),
    ({}, {"spills": 2}, "0.1", 1, "FAILED sm_90: 2 loads and stores of local memory"),
])
def test_what_fails_a_check(
    run: dict[str, Any], compiled: dict[str, Any], release: str, code: int, text: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    answer = compiled if "error" in compiled else {"targets": {"90": measured(**compiled)}}
    case = {"name": "conv2d: a layer", "run": {"differing": 0, "where": "interpreter"} | run, "compile": answer}
    monkeypatch.setattr(check, "_collect", lambda options: iter([case]))
    budgets.write_budgets({release: {"conv2d: a layer": {"90": BUDGET}}}, tmp_path / "budgets.json")
    assert check.main(["--targets", "90", "--budgets", str(tmp_path / "budgets.json")]) == code
    assert text in capsys.readouterr().out


def test_a_case_without_a_budget_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    case = {"name": "new", "run": {"differing": 0, "where": "interpreter"}, "compile": {"targets": {"90": measured()}}}
    monkeypatch.setattr(check, "_collect", lambda options: iter([dict(case)]))
    arguments = ["--targets", "90", "--budgets", str(tmp_path / "budgets.json")]
    budgets.write_budgets({RELEASE: {}}, tmp_path / "budgets.json")
    assert check.main(arguments) == 1
    assert "no budget" in capsys.readouterr().out
    assert check.main([*arguments, "--update-budgets"]) == 0
    assert budgets.read_budgets(tmp_path / "budgets.json") == {RELEASE: {"new": {"90": BUDGET}}}
    assert check.main(arguments) == 0


def test_a_check_of_nothing_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(check, "_collect", lambda options: iter([]))
    assert check.main(["--only", "no such kernel"]) == 1
    assert "no case contains 'no such kernel'" in capsys.readouterr().out


def test_every_launcher_has_a_case() -> None:
    launchers = {
        path.stem for path in (ROOT / "kernels").glob("*.py")
        if "@triton.jit(" in (text := path.read_text(encoding="utf-8")) and ("-> Launch:" in text or "-> list[Launch]:" in text)
    }
    covered = {case.kernel.split(".")[0] for case in all_cases()}
    assert launchers == covered
    titles = [case.title for case in all_cases()]
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize("kernel", ["conv2d", "elementwise.add", "move.gather", "head", "ensemble_mean"])
def test_a_case_sees_a_launch_that_did_nothing(device: str, kernel: str) -> None:
    case = next(case for case in all_cases() if case.kernel == kernel)
    built = case.build(device, False)
    assert built.differing() > 0
    for launch in built.launches:
        launch()
    assert built.differing() == 0


def test_a_case_sees_a_changed_halo(device: str) -> None:
    built = next(case for case in all_cases() if case.kernel == "elementwise.recode").build(device, False)
    for launch in built.launches:
        launch()
    built.launches[0].arguments["y0"][0] ^= 1
    assert built.differing() == 1


@pytest.mark.skipif(not INTERPRETED, reason="this process compiles kernels")
def test_compiling_where_kernels_are_interpreted_is_an_error() -> None:
    built = next(case for case in all_cases() if case.kernel == "ensemble_mean").build("cpu", True)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        compile_launch(built.launches[0], 90)


STRAIGHT = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/               @P0 IMAD.SHL.U32 R4, R3, 0x10, RZ ;
        /*0020*/                   IMAD R4, R3, R2, RZ ;
        /*0030*/                   NOP ;
        /*0040*/              @!P1 IMMA.16832.S8.S8.SAT R4, R8.ROW, R6.COL, R4 ;
        /*0050*/                   FFMA.FTZ R0, R1, R2, R3 ;
        /*0060*/                   EXIT ;
.L_x_0:
        /*0070*/                   BRA `(.L_x_0);
"""
LOOP = """
        /*0000*/                   IGMMA.64x16x32.S8.S8 R24, gdesc[UR4], R24, !UPT ;
.L_x_3:
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   IGMMA.64x16x32.S8.S8 R24, gdesc[UR4], R24 ;
        /*0030*/              @!P0 BRA `(.L_x_3);
        /*0040*/                   EXIT ;
"""


def test_instructions_are_counted_by_opcode() -> None:
    opcodes, loop, macs, loop_macs = parse_instructions(STRAIGHT)
    assert opcodes == {"LDC": 1, "IMAD.SHL": 1, "IMAD": 1, "IMMA": 1, "FFMA": 1, "EXIT": 1, "BRA": 1}
    assert not loop
    assert (macs, loop_macs) == (16 * 8 * 32, 0)


def test_a_loop_of_products_counts_as_often_as_it_runs() -> None:
    opcodes, loop, macs, loop_macs = parse_instructions(LOOP)
    assert loop == {"LDG": 1, "IGMMA": 1, "BRA": 1}
    assert (macs, loop_macs) == (2 * 64 * 16 * 32 // 4, 64 * 16 * 32 // 4)
    assert opcodes["IGMMA"] == 2


@pytest.mark.parametrize(("changes", "text"), [
    ({"spills": 2}, "2 loads and stores of local memory"), ({"local": 8}, "8 bytes of local memory"),
    ({"stack": 16}, "16 bytes of stack"), ({"fused": 1}, "1 fused multiply-adds"),
    ({"mma": "mma.sync"}, "MMA mma.sync, expected wgmma"), ({"shared": 300_000}, "300000 bytes of shared memory"),
])
def test_structural_faults(changes: dict[str, Any], text: str) -> None:
    assert budgets.structural_faults(90, measured()) == []
    (fault,) = budgets.structural_faults(90, measured(**changes))
    assert text in fault


def test_budgets_have_margins() -> None:
    assert budgets.budget_faults(measured(instructions=41.0, registers=70), BUDGET) == []
    assert budgets.budget_faults(measured(instructions=43.0), BUDGET) == ["instructions 43, budget 40"]
    assert budgets.budget_faults(measured(unpack=0.8), BUDGET) == ["unpack 0.8, budget 0.4"]
    assert budgets.budget_faults(measured(prmt=1), BUDGET) == ["prmt 1, budget 0"]
    without = {key: value for key, value in BUDGET.items() if key != "unpack"}
    assert budgets.budget_faults(measured(), without) == ["no budget for unpack"]


def test_which_tensor_core_instruction_is_expected() -> None:
    assert [budgets.expected_mma(target, 64, 4) for target in (80, 90, 100)] == ["mma.sync", "wgmma", "mma.sync"]
    assert budgets.expected_mma(90, 16, 4) == "mma.sync"
    assert budgets.expected_mma(90, 64, 2) == "mma.sync"
    assert budgets.expected_mma(90, 0, 4) == "none"
