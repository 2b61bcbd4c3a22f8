"""Clocks, power and temperature while something is measured, as nvidia-smi tells them. Reads only: no setting is touched."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import threading
from typing import Any

FIELDS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "utilization.gpu")
NAMES = ("sm_mhz", "memory_mhz", "watts", "celsius", "percent_busy")
PERIOD_MS = 500


class Clocks:
    """A context: samples every half second in the background, from a process of its own."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, ...]] = []
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Clocks:
        program = shutil.which("nvidia-smi")
        if program:
            command = [program, "-i", "0", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits", "-lms", str(PERIOD_MS)]
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
