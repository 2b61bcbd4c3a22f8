"""What benchmarks share: this machine's peaks, measured once, before anything else runs."""

from __future__ import annotations

import pytest

from hce_engine.peaks import Peaks, measure_peaks


@pytest.fixture(scope="session")
def peaks() -> Peaks:
    """Of one thread, for the instruction set that is used (``HCE_ISA`` names another)."""
    return measure_peaks(threads=1)
