"""A run on a time line, as a file for Perfetto or chrome://tracing (Trace Event Format, "X" events in microseconds).

Launches are started one by one, each between two timing events on its own stream; the host waits once, at the end, and all
times count from one event. That is slower than the graph which an engine replays: each launch waits for the host, and events
take their time. The trace shows order, overlap and proportions, and its metadata says what it is not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...atomic import atomic_write
from .runtime import Event, Runtime, Stream
from .work import Work

NOTE = ("launches were started one by one between timing events, which is slower than the CUDA graph that an engine replays: "
        "read order and proportions, not speed")


@dataclass(frozen=True)
class _Span:
    process: str
    stream: Stream
    work: Work
    begin: Event
    end: Event


class Recorder:
    """Starts work and notes when it ran. process: the heading under which spans appear from now on."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.process = runtime, ""
        self.base = runtime.event(timing=True)
        self.base.record(runtime.current())
        self._spans: list[_Span] = []
        self._names: dict[tuple[str, Stream], str] = {}

    def name(self, stream: Stream, text: str) -> None:
        """What a stream is called; the first name under a heading counts."""
        self._names.setdefault((self.process, stream), text)

    def __call__(self, work: Work) -> None:
        stream = self.runtime.current()
        begin, end = self.runtime.event(timing=True), self.runtime.event(timing=True)
        begin.record(stream)
        work.start()
        end.record(stream)
        self._spans.append(_Span(self.process, stream, work, begin, end))

    def events(self) -> list[dict[str, Any]]:
        """Names of processes and threads, then spans; waits for all work."""
        self.runtime.synchronize()
        processes = list(dict.fromkeys(span.process for span in self._spans))
        threads = list(dict.fromkeys((span.process, span.stream) for span in self._spans))
        found: list[dict[str, Any]] = [
            _metadata("process_name", processes.index(process) + 1, 0, {"name": process}) for process in processes
        ]
        for index, (process, stream) in enumerate(threads):
            pid = processes.index(process) + 1
            name = self._names.get((process, stream), "another stream")
            found.append(_metadata("thread_name", pid, index + 1, {"name": name}))
            found.append(_metadata("thread_sort_index", pid, index + 1, {"sort_index": index}))
        for span in self._spans:
            work = span.work
            arguments = {"bytes_read": work.cost.read, "bytes_written": work.cost.written, "macs": work.cost.macs,
                         "macs_walked": work.cost.walked, "launches": 1, "config": work.config}
            found.append({
                "name": f"{'+'.join(work.nodes)} {work.kernel}", "cat": work.kernel, "ph": "X",
                "pid": processes.index(span.process) + 1, "tid": threads.index((span.process, span.stream)) + 1,
                "ts": 1e3 * self.base.elapsed_time(span.begin), "dur": 1e3 * span.begin.elapsed_time(span.end),
                "args": {k: v for k, v in arguments.items() if v},
            })
        return found


def _metadata(name: str, process: int, thread: int, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "ph": "M", "pid": process, "tid": thread, "args": arguments}


def write_trace(path: str | Path, events: Sequence[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Writes the file whole or not at all. facts: what ``otherData`` holds besides the note."""
    document = {"traceEvents": list(events), "displayTimeUnit": "ns", "otherData": {"note": NOTE, **facts}}
    with atomic_write(path) as file:
        file.write((json.dumps(document, allow_nan=False) + "\n").encode())
