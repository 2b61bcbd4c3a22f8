"""Clocks, power and temperature while something is measured, as nvidia-smi tells them. Reads only: no setting is touched."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import threading
from collections.abc import Sequence
from typing import Any

FIELDS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "utilization.gpu")
NAMES = ("sm_mhz", "memory_mhz", "watts", "celsius", "percent_busy")
PERIOD_MS = 500
ANSWER_SECONDS = 20


def ask(fields: Sequence[str], gpu: str = "0") -> dict[str, str]:
    """What nvidia-smi says of a GPU (index or UUID), by field, one question each: an unknown field spoils only its own answer and is
    left out. Empty without nvidia-smi."""
    told: dict[str, str] = {}
    for field in fields:
        command = ["nvidia-smi", "-i", gpu, f"--query-gpu={field}", "--format=csv,noheader"]
        try:
            asked = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired):
            break
        if asked.returncode == 0:
            told[field] = asked.stdout.strip()
    return told


class Clocks:
    """A context: samples every half second in the background, from a process of its own. gpu: index or UUID."""

    def __init__(self, gpu: str = "0") -> None:
        self.gpu = gpu
        self.samples: list[tuple[float, ...]] = []
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Clocks:
        program = shutil.which("nvidia-smi")
        if program:
            command = [program, "-i", self.gpu, f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits", "-lms", str(PERIOD_MS)]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()
        return self

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            sample = parse(line)
            if sample is not None:
                self.samples.append(sample)

    def __exit__(self, *_: object) -> None:
        if self._process is None or self._reader is None:
            return
        self._process.terminate()
        self._process.wait()
        self._reader.join(timeout=5)

    def summary(self) -> dict[str, Any]:
        """Least, median and largest of each quantity, and the series."""
        if not self.samples:
            return {"samples": 0, "why": "nvidia-smi gave none"}
        columns = dict(zip(NAMES, zip(*self.samples, strict=True), strict=True))
        return {
            "samples": len(self.samples), "period_ms": PERIOD_MS,
            **{key: [min(values), statistics.median(values), max(values)] for key, values in columns.items()},
            "series": {key: columns[key] for key in ("sm_mhz", "watts")},
        }


def parse(line: str) -> tuple[float, ...] | None:
    """One line of nvidia-smi, None where a number is missing."""
    try:
        values = tuple(float(word) for word in line.split(","))
    except ValueError:
        return None
    return values if len(values) == len(FIELDS) else None
