"""``hce build``: a checkpoint or a training run becomes one verified ``.hce`` file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import common, find_own_models, keep_inputs, numbers
from .output import amount, percent, say, show_table, write_json

if TYPE_CHECKING:
    import numpy as np

    from ..artifact import Artifact
    from ..preprocess import InputSpec


@click.command()
@click.argument("source", type=click.Path(path_type=Path), metavar="RUN|CHECKPOINT")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The .hce file to write.")
@click.option("--arch", help="Architecture of a checkpoint: a name such as resnet20, or package.module:factory.")
@click.option("--data", type=click.Path(path_type=Path), help="Verify on these images (else on a seeded sample).")
@click.option("--classes", type=click.IntRange(min=1), help="Number of classes of the checkpoint; default: the architecture's.")
@click.option("--size", type=click.IntRange(min=1), help="Height and width of the images; default: the architecture's.")
@click.option("--mean", help="Per channel, in 0..1, separated by commas; default: the architecture's own.")
@click.option("--std", help="Per channel, in 0..1, separated by commas; default: the architecture's own.")
@click.option("--resize", help="How image files are brought to the size.",
              type=click.Choice(["none", "squash", "shorter-side-center-crop", "imagenet-center-crop"]))
@click.option("--no-reference", is_flag=True, help="Leave the unpruned original out of the file.")
@common
def command(
    source: Path, out: Path, arch: str | None, data: Path | None, classes: int | None, size: int | None,
    mean: str | None, std: str | None, resize: str | None, no_reference: bool, json_path: Path | None, device: str,
) -> int:
    """Capture, fold, pack, verify and write RUN (a folder of `hce train`) or CHECKPOINT (a state dict).

    A checkpoint becomes one voting member `o`; a run becomes the members `q` and `s`, with the original `o` as
    reference. The file is compared with its source on at least 256 images before it gets its name.

    \b
    Examples:
      hce build resnet20.th --arch resnet20 -o o.hce --data cifar-10-batches-bin
      hce build net.pt --arch mypackage.models:small_net -o small.hce --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5
      hce build runs/r20 -o r20.hce
    """
    keep_inputs((out, json_path), (source, *([data] if data else [])))
    if source.is_dir():
        result = _from_run(source, out, (arch, classes, size, mean, std, resize), data, no_reference, device)
    else:
        spec_options = {"mean": numbers(mean, "--mean"), "std": numbers(std, "--std"), "resize": resize, "size": size}
        result = _from_checkpoint(source, out, arch, classes, spec_options, data, device)
    facts = {"path": str(out), "file_bytes": out.stat().st_size, "ledger": dict(result.ledger),
             "verification": result.provenance["verification"]}
    if str(json_path) != "-":
        _show(out, result)
    write_json(json_path, "build", facts)
    return 0


def _from_checkpoint(
    source: Path, out: Path, arch: str | None, classes: int | None, options: dict[str, Any], data: Path | None, device: str,
) -> Artifact:
    from ..builder import build
    from ..errors import CheckpointError, InputError
    from ..training.models import MODELS, load_checkpoint, resolve

    if not source.is_file():
        raise CheckpointError(f"build of {source}", expected="the folder of a run, or a checkpoint file", got="nothing there",
                              fix="check the path")
    if arch is None:
        raise InputError(f"build of {source}", expected="--arch with a checkpoint", got="none",
                         fix=f"name one of {', '.join(MODELS)}, or package.module:factory")
    find_own_models()
    module, architecture = resolve(arch, classes)
    load_checkpoint(module, source, architecture.renames)
    spec = architecture.input
    size = options.pop("size")
    if size is not None:
        spec = replace(spec, shape=(spec.shape[0], size, size))
    spec = replace(spec, **{key: value for key, value in options.items() if value is not None})
    images, names = _sample(data, spec)
    if names is not None and len(names) != architecture.classes:
        names = None
    return build({"o": module}, spec, path=out, images=images, classes=names, device=device,
                 provenance={"arch": arch, "checkpoint": source.name})


def _from_run(
    source: Path, out: Path, checkpoint_options: tuple[Any, ...], data: Path | None, no_reference: bool, device: str
) -> Artifact:
    from ..builder import build
    from ..errors import InputError
    from ..ledger import member_costs
    from ..training.export import members_of

    if any(option is not None for option in checkpoint_options):
        raise InputError(f"build of the run {source}", expected="no architecture or preprocessing options",
                         got="some", fix="leave them out: a run knows its own")
    run = members_of(source)
    images, _ = _sample(data, run.input)
    reference = "o" if run.roles["o"] == "reference" and not no_reference else None
    members = {name: graph for name, graph in run.members.items() if run.roles[name] == "vote" or name == reference}
    return build(
        members, run.input, path=out, reference=reference, images=images, classes=run.classes,
        reference_flops=member_costs(run.members["o"])["o"].flops_paper, provenance=run.provenance,
        accuracy=run.accuracy, device=device,
    )


def _sample(data: Path | None, spec: InputSpec) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Images of ``data`` for verification, spread over the set (folders are often sorted by class); its class names."""
    if data is None:
        return None, None
    import numpy as np

    from ..builder import SAMPLES
    from ..images import open_labelled
    from ..images.files import to_input

    source = open_labelled(data, "test", spec=spec)
    chosen = np.unique(np.linspace(0, len(source.labels) - 1, SAMPLES).astype(np.int64))
    return to_input(source.take(chosen), spec), source.class_names


def _show(out: Path, result: Artifact) -> None:
    verification = result.provenance["verification"]
    rows = []
    for name, check in verification["members"].items():
        cost = result.ledger["members"][name]
        agrees = "bit for bit" if check["exact"] else f"within {check['max_abs_difference']:.1e}"
        rows.append((name, cost["role"], amount(cost["macs"]), amount(cost["flops_paper"]), amount(cost["bytes"]), agrees,
                     percent(check["same_prediction"])))
    show_table(f"{out}: verified on {verification['images']} images",
               ("member", "role", "MACs", "FLOPs", "bytes", "equals source", "same prediction"), rows)
    if result.ledger["flops_ratio"] is not None:
        say(f"the ensemble has {percent(result.ledger['flops_ratio'])} of the reference's FLOPs")
