"""What ends a command early, or stands in the way of its output, leaves files as they were and one sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hce_engine.cli import TERMINATED


def _hce(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "hce_engine", *map(str, arguments)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("extra", [[], ["--json", "-"]])
def test_a_full_disk_behind_stdout_is_one_sentence(model: Path, extra: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(_hce("info", model, *extra), stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "expected free space" in done.stderr and done.stderr.count("\n") == 1


def test_a_reader_that_left_is_no_error(model: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(_hce("info", model), stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_closed_stdout_does_not_matter(model: Path) -> None:
    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *_hce("info", model)], stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_request_to_end_leaves_nothing_behind(model: Path, tmp_path: Path) -> None:
    images = tmp_path / "many.npy"
    np.lib.format.open_memmap(images, "w+", np.uint8, (4_000_000, 8, 8, 3)).flush()
    folder = tmp_path / "out"
    folder.mkdir()
    running = subprocess.Popen(_hce("run", model, images, "-o", folder / "p.csv", "--batch", 8, "--threads", 1))
    deadline = time.monotonic() + 60
    while not list(folder.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == TERMINATED
    assert list(folder.iterdir()) == []


def test_no_command_writes_over_its_input(run_hce: Callable, model: Path, checkpoint: Path, tmp_path: Path) -> None:
    images, link = tmp_path / "a.npz", tmp_path / "link.csv"
    np.savez(images, images=np.zeros((2, 8, 8, 3), np.uint8))
    link.symlink_to(model)
    before = {path: path.read_bytes() for path in (model, checkpoint, images)}
    arch = ("--arch", "small_net_for_tests:factory", "--size", 8)
    for arguments in (
        ("run", model, images, "-o", images), ("run", model, images, "-o", link),
        ("run", model, images, "-o", tmp_path / "p.csv", "--json", tmp_path / "p.csv"),
        ("run", model, images, "-o", tmp_path / "p.csv", "--json", images), ("info", model, "--json", model),
        ("build", checkpoint, *arch, "-o", checkpoint), ("eval", model, "--data", images, "--json", images),
    ):
        result = run_hce(*arguments)
        assert result.code == 2 and "a file of its own" in result.err, arguments
    assert {path: path.read_bytes() for path in before} == before
    assert not (tmp_path / "p.csv").exists()


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_only_files_are_replaced(run_hce: Callable, model: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "result.json"
    (os.mkfifo if kind == "pipe" else os.mkdir)(path)
    result = run_hce("info", model, "--json", path)
    assert result.code == 1 and f"{kind}; choose another name" in result.err
    assert not path.is_file() and os.listdir(tmp_path) == ["result.json"]


def test_memory_that_is_not_there_is_named(run_hce: Callable, checkpoint: Path, tmp_path: Path) -> None:
    result = run_hce("build", checkpoint, "--arch", "small_net_for_tests:factory", "--size", 1 << 20, "-o", tmp_path / "x.hce")
    assert result.code == 1 and "out of memory" in result.err


def test_a_path_with_nothing_there_is_said_before_options(run_hce: Callable, tmp_path: Path) -> None:
    result = run_hce("build", tmp_path / "none.pt", "-o", tmp_path / "x.hce")
    assert result.code == 2 and "nothing there" in result.err
