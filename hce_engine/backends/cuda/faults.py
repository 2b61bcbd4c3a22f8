"""What a call of the back end raises: errors of CUDA and Triton as those of this project, and the end of an engine after
one."""

from __future__ import annotations

import torch

from ...errors import HceError, UnsupportedError


class Faults:
    """A context for each call. A CUDA error ends it for good: nothing can be known of the device's memory after it, and every
    later call says so. Running out of memory, a wrong argument or an interruption end that call alone."""

    def __init__(self) -> None:
        self._error: BaseException | None = None

    def __enter__(self) -> None:
        if self._error is not None:
            raise UnsupportedError("cuda back end", expected="an engine that has not failed",
                                   got=f"one that did: {sentence(self._error)}", fix="make a new engine, in a new process")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, HceError) or not isinstance(error, Exception):
            return  # nothing, an error that says enough, or an interruption
        if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
            raise UnsupportedError("cuda back end", expected="memory for a bucket of images", got=sentence(error),
                                   fix="use a smaller batch, or end what else uses this GPU") from error
        self._error = error
        raise UnsupportedError("cuda back end", expected="a run without errors", got=sentence(error),
                               fix="make a new engine, in a new process; this one is not used again") from error


def no_memory(images: int, needed: int, got: str) -> UnsupportedError:
    return UnsupportedError("cuda back end", expected=f"{needed} bytes of free GPU memory for {images} images", got=got,
                            fix="use a smaller batch, or end what else uses this GPU")


def sentence(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
