"""``hce bench``: a model beside other engines on this CPU, or the plan for a GPU and its bounds (``--dry-run``)."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import InputError, UnsupportedError
from .options import common, positive_integers, some_members


@click.command()
@click.argument("model", metavar="MODEL_OR_NAME")
@click.option("--peers", default="all", show_default=True, metavar="NAMES",
              help="Engines to compare with: all, none, or names such as openvino-int8,torch.")
@click.option("--batch", metavar="SIZES", help="Images per call; several by commas. Default: 128, of a dry run 256.")
@click.option("--threads", metavar="COUNTS", help="Threads of every engine; several by commas. Default: all usable cores.")
@click.option("--data", type=click.Path(path_type=Path),
              help="Labelled images to check agreement on and to calibrate int8 with; without, images of noise.")
@click.option("--rounds", type=click.IntRange(min=1), default=9, show_default=True,
              help="Turns of every row; a verdict needs 6 at least.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=0.2, show_default=True, help="Length of a turn.")
@click.option("--isa", help="Hold our kernels, and peers as far as they can, to an instruction set. Default: HCE_ISA, else the best.")
@click.option("--format", "form", type=click.Choice(["table", "markdown"]), default="table", show_default=True)
@click.option("--dry-run", is_flag=True, help="Print the plan for a GPU and its bounds; needs no GPU and runs nothing.")
@click.option("--gpu", "gpu_name", type=click.Choice(["h200", "a100", "b200"]), default="h200", show_default=True,
              help="GPU of a dry run's bounds.")
@click.option("--bits", type=click.IntRange(2, 8), default=4, show_default=True,
              help="Width of weights and activations in a dry run of a network by name.")
@some_members
@common
def command(
    model: str, peers: str, batch: str | None, threads: str | None, data: Path | None, rounds: int, seconds: float, isa: str | None,
    form: str, dry_run: bool, gpu_name: str, bits: int, members: tuple[str, ...] | None, json_path: Path | None, device: str,
) -> int:
    """Measure MODEL beside other engines on the same work, or show the plan for a GPU.

    On the CPU MODEL is a .hce file. All engines and members take turns in one run; nothing is timed before its results were
    checked and its threads counted; a verdict comes with an interval. docs/BENCHMARKING.md says what is compared with what.

    With --dry-run MODEL_OR_NAME is a .hce file, or the name of an architecture such as resnet20, resnet56, resnet50 or
    mobilenet_v2, which is then quantized with random weights. Times are bounds from the GPU's datasheet.

    \b
    Examples:
      hce bench model.hce --peers all --batch 1,128 --threads 1,2 --data cifar-10-batches-bin --json bench.json
      hce bench model.hce --peers openvino-int8 --members q --isa avx2
      hce bench resnet20 --device cuda --dry-run --bits 3
      hce bench model.hce --device cuda --dry-run --members q --batch 1024 --json plan.json
    """
    batches = positive_integers(("256" if dry_run else "128") if batch is None else batch, "--batch", most=4096)
    if dry_run:
        from .bench_gpu import dry_run as show_plan

        if device not in ("auto", "cuda"):
            raise UnsupportedError("bench --dry-run", expected="--device cuda", got=device,
                                   fix="leave --device out: a dry run is of the plan for a GPU")
        if len(batches) > 1:
            raise InputError("bench --dry-run", expected="one batch size", got=str(batch), fix="name one")
        return show_plan(model, batches[0], gpu_name, bits, members, json_path)
    if device not in ("auto", "cpu"):
        raise UnsupportedError("bench", expected="--device cpu, or --dry-run", got=f"--device {device}",
                               fix="leave --device out to measure on the CPU; benchmarks/gpu/run.sh measures on a GPU")
    from .bench_cpu import compare

    counts = None if threads is None else positive_integers(threads, "--threads", most=1024)
    return compare(Path(model), peers, batches, counts, data, rounds, seconds, isa, form, members, json_path)
