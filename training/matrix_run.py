"""Runs a matrix: several runs at a time, each member trained once, whatever is finished left alone."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from hce_engine.threads import available_threads

from .matrix import Matrix, folder
from .recipe import Recipe
from .run import train
from .run_files import IDENTITY, LOGITS, MEMBERS, RESULT, read_json


@dataclass(frozen=True)
class Job:
    """One run of one seed. digests: of its members, which another job may make first."""

    name: str
    recipe: Recipe
    out: Path

    @property
    def digests(self) -> frozenset[str]:
        return frozenset(self.recipe.member_digest(name) for name in self.recipe.members)

    @property
    def finished(self) -> bool:
        """Whether the folder holds the results of this very recipe; of another one they are not taken, nor overwritten."""
        if not all((self.out / name).exists() for name in (IDENTITY, RESULT, LOGITS)):
            return False
        return bool(read_json(self.out / IDENTITY).get("recipe_digest") == self.recipe.digest)

    def done(self) -> set[str]:
        """Digests of the members that lie in the folder, whether the run is finished or not."""
        notes: Mapping[str, Mapping[str, str]] = read_json(self.out / MEMBERS) if (self.out / MEMBERS).exists() else {}
        return {note["digest"] for note in notes.values()}


def jobs_of(matrix: Matrix, out: Path) -> list[Job]:
    return [Job(f"{row.name}-s{seed}", recipe, folder(out, row.name, seed)) for row, seed, recipe in matrix.jobs()]


def ready(job: Job, running: list[Job], done: set[str]) -> bool:
    """Whether nothing that the job needs is being made by another just now."""
    return all(not (job.digests - done) & other.digests for other in running)


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone: a killed matrix must not go on in secret. Runs resume to the same bits."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _work(recipe: Recipe, data: str, out: str, donors: list[str], device: str, threads: int, parent: int, tell: Connection) -> None:
    """One run in a process of its own; ``tell`` gets the sentence of an error, or an empty one."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)
    try:
        train(recipe, data, out, reuse=donors, device=device, progress=False)
    except Exception as error:
        tell.send(f"{type(error).__name__}: {error}")
    else:
        tell.send("")


class _Started:
    """A job under way."""

    def __init__(self, job: Job, data: str, donors: list[str], device: str, threads: int) -> None:
        spawned = multiprocessing.get_context("spawn")
        self.job = job
        self._said, tell = spawned.Pipe(duplex=False)
        arguments = (job.recipe, data, str(job.out), donors, device, threads, os.getpid(), tell)
        self.process = spawned.Process(target=_work, args=arguments)
        self.process.start()
        tell.close()  # the child's end is its own now, so that its death ends the pipe

    def error(self) -> str:
        """What went wrong, empty if nothing did; after the process has ended."""
        try:
            return str(self._said.recv())
        except EOFError:
            return f"the process ended with {self.process.exitcode}"

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()


def run_matrix(
    matrix: Matrix, data: str | Path, out: Path, *, jobs: int = 1, device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, str]:
    """Trains what is not there yet, ``jobs`` runs at a time; returns {run: error} of those that failed.

    On the CPU the runs share the threads, which is faster than one run on all of them: ResNet-20 trains at 770 images/s on
    one of two cores and at 1,250 on both. On a GPU they share the device, whose time a single small network leaves unused.
    A failed run stops nobody else; called again, the matrix tries it again. Runs under way are stopped with the matrix.
    """
    every = jobs_of(matrix, out)
    todo, failed = [job for job in every if not job.finished], {}
    threads = max(1, available_threads() // jobs)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # inherited: inductor's kernels ask OpenMP, not torch
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # several processes must not spin on each other's cores
    running: list[_Started] = []
    try:
        while todo or running:
            done = set().union(*(job.done() for job in every))
            for job in list(todo):
                if len(running) < jobs and ready(job, [other.job for other in running], done):
                    todo.remove(job)
                    donors = [str(other.out) for other in every if other.out != job.out and other.done()]
                    running.append(_Started(job, str(data), donors, device, threads))
                    say(f"{job.name}: started")
            wait([started.process.sentinel for started in running], timeout=5)
            for started in [one for one in running if not one.process.is_alive()]:
                running.remove(started)
                error = started.error()
                if error:
                    failed[started.job.name] = error
                say(f"{started.job.name}: {error or 'finished'}")
    finally:
        for started in running:
            started.stop()
    return failed
