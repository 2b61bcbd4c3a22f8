"""models/NAME.md: the card of every artifact in models/, generated from the artifact and its committed evaluation.

    hce eval models/NAME.hce --data cifar-10-batches-bin --json models/NAME.json
    python -m benchmarks.model_cards            rewrites the cards
    python -m benchmarks.model_cards --check    exit code 1 if a card is not what artifact and evaluation say
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from hce_engine import artifact
from hce_engine.artifact import Artifact
from hce_engine.cli.info_command import describe
from hce_engine.training.matrix_results import epochs_of
from hce_engine.training.recipe import load_recipe, parse

MODELS = Path(__file__).resolve().parent.parent / "models"
NAMES = {"o": "O, the original, float32 (reference: does not vote)", "q": "Q, quantized", "s": "S, pruned, float32",
         "ensemble": "**Q + S, the ensemble**"}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _row(name: str, measured: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    m = measured["members"][name]
    low, high = (100 * v for v in m["interval"])
    cells = [NAMES[name], str(m["correct"]), f"{100 * m['accuracy']:.2f}", f"{low:.2f} to {high:.2f}", _number(m["nll"]),
             _number(m["ece"]), f"{100 * facts['flops_ratios'][name]:.1f}", f"{facts['bytes'][name]:,}"]
    return "| " + " | ".join(cells) + " |"


def card(path: Path) -> str:
    """The card of the artifact ``path``, whose evaluation lies beside it as JSON."""
    loaded: Artifact = artifact.load(path)
    measured = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    facts = describe(loaded, artifact.digest(path), path.stat().st_size)
    told = loaded.provenance
    recipe = parse({k: v for k, v in told["recipe"].items() if k != "name"}, told["recipe"]["name"])
    if load_recipe(recipe.name).digest != recipe.digest:
        raise click.ClickException(f"{path}: its recipe is not the {recipe.name} that ships")
    epochs = ", ".join(f"{name.upper()} {n}" for name, n in epochs_of(recipe).items())
    objective, q, s = recipe.objective, recipe.q, recipe.s
    assert q is not None
    assert s is not None
    lines = [
        f"# {path.stem}", "",
        f"A heterogeneously compressed ensemble of {recipe.arch} for CIFAR-10: 32x32 RGB images in, logits of "
        f"{len(loaded.classes or ())} classes out. `{path.name}` has {path.stat().st_size:,} bytes and the digest "
        f"`{facts['digest']}`.", "",
        f"| | right of {measured['total']:,} | % | 95 % interval | NLL | ECE | FLOPs % | bytes |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        *(_row(name, measured, facts) for name in ("o", "q", "s", "ensemble")), "",
        f"`hce eval models/{path.name} --data DIR` gives these counts; DIR is the folder with the CIFAR-10 binary files. FLOPs "
        "are in the paper's convention (docs/RESULTS.md says which).", "",
        "## Training", "",
        f"`hce train {recipe.name} --data DIR --out RUN`, then `hce build RUN -o {path.name}`: everything from scratch on the "
        f"CIFAR-10 training set less {recipe.data.holdout:,} images on which epochs were chosen. Epochs: {epochs}. Seed {recipe.seed}. "
        f"Q: W{q.weight_bits}A{q.activation_bits}, {q.method.upper()}, first and last layer {q.edge_bits} bits, residual stream 8 bits. "
        f"S: {s.criterion.upper()} filter pruning in {s.rounds} rounds, objective {objective.reading} with w_ce {objective.w_ce:g}, "
        f"w_diff {objective.w_diff:g}, T {objective.temperature:g}.", "",
        "| member | commit | trained on |", "|---|---|---|",
        *(f"| {name.upper()} | {note.get('commit') or 'unknown'} | {note['hardware']} |" for name, note in told["members"].items()), "",
        "## Limits", "",
        "CIFAR-10 (Krizhevsky 2009) has no formal licence; it is used here for research. The network knows ten classes of small "
        "photographs and answers with one of them whatever it is shown; its probabilities are not calibrated beyond the ECE above.",
        "",
    ]
    return "\n".join(lines)


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit code 1 if a card is out of date.")
def main(check: bool) -> None:
    """Write the cards of the models."""
    for path in sorted(MODELS.glob("*.hce")):
        text, place = card(path), path.with_suffix(".md")
        if check and (not place.exists() or place.read_text(encoding="utf-8") != text):
            raise SystemExit(1)
        if not check:
            place.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
