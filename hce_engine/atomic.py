"""Files appear whole or not at all: a reader never sees half of one, and a failed write leaves what was there before."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import WriteError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Opens a new binary file that takes the place of ``path`` when the block ends without an exception.

    The bytes go to a temporary file in the same folder, are synced, and are renamed over ``path``; then the folder is
    synced. On any exception the temporary file is removed and ``path`` is untouched. Raises WriteError when the folder
    is missing, not writable or full, or ``path`` is something other than a file: a device would be gone for everyone.
    """
    path = Path(path)
    temporary = path.parent / f".hce-{secrets.token_hex(8)}.tmp"
    try:
        if path.exists() and not path.is_file():
            raise WriteError(f"writing {path}", expected="a file, or a name that is free",
                             got="a folder" if path.is_dir() else "a device or pipe", fix="choose another name")
        # os.open, unlike tempfile, lets the caller's umask decide who may read the result.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            with open(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise WriteError(
            f"writing {path}", expected="a writable folder with free space",
            got=error.strerror or type(error).__name__, fix="free some space or choose another place; nothing was written",
        ) from error
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # The file is complete by now, and some file systems cannot sync a folder: durability of its name is best effort.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
