"""A stage: a list of items, measured one after the other, each result in the stage's JSON file before the next one starts.

    python -m benchmarks.gpu.STAGE --out OUT --deadline UNIX_SECONDS

The file is complete when every item has a result. An interrupted or late stage leaves the items it has; the same call again
measures the rest. Results of another GPU, other sources or other versions are not continued: the file starts anew.

Exit codes: 0 all items held, 1 some did not or the stage broke, 3 no GPU here, 70 a CUDA error ended the process (the next
process goes on behind the item that caused it), 75 out of time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hce_engine.atomic import atomic_write
from hce_engine.bench.cuda_clocks import Clocks

SCHEMA_VERSION = 1
HELD, FAILED, UNSUPPORTED, POISONED, LATE = 0, 1, 3, 70, 75
ROOT = Path(__file__).resolve().parents[2]
# What a result depends on; documentation and tests are not among it.
SOURCES = ("csrc/cuda", "kernels", "hce_engine/plan/cuda", "hce_engine/backends/cuda", "benchmarks/gpu")
SUFFIXES = (".py", ".cu", ".cpp", ".h")
SAVE_EVERY = 1.0  # seconds, for items that end more quickly
# Errors after which a process cannot use its GPU any more.
STICKY = ("illegal memory access", "device-side assert", "misaligned address", "unspecified launch failure", "illegal instruction")

Result = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """key: unique in the stage.  seconds: what it may take; it is not begun with less left.  measure: gives its result,
    ``{"held": False, ...}`` where something that must hold does not.  needs: the key of an item whose result it reads."""

    key: str
    seconds: float
    measure: Callable[[], Result]
    needs: str = ""


class Late(Exception):
    """Raised by an item that the end of the time cut short: it has no result yet."""


def sources_digest() -> str:
    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES):
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def commit() -> str:
    """The commit that is measured: HCE_COMMIT, or git's word for it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        found = ""
    return os.environ.get("HCE_COMMIT") or found or "unknown"


def gpu_name() -> str:
    """As torch names it. The driver tells its stages, in HCE_GPU_NAME."""
    if "HCE_GPU_NAME" not in os.environ:
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return os.environ["HCE_GPU_NAME"]


def identity() -> dict[str, str]:
    """What results must have in common to stand in one file."""
    return {"gpu": gpu_name(), "torch": version("torch"), "triton": version("triton"), "sources": sources_digest()}


def read(out: Path, name: str) -> dict[str, Any]:
    """The document of a stage, empty where there is none yet."""
    try:
        document = json.loads((out / f"{name}.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) and document.get("schema_version") == SCHEMA_VERSION else {}


class Document:
    """The JSON file of a stage. ``items`` grows one by one and is saved as it grows."""

    def __init__(self, out: Path, name: str, identity: dict[str, str]) -> None:
        self.path, self._saved = out / f"{name}.json", 0.0
        old = read(out, name)
        if old and old["identity"] != identity:
            print(f"{name}: {self.path.name} is of {old['identity']}; it starts anew")
            old = {}
        self.content: dict[str, Any] = old or {
            "schema_version": SCHEMA_VERSION, "stage": name, "identity": identity, "commit": commit(), "complete": False,
            "held": True, "seconds": 0.0, "pending": [], "clocks": [], "items": {},
        }

    @property
    def items(self) -> dict[str, Result]:
        return self.content["items"]

    def add(self, key: str, result: Result) -> None:
        self.items[key] = result
        self.save(SAVE_EVERY)

    def save(self, every: float = 0.0) -> None:
        if time.monotonic() - self._saved < every:
            return
        self.content["held"] = all(result.get("held", True) for result in self.items.values())
        with atomic_write(self.path) as file:
            file.write((json.dumps(self.content, indent=0, default=str) + "\n").encode())
        self._saved = time.monotonic()


class Deadline:
    """unix: seconds since 1970 when everything must be written."""

    def __init__(self, unix: float) -> None:
        self.unix = unix

    def left(self) -> float:
        return self.unix - time.time()


def failure(error: BaseException) -> Result:
    last = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
    where = f" ({Path(last.filename).name}:{last.lineno})" if last else ""
    return {"held": False, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:600]}{where}"}


def sticky(error: BaseException) -> bool:
    """Whether the process must end. Other CUDA errors, of a capture say, may leave the GPU usable: that is tried."""
    if any(words in str(error) for words in STICKY):
        return True
    if "CUDA" not in str(error) or "torch" not in sys.modules:
        return False
    import torch

    try:
        torch.ones(1, device="cuda").item()
    except Exception:
        return torch.cuda.is_available()
    return False


def measure(document: Document, items: Sequence[Item], deadline: Deadline) -> int:
    """Measures what has no result yet; returns the exit code of the stage."""
    waiting = [item for item in items if item.key not in document.items]
    late: list[str] = []
    for position, item in enumerate(waiting):
        rest = [later.key for later in waiting[position + 1 :]]
        if deadline.left() < item.seconds or (item.needs and item.needs not in document.items):
            late.append(item.key)
            continue
        document.content["pending"] = [*late, item.key, *rest]
        document.save(0.0 if item.seconds > SAVE_EVERY else SAVE_EVERY)
        poisoned = False
        try:
            result = item.measure()
        except Late:
            late.append(item.key)
            continue
        except Exception as error:
            result, poisoned = failure(error), sticky(error)
            print(f"{item.key}: {result['error']}", flush=True)
        document.content["pending"] = [*late, *rest]
        document.add(item.key, result)
        if poisoned:
            return POISONED
    return finish(document, late)


def finish(document: Document, late: Sequence[str]) -> int:
    """The exit code of a stage that leaves the items ``late`` unmeasured."""
    document.content["pending"] = list(late)
    document.content["complete"] = not late
    if late:
        print(f"not measured for want of time: {len(late)} items, {late[0]} first")
        return LATE
    return HELD if all(r.get("held", True) for r in document.items.values()) else FAILED


def arguments(name: str, argv: Sequence[str] | None = None) -> tuple[Path, Deadline]:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.gpu.{name}")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--deadline", type=float, default=time.time() + 600, help="seconds since 1970; by default in 10 minutes")
    given = parser.parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    return given.out, Deadline(given.deadline)


def no_gpu() -> str | None:
    """Why nothing can be measured here, if it cannot."""
    import torch

    if not torch.cuda.is_available():
        return f"expected a CUDA device, got none that torch {torch.__version__} can use; run this on a machine with an NVIDIA GPU"
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return "expected compiled kernels, got TRITON_INTERPRET in the environment; unset it"
    return None


def main(
    name: str, run: Callable[[Document, Path, Deadline], int], argv: Sequence[str] | None = None, *, gpu: bool = True
) -> int:
    """Runs a stage: ``run`` fills the document and returns the exit code.  gpu: whether it needs one."""
    out, deadline = arguments(name, argv)
    reason = no_gpu() if gpu else None
    if reason:
        print(f"{name}: {reason}", file=sys.stderr)
        return UNSUPPORTED
    start = time.monotonic()
    document = Document(out, name, identity())
    code = FAILED
    with Clocks() as clocks:
        try:
            code = run(document, out, deadline)
        except Exception as error:
            document.content["error"] = failure(error)["error"]
            traceback.print_exc()
        else:
            document.content.pop("error", None)
    document.content["seconds"] += round(time.monotonic() - start, 1)
    document.content["clocks"].append(clocks.summary())
    document.save()
    return code
