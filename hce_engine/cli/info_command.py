"""``hce info``: what an artifact holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import common, keep_inputs
from .output import amount, percent, show_table, write_json

if TYPE_CHECKING:
    from ..artifact import Artifact
    from ..graph import Graph, Node

_LAYERS = ("conv2d", "linear", "qconv2d", "qlinear")


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--layers", is_flag=True, help="Also list every layer of every member.")
@common
def command(model: Path, layers: bool, json_path: Path | None, device: str) -> int:
    """Show members, layers, bits, MACs and bytes of MODEL.

    \b
    Example:
      hce info model.hce --layers --json info.json
    """
    from .. import artifact

    keep_inputs((json_path,), (model,))
    loaded = artifact.load(model)
    facts = describe(loaded, artifact.digest(model), model.stat().st_size)
    quiet = str(json_path) == "-"
    if not quiet:
        _show(model, loaded, facts, layers)
    write_json(json_path, "info", facts)
    return 0


def describe(loaded: Artifact, digest: str, file_bytes: int) -> dict[str, Any]:
    """What ``--json`` carries; the ledger is counted anew from the graph, not read from the file."""
    from ..ledger import ledger

    graph = loaded.graph
    stored = loaded.ledger.get("reference")
    flops = stored.get("flops_paper") if isinstance(stored, dict) else None
    has_reference = any(m.role == "reference" for m in graph.members)
    counted = ledger(graph, reference_flops=None if has_reference or not isinstance(flops, float) else flops)
    spec = loaded.input
    return {
        "digest": digest,
        "file_bytes": file_bytes,
        "input": {"kind": spec.kind, "shape": list(spec.shape), "mean": list(spec.mean), "std": list(spec.std),
                  "resize": spec.resize},
        "classes": None if loaded.classes is None else list(loaded.classes),
        "ensemble_rule": loaded.ensemble,
        **counted,
        "layers": {m.name: [_layer(node) for node in _layers(graph, m.name)] for m in graph.members},
        "accuracy": dict(loaded.accuracy),
        "provenance": dict(loaded.provenance),
    }


def _layers(graph: Graph, member: str) -> list[Node]:
    return [node for node in graph.only(member).nodes if node.op in _LAYERS]


def _layer(node: Node) -> dict[str, Any]:
    from ..ledger import node_cost

    cost = node_cost(node)
    return {
        "name": node.name, "op": node.op, "weight": list(node.params["weight"].shape), "output": list(node.spec.shape),
        "bits": list(node.attrs.get("bits", (32, 32))), "macs": cost.macs, "bytes": cost.bytes, "source": node.source,
    }


def _bits(layers: list[dict[str, Any]]) -> str:
    kinds = sorted({tuple(layer["bits"]) for layer in layers})
    return ", ".join("float32" if kind == (32, 32) else f"W{kind[0]}A{kind[1]}" for kind in kinds)


def _show(model: Path, loaded: Artifact, facts: dict[str, Any], layers: bool) -> None:
    rows = []
    for name, cost in [*facts["members"].items(), ("ensemble", facts["ensemble"])]:
        own = facts["layers"].get(name)
        rows.append((
            name, cost.get("role", "all that vote"), str(len(own)) if own else "", _bits(own) if own else "",
            amount(cost["macs"]), amount(cost["flops_paper"]), percent(facts["flops_ratios"][name]),
            amount(cost["params"]), amount(cost["bytes"]),
        ))
    spec = loaded.input
    title = f"{model}: {'x'.join(map(str, spec.array_shape))} {spec.numpy_dtype}, digest {facts['digest'][:12]}"
    show_table(title, ("member", "role", "layers", "bits", "MACs", "FLOPs", "of reference", "params", "bytes"), rows)
    if layers:
        for name, own in facts["layers"].items():
            show_table(f"member {name}", ("layer", "op", "weight", "output", "bits", "MACs", "bytes"), [
                (x["name"], x["op"], "x".join(map(str, x["weight"])), "x".join(map(str, x["output"])),
                 _bits([x]), amount(x["macs"]), amount(x["bytes"])) for x in own
            ])
    click.echo(f"FLOPs: {facts['convention']}.")
