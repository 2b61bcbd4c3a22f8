"""From a finished run to what an artifact is built from: lowered members, input, classes, where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hce_engine.errors import CheckpointError
from hce_engine.graph import Graph
from hce_engine.graph.passes import lower
from hce_engine.preprocess import InputSpec

from . import checkpoint
from .run_files import IDENTITY, MEMBERS, RESULT, read_json


@dataclass(frozen=True)
class RunMembers:
    """members: ``q`` (integers), ``s`` and ``o`` (float, batch norms folded), each a graph with that one member; those
    that the recipe has.  roles: ``vote``, and ``reference`` for ``o`` beside others.  accuracy: fractions on the test set, as measured at the run's end.
    provenance: recipe, seed, digest, data, checkpoint and versions, as JSON values."""

    members: Mapping[str, Graph]
    roles: Mapping[str, str]
    input: InputSpec
    classes: tuple[str, ...]
    provenance: Mapping[str, Any]
    accuracy: Mapping[str, float]


def is_run(path: str | Path) -> bool:
    """Whether ``path`` is a folder that ``train`` made (finished or not)."""
    return (Path(path) / IDENTITY).is_file()


def input_of(identity: Mapping[str, Any]) -> InputSpec:
    values = dict(identity["input"])
    for key in ("shape", "mean", "std"):
        values[key] = tuple(values[key])
    return InputSpec(**values)


def members_of(run: str | Path) -> RunMembers:
    """The members of a finished run. Raises CheckpointError for a folder that is none, or a run still under way."""
    run = Path(run)
    identity = read_json(run / IDENTITY)
    if not (run / RESULT).exists():
        raise CheckpointError(f"run {run}", expected="a finished run", got="no result.json",
                              fix="repeat the `hce train` command: it goes on where it stopped")
    try:
        spec, classes, seed = input_of(identity), tuple(identity["classes"]), identity["recipe"]["seed"]
        accuracy = dict(read_json(run / RESULT)["accuracy"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"run {run}", expected="run.json and result.json as this version writes them",
                              got=repr(error)[:120], fix="repeat the run in another folder") from None
    members = {}
    for name in ("q", "s", "o"):
        if (run / f"{name}.pt").exists():
            graph = checkpoint.load_graph(run / f"{name}.pt")
            members[name] = graph if name == "q" else lower(graph)
    provenance = {key: identity[key] for key in ("recipe", "recipe_digest", "arch", "checkpoint", "data", "versions")}
    provenance["members"] = read_json(run / MEMBERS)
    roles = {name: "reference" if name == "o" and len(members) > 1 else "vote" for name in members}
    return RunMembers(members, roles, spec, classes, {**provenance, "seed": seed}, accuracy)
