"""A worker of benchmarks/gpu/pool.py that answers, dies, or does not answer, as its task says."""

from __future__ import annotations

import os
import time

from benchmarks.gpu import pool


def answer(message: pool.Message) -> pool.Message:
    if message["do"] == "die":
        os._exit(9)
    if message["do"] == "hang":
        time.sleep(60)
    print("words between answers")
    return {"held": True, "process": os.getpid(), "last": message["do"] == "last"}


if __name__ == "__main__":
    pool.serve(answer)
