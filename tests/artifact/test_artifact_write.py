"""A failed write leaves what was there before and nothing else."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from hce_engine.artifact import Artifact, load, save
from hce_engine.atomic import atomic_write
from hce_engine.errors import WriteError

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_no_space_left(artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.hce").write_bytes(b"as it was")

    def full(*_: object) -> None:
        raise FULL

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(WriteError, match="No space left"):
                save(tmp_path / "m.hce", artifact)
        assert [p.name for p in tmp_path.iterdir()] == ["m.hce"]
        assert (tmp_path / "m.hce").read_bytes() == b"as it was"


@pytest.mark.parametrize("limit", [0, 1, 100, 4096])
def test_file_size_limit(artifact: Artifact, tmp_path: Path, limit: int) -> None:
    save(tmp_path / "source.hce", artifact)
    code = (
        "import resource, sys; from hce_engine.artifact import load, save; from hce_engine.errors import WriteError\n"
        "a = load(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)\n"
        "try: save(sys.argv[2], a)\n"
        "except WriteError as e: print(e)"
    )
    arguments = [str(tmp_path / "source.hce"), str(tmp_path / "m.hce"), str(limit)]
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert "nothing was written" in run.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["source.hce"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != limit


def test_missing_folder_and_folder_in_the_way(artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="No such file"):
        save(tmp_path / "none" / "m.hce", artifact)
    (tmp_path / "m.hce").mkdir()
    with pytest.raises(WriteError):
        save(tmp_path / "m.hce", artifact)
    assert [p.name for p in tmp_path.iterdir()] == ["m.hce"]


def test_an_exception_of_the_block_passes_through(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic_write(tmp_path / "x") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_replaces_and_respects_the_umask(artifact: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "m.hce"
    path.write_bytes(b"older")
    mask = os.umask(0o027)
    try:
        save(path, artifact)
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640
    assert load(path).classes == artifact.classes
