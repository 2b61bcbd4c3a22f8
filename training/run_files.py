"""The files of a run's folder: what the run is, which members it has and who made them, and who may write.

    run.json        what the run is: recipe, architecture, data, input, classes; a second call must agree with it
    o.pt q.pt s.pt  the members as graphs, q as integers
    q-module.pt, q-w5a5.pt ..., s-1.pt ..., teachers.pt      what later stages start from
    members.json    for each finished member: digest of the keys it depends on, code, machine
    state.pt        the phase in progress                    metrics.jsonl            one line per epoch
    logits.npz      of every member on test set and hold-out, with the labels
    result.json     accuracy, diversity and cost, written last

All but metrics.jsonl, which grows, are replaced in one step; ``lock`` is held by the process that trains.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hce_engine.errors import CheckpointError, RecipeError, WriteError
from hce_engine.preprocess import InputSpec

from . import checkpoint
from .folder_data import AnySplit
from .provenance import hardware, versions
from .recipe import Recipe

RESULT, IDENTITY, MEMBERS, LOGITS, FORMAT = "result.json", "run.json", "members.json", "logits.npz", 1
_PRODUCED = (RESULT, MEMBERS, LOGITS, "metrics.jsonl", "*.pt")
_LOCK = "lock"


def identity(recipe: Recipe, arch: str, source: Path | None, spec: InputSpec, train: AnySplit, test: AnySplit) -> dict[str, Any]:
    """What run.json holds. source: the checkpoint that O comes from."""
    return {
        "format": FORMAT, "recipe": recipe.to_dict(), "recipe_digest": recipe.digest, "arch": arch,
        "checkpoint": {"name": source.name, "sha256": hashlib.sha256(source.read_bytes()).hexdigest()} if source else None,
        "data": {"train": train.fingerprint(), "test": test.fingerprint()},
        "input": json.loads(json.dumps(asdict(spec))), "classes": list(train.class_names), "versions": versions(),
    }


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a run; raises CheckpointError when it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"reading {path}", expected="a file of a training run", got=str(error)[:120],
                              fix="name the folder that `hce train --out` wrote") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"reading {path}", expected="a JSON object", got=type(value).__name__, fix="repeat the run")
    return value


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Makes the folder ``out`` and keeps other processes from training in it; raises RecipeError when one does.

    The lock belongs to the process, not to the file that stays behind: a killed process holds nothing.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / _LOCK).open("w")
    except OSError as error:
        raise WriteError(f"writing {out}", expected="a folder that can be made", got=error.strerror or str(error),
                         fix="choose another --out") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecipeError(f"training in {out}", expected="a folder that no other process trains in", got="one that does",
                              fix="wait for it, stop it, or choose another --out") from None
        yield


def claim(out: Path, identity: Mapping[str, Any], resume: bool) -> None:
    """Makes ``out`` the folder of this run, or checks that it is; without ``resume`` what a run left is removed."""
    path = out / IDENTITY
    if not resume and path.exists():
        for pattern in _PRODUCED:
            for file in out.glob(pattern):
                file.unlink()
        path.unlink()  # last: what is left of a removal that was cut short still belongs to a run
    if not path.exists():
        stray = [name for name in ("o.pt", "q.pt", "s.pt") if (out / name).exists()]
        if stray:
            raise RecipeError(f"training in {out}", expected="run.json beside members", got=", ".join(stray) + " alone",
                              fix="choose another --out, or remove what lies there")
        checkpoint.write_json(path, identity)
        return
    before = read_json(path)
    # The digest speaks for the recipe: a key that this version added at its default changes nothing.
    changed = [k for k in identity if k not in ("versions", "recipe") and before.get(k) != identity[k]]
    if changed:
        raise RecipeError(f"resuming {out}", expected="the same run as the one in this folder",
                          got="another " + ", ".join(k.removesuffix("_digest") for k in changed),
                          fix="choose another --out, or start over with --no-resume")


def noted(out: Path, name: str) -> bool:
    """Whether members.json has an entry of this member."""
    return (out / MEMBERS).exists() and name in read_json(out / MEMBERS)


def _equal(a: Path, b: Path) -> bool:
    return a.exists() and b.exists() and a.read_bytes() == b.read_bytes()


def note_member(out: Path, recipe: Recipe, name: str, device: torch.device) -> None:
    """Enters a member that was just made in members.json: what it depends on, and what made it."""
    _note(out, name, {"digest": recipe.member_digest(name), "hardware": hardware(device), **versions()})


def _note(out: Path, name: str, note: Mapping[str, Any]) -> None:
    notes = read_json(out / MEMBERS) if (out / MEMBERS).exists() else {}
    checkpoint.write_json(out / MEMBERS, {**notes, name: note})


def adopt(out: Path, recipe: Recipe, donors: Sequence[Path]) -> dict[str, Path]:
    """Copies from other runs the members that this one has not, and that they made in the same way: same keys,
    architecture, checkpoint and data, and from the same bytes of the members before. Returns which came from where."""
    mine, taken = read_json(out / IDENTITY), {}
    for name in recipe.members:
        for donor in donors:
            if (out / f"{name}.pt").exists() or not (donor / MEMBERS).exists():
                continue
            theirs, notes = read_json(donor / IDENTITY), read_json(donor / MEMBERS)
            same = all(theirs.get(key) == mine[key] for key in ("arch", "checkpoint", "data", "input"))
            before = [f"{other}.pt" for other in recipe.members[: recipe.members.index(name)]]
            same = same and all(_equal(out / file, donor / file) for file in before)
            if same and notes.get(name, {}).get("digest") == recipe.member_digest(name):
                for file in [donor / "q-module.pt"] * (name == "q") + [donor / f"{name}.pt"]:
                    checkpoint.write_bytes(out / file.name, file.read_bytes())
                _note(out, name, notes[name])
                taken[name] = donor
    return taken
