"""Processes beside each other, each with the GPU to itself in its turn: compiling is what takes the time.

A worker reads one JSON line per task from its standard input and answers with one line on its standard output. One that dies
or takes too long is replaced; its task has failed, the others go on.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import IO, Any

Message = dict[str, Any]
LEAST = 5.0  # seconds below which no task is given out


def serve(answer: Callable[[Message], Message]) -> None:
    """The worker's side. What the task prints goes to the standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        reply = answer(json.loads(line))
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
        if reply.get("last"):  # a CUDA error: this process is of no use any more
            return


class _Worker:
    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, message: Message, seconds: float) -> Message:
        """The answer, or why there is none."""
        source, sink = self.process.stdout, self.process.stdin
        assert source is not None and sink is not None
        try:
            sink.write((json.dumps(message) + "\n").encode())
            sink.flush()
        except OSError:
            return {"held": False, "error": f"the worker ended with code {self.process.wait()}", "last": True}
        if not _readable(source, seconds):
            return {"held": False, "error": f"no answer within {seconds:.0f} s", "last": True, "silent": True}
        line = source.readline()
        if not line:
            return {"held": False, "error": f"the worker ended with code {self.process.wait()}", "last": True}
        return json.loads(line)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what was still to be written to a dead worker
                    continue


def _readable(source: IO[bytes], seconds: float) -> bool:
    return bool(select.select([source], [], [], max(seconds, 0))[0])


def run(
    command: Sequence[str], tasks: Sequence[Message], workers: int, each: float, left: Callable[[], float],
    done: Callable[[Message, Message], None],
) -> None:
    """Gives every task to a worker while time is ``left``; ``done(task, answer)`` is called under a lock, but not for tasks
    that the end of the time cuts short.  each: seconds that a task may take."""
    waiting, lock = deque(tasks), threading.Lock()

    def feed() -> None:
        worker: _Worker | None = None
        try:
            while True:
                with lock:
                    if not waiting or left() < LEAST:
                        return
                    task = waiting.popleft()
                worker = worker or _Worker(command)
                limit = min(each, left())
                answer = worker.ask(task, limit)
                if answer.pop("silent", False) and limit < each:
                    return
                last = answer.pop("last", False)
                with lock:
                    done(task, answer)
                if last:
                    worker.end()
                    worker = None
        finally:
            if worker is not None:
                worker.end()

    threads = [threading.Thread(target=feed) for _ in range(min(workers, len(tasks)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
