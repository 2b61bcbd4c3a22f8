"""The shipped artifact on the GPU and on the CPU, through the engine and through the commands.

``logits``: q to the bit, o and s within what an artifact's float members are verified in (hce_engine/builder.py), the ensemble the
mean of its members to the bit; as arrays and as tensors that stay on the GPU. With HCE_DATA, a folder with the CIFAR-10 binary
files, also ``hce eval`` (as many right of each member) and ``hce run`` (the same classes) on both devices.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hce_engine as hce
from hce_engine.backends import reference
from hce_engine.builder import LOGIT_SCALE, TOLERANCE, verification_images

from . import measure, stage
from .float_shapes import SHIPPED

NAME = "accuracy"
DEVICES = ("cpu", "cuda")
TRAILING = 256 + 33  # images: a whole bucket, and one with empty places
COMMAND_SECONDS = 120.0


def logits() -> stage.Result:
    engines = {device: hce.load(SHIPPED, device=device) for device in DEVICES}
    images = verification_images(engines["cpu"].input, None)
    images = np.concatenate([images, images])[:TRAILING]
    got = {device: engine.members(images) for device, engine in engines.items()}
    tensors = engines["cuda"].members(torch.from_numpy(images).cuda())
    voters = [m.name for m in engines["cpu"].artifact.graph.voters]
    return compared(got["cpu"], got["cuda"], {name: value.cpu().numpy() for name, value in tensors.items()}, voters)


def compared(cpu: dict[str, Any], cuda: dict[str, Any], tensors: dict[str, Any], voters: list[str]) -> stage.Result:
    """Logits of each member and of the ensemble by device."""
    told: dict[str, Any] = {}
    for name in cpu:
        if name == "q":
            wrong = int((cuda[name].view(np.uint32) != cpu[name].view(np.uint32)).sum())
            told[name] = {"held": wrong == 0, "differing": wrong}
        else:
            bound = TOLERANCE * max(1.0, float(np.abs(cpu[name]).max()) / LOGIT_SCALE)
            error = float(np.abs(cuda[name] - cpu[name]).max())
            told[name] = {"held": error <= bound, "max_error": measure.digits(error, 3), "bound": measure.digits(bound, 3)}
    told["mean of members"] = {"held": cuda["ensemble"].tobytes() == reference.mean_logits([cuda[name] for name in voters]).tobytes()}
    told["tensors as arrays"] = {"held": all(tensors[name].tobytes() == cuda[name].tobytes() for name in cuda)}
    return {"held": all(r["held"] for r in told.values()), "images": len(cpu["ensemble"]), "contenders": told}


def command(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "hce_engine", *words], cwd=stage.ROOT, capture_output=True, text=True, check=False,
                          timeout=COMMAND_SECONDS)
    if done.returncode:
        raise RuntimeError(f"hce {' '.join(words)} ended with code {done.returncode}: {(done.stderr or done.stdout)[-300:]}")


def evaluated(data: str) -> stage.Result:
    """``hce eval`` on the test images."""
    right: dict[str, dict[str, int]] = {}
    total = 0
    with tempfile.TemporaryDirectory() as folder:
        for device in DEVICES:
            path = Path(folder) / f"{device}.json"
            command("eval", str(SHIPPED), "--data", data, "--device", device, "--batch", "1024", "--json", str(path))
            result = json.loads(path.read_text())
            total = result["total"]
            right[device] = {name: member["correct"] for name, member in result["members"].items()}
    cpu, gpu = (right[device] for device in DEVICES)
    return {"held": cpu == gpu, "total": total, "right": right}


def predicted(data: str) -> stage.Result:
    """``hce run`` on the test images."""
    classes: dict[str, list[list[str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for device in DEVICES:
            path = Path(folder) / f"{device}.csv"
            command("run", str(SHIPPED), data, "-o", str(path), "--device", device, "--batch", "1024")
            with open(path, newline="") as file:
                classes[device] = [row[:2] for row in csv.reader(file)]
    cpu, gpu = (classes[device] for device in DEVICES)
    differing = sum(a != b for a, b in zip(cpu, gpu, strict=True))
    return {"held": differing == 0, "rows": len(cpu) - 1, "differing": differing}


def items() -> list[stage.Item]:
    found = [stage.Item("logits", 12, logits)]
    data = os.environ.get("HCE_DATA")
    if data:
        data = str(Path(data).resolve())
        found += [stage.Item("hce eval", 15, partial(evaluated, data)), stage.Item("hce run", 12, partial(predicted, data))]
    return found


def run(document: stage.Document, out: Path, deadline: stage.Deadline) -> int:
    document.content["data"] = bool(os.environ.get("HCE_DATA"))
    return stage.measure(document, items(), deadline)


if __name__ == "__main__":
    sys.exit(stage.main(NAME, run))
