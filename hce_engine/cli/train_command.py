"""``hce train``: one recipe makes the original O, and the quantized Q and the pruned S where it has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import common, find_own_models, keep_inputs, training_device
from .output import percent, say, show_table, write_json


@click.command()
@click.argument("recipe")
@click.option("--data", required=True,
              help="CIFAR binary folder, image folder (one sub-folder per class), .npz, or 'digits'.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run; an unfinished one is resumed.")
@click.option("--arch", help="Architecture instead of the recipe's: a name, or package.module:factory.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Take O from this state dict instead of training it.")
@click.option("--reuse", type=click.Path(path_type=Path), multiple=True, metavar="RUN",
              help="Copy from another run the members that this recipe makes in the same way; may be repeated.")
@click.option("--resume/--no-resume", default=True, show_default=True, help="Go on with an unfinished run, or start over.")
@common
def command(
    recipe: str, data: str, out: Path, arch: str | None, checkpoint: Path | None, reuse: tuple[Path, ...], resume: bool,
    json_path: Path | None, device: str,
) -> int:
    """Train, quantize and prune as RECIPE says (a file, or the name of one that ships).

    OUT gets the members, metrics.jsonl (one line per epoch) and result.json. Interrupt it whenever you like: the same
    command goes on where it was, to the same bits. Under torchrun several processes share every batch.

    \b
    Examples:
      hce train hce-resnet20-cifar10 --data cifar-10-batches-bin --out runs/r20
      hce train my.toml --arch mypackage.models:small_net --data photos/ --out runs/mine
      torchrun --nproc-per-node 8 -m hce_engine train hce-resnet50-imagenet --data imagenet --out runs/r50 --device cuda
    """
    device = training_device(device)
    keep_inputs((json_path,), [path for path in (Path(recipe), Path(data), checkpoint) if path is not None and path.is_file()])
    find_own_models()
    from ..training.distributed import is_first
    from ..training.run import train

    result = train(
        recipe, data, out, arch=arch, checkpoint_path=checkpoint, reuse=reuse, resume=resume, device=device,
        progress=True,
    )
    if not is_first():
        return 0
    if str(json_path) != "-":
        _show(out, result)
    write_json(json_path, "train", {"out": str(out), **result})
    say(f"next: hce build {out} -o model.hce")
    return 0


def _show(out: Path, result: dict[str, Any]) -> None:
    rows = [(name, str(result["correct"][name]), percent(accuracy)) for name, accuracy in result["accuracy"].items()]
    show_table(f"{out}: {result['total']} test images", ("member", "correct", "accuracy"), rows)
