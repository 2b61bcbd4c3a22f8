"""Runs a matrix: several runs at a time, each member trained once, whatever is finished left alone."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch

from hce_engine.threads import available_threads

from .matrix import Matrix, folder
from .recipe import Recipe
from .run import train
from .run_files import LOGITS, MEMBERS, RESULT, read_json


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
        return (self.out / RESULT).exists() and (self.out / LOGITS).exists()

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


def _start(parent: int) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _work(recipe: Recipe, data: str, out: str, donors: list[str], device: str, threads: int) -> None:
    torch.set_num_threads(threads)
    torch._dynamo.reset()  # networks of the run before count towards the number that may be compiled
    train(recipe, data, out, reuse=donors, device=device, progress=False)


def run_matrix(
    matrix: Matrix, data: str | Path, out: Path, *, jobs: int = 1, device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, str]:
    """Trains what is not there yet, ``jobs`` runs at a time; returns {run: error} of those that failed.

    On the CPU the runs share the threads, which is faster than one run on all of them: ResNet-20 trains at 770 images/s on
    one of two cores and at 1,250 on both. On a GPU they share the device, whose time a single small network leaves unused.
    A failed run stops nobody else; called again, the matrix tries it again.
    """
    todo = [job for job in jobs_of(matrix, out) if not job.finished]
    every, failed = jobs_of(matrix, out), {}
    threads = max(1, available_threads() // jobs)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # inherited: inductor's kernels ask OpenMP, not torch
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # several processes must not spin on each other's cores
    running: dict[Future[None], Job] = {}
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawned, initializer=_start, initargs=(os.getpid(),)) as pool:
        while todo or running:
            done = set().union(*(job.done() for job in every))
            for job in list(todo):
                if len(running) < jobs and ready(job, list(running.values()), done):
                    todo.remove(job)
                    donors = [str(other.out) for other in every if other.out != job.out and other.done()]
                    running[pool.submit(_work, job.recipe, str(data), str(job.out), donors, device, threads)] = job
                    say(f"{job.name}: started")
            finished, _ = wait(running, timeout=5, return_when=FIRST_COMPLETED)
            for future in finished:
                job, error = running.pop(future), future.exception()
                if error is not None:
                    failed[job.name] = f"{type(error).__name__}: {error}"
                say(f"{job.name}: {failed.get(job.name, 'finished')}")
    return failed
