"""What nvidia-smi says, or that it says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from hce_engine.bench.cuda_clocks import Clocks, ask, parse


def test_clocks_are_read_or_said_to_be_missing() -> None:
    assert parse("1980, 3201, 120.5, 34, 99\n") == (1980, 3201, 120.5, 34, 99)
    assert parse("1980, [N/A], 1, 2, 3") is None and parse("1, 2") is None
    clocks = Clocks()
    assert clocks.summary()["samples"] == 0
    clocks.samples = [(1.0, 2.0, 3.0, 4.0, 5.0), (3.0, 2.0, 3.0, 4.0, 5.0)]
    assert clocks.summary()["sm_mhz"] == [1, 2, 3]


def test_each_question_is_asked_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\ncase "$3" in *good) echo " $2 580.1";; *) echo no such field >&2; exit 2;; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert ask(("bad", "good"), "GPU-7") == {"good": "GPU-7 580.1"}
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert ask(("good",)) == {}
    with Clocks() as clocks:
        pass
    assert clocks.summary() == {"samples": 0, "why": "nvidia-smi gave none"}
