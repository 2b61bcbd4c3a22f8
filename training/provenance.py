"""Where a result comes from: the code's commit, the packages, the machine."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import torch

import hce_engine
from hce_engine.machine import processor

from . import distributed


@cache
def commit() -> str | None:
    """As of the first call, which is at the start of a run: later commits are not the code that runs. Git commit of the sources that run, with ``+`` behind it if tracked files differ from it; None outside a checkout."""
    root = Path(hce_engine.__file__).resolve().parent.parent
    if not (root / ".git").exists():  # an installed package inside somebody else's repository is not a checkout of it
        return None
    try:
        name = _git(root, "rev-parse", "--short=12", "HEAD")
        return name + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def hardware(device: torch.device) -> str:
    """What trains, in words; batch norm sees a process's share, so their number is part of it."""
    threads = torch.get_num_threads()
    name = f"{processor()}, {threads} thread{'s' * (threads > 1)}"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    processes = distributed.share()[1]
    return name if processes == 1 else f"{processes} x {name}"


def versions() -> dict[str, str | None]:
    """What a result depends on beside the recipe and the data."""
    return {"hce_engine": hce_engine.__version__, "commit": commit(), "torch": torch.__version__, "numpy": np.__version__,
            "python": platform.python_version(), "torch_threads": str(torch.get_num_threads())}
