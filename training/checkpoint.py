"""Files of a training run: written atomically, read without pickle.

A file holds a nest of dicts, lists, numbers, texts and tensors, as ``torch.save`` writes it and
``torch.load(weights_only=True)`` reads it. A graph is stored as such a nest too, so that a half-pruned network with its
own widths needs no code to come back.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hce_engine.atomic import atomic_write
from hce_engine.errors import CheckpointError, WriteError
from hce_engine.graph import Graph, Member, Node, TensorSpec, verify

from . import distributed

GRAPH_FORMAT = 1


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces ``path`` by ``data`` in one step and makes its folder; raises WriteError, leaving the old file whole.

    Of several processes that train one network only the first writes (training/distributed.py).
    """
    if not distributed.is_first():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"writing {path}", expected="a folder that can be made", got=error.strerror or str(error),
                         fix="choose another --out") from None
    with atomic_write(path) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def save(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a nest of tensors and plain values; tensors are stored on the CPU by the caller's choice of device."""
    buffer = io.BytesIO()
    torch.save(dict(value), buffer)
    write_bytes(path, buffer.getvalue())


def load(path: Path) -> dict[str, Any]:
    """Reads what :func:`save` wrote; raises CheckpointError when the file is missing, damaged or holds objects."""
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"reading {path}", expected="a file of a training run", got="no such file",
                              fix="run `hce train` first, or name the right folder") from None
    except Exception as error:  # torch raises many kinds for a damaged zip or a forbidden object
        raise CheckpointError(
            f"reading {path}", expected="tensors and plain values", got=f"{type(error).__name__}: {str(error)[:120]}",
            fix="delete the file; the run repeats that phase",
        ) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"reading {path}", expected="a dict", got=type(value).__name__, fix="delete the file")
    return value


def graph_to_dict(graph: Graph) -> dict[str, Any]:
    """A graph as plain values and tensors; the inverse of :func:`graph_from_dict`, bit for bit."""
    return {
        "format": GRAPH_FORMAT,
        "members": [[m.name, m.output, m.role] for m in graph.members],
        "nodes": [
            {
                "name": n.name, "op": n.op, "inputs": n.inputs, "source": n.source,
                "spec": (n.spec.shape, n.spec.dtype, n.spec.scale, n.spec.zero_point),
                "attrs": dict(n.attrs),
                "params": {k: torch.from_numpy(v.copy()) for k, v in n.params.items()},
            }
            for n in graph.nodes
        ],
    }


def graph_from_dict(value: Mapping[str, Any], who: str) -> Graph:
    """The verified graph; ``who`` names the file in a CheckpointError."""
    try:
        if value["format"] != GRAPH_FORMAT:
            raise ValueError(f"graph format {value['format']!r}")
        nodes = []
        for n in value["nodes"]:
            params = {k: v.numpy() for k, v in n["params"].items()}
            nodes.append(Node(n["name"], n["op"], n["inputs"], TensorSpec(*n["spec"]), n["attrs"], params, n["source"]))
        members = tuple(Member(*m) for m in value["members"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"reading {who}", expected="a graph as this version writes it", got=repr(error)[:120],
                              fix="delete the file; the run repeats that phase") from None
    return verify(Graph(tuple(nodes), members))


def save_graph(path: Path, graph: Graph) -> None:
    save(path, graph_to_dict(graph))


def load_graph(path: Path) -> Graph:
    return graph_from_dict(load(path), str(path))
