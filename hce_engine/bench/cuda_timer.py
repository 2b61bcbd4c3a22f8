"""Time on a GPU by its events: from the first call's start to the end of the last one's work, without waiting in between.

The host queues calls faster than the GPU works them off, or it does not, and then this is what is measured: the throughput of someone
whose images are on the GPU. A little work is queued in front, so that the host is ahead when the first event passes.
"""

from __future__ import annotations

import torch

from .turns import Call, settle

LEAD_CYCLES = 200_000  # about 0.1 ms


class CudaEvents:
    """Timer of calls that queue their work on the current stream of a GPU."""

    def __init__(self, index: int) -> None:
        self.index = index

    def settle(self) -> bool:
        torch.cuda.synchronize(self.index)
        return settle()

    def seconds(self, call: Call, count: int) -> float:
        with torch.cuda.device(self.index):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda._sleep(LEAD_CYCLES)
            begin.record()
            for _ in range(count):
                call()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) / 1e3
