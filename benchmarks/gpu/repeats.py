"""The same images a thousand times: the bytes of every member and of the ensemble must not change, nor depend on the mode.

Between replays the logits are overwritten with NaN and another batch runs, so that nothing is right by having been left over.
"""

from __future__ import annotations

import hashlib
import sys
from functools import partial
from pathlib import Path

import torch

from . import stage, variants
from .ensemble_cases import make
from .names import CASES
from .variants import AUTO, MODES

NAME = "repeats"
REPEATS = 1000
BATCH = 256
CASE = CASES["resnet20 shipped"]


def repeat(mode: str, variant: str, document: stage.Document) -> stage.Result:
    made = make(CASE)
    backend = variants.backend(made.only("q", "s"), BATCH, variant, mode)
    bucket = variants.prepared(backend, BATCH)
    program, replay = bucket.program, bucket.replay
    images, others = (torch.from_numpy(made.images[i * BATCH : (i + 1) * BATCH]).to(program.images.device) for i in (0, 1))
    program.images.copy_(images)
    replay()
    first = {name: logits.clone() for name, logits in program.logits.items()}
    differing = torch.zeros((), dtype=torch.int64, device=images.device)
    for _ in range(REPEATS):
        program.images.copy_(others)
        replay()
        for logits in program.logits.values():
            logits.fill_(float("nan"))
        program.images.copy_(images)
        replay()
        for name, logits in program.logits.items():
            differing += (logits.view(torch.int32) != first[name].view(torch.int32)).sum()
    digests = {name: hashlib.sha256(logits.cpu().numpy().tobytes()).hexdigest()[:16] for name, logits in first.items()}
    result = {"repeats": REPEATS, "differing": int(differing), "digests": digests, "variant": variant, "way": str(bucket.way)}
    return result | compared(result, document)


def compared(result: stage.Result, document: stage.Document) -> stage.Result:
    """Whether bytes stayed, and are those of the modes before it."""
    alike = {key: other["digests"] for key, other in document.items.items() if other.get("variant") == result["variant"] and "digests" in other}
    unlike = [key for key, digests in alike.items() if digests != result["digests"]]
    told = {"held": result["differing"] == 0 and not unlike}
    return told | ({"error": f"other bytes than {', '.join(unlike)}"} if unlike else {})


def items(document: stage.Document) -> list[stage.Item]:
    rows = [(mode, variants.PLAIN) for mode in MODES] + [(mode, variant) for variant in variants.COMPENSATED for mode in (AUTO, *variants.CHOSEN_MODES)]
    return [stage.Item(f"{variant}, {mode}", 6, partial(repeat, mode, variant, document)) for mode, variant in rows]


def run(document: stage.Document, out: Path, deadline: stage.Deadline) -> int:
    return stage.measure(document, items(document), deadline)


if __name__ == "__main__":
    sys.exit(stage.main(NAME, run))
