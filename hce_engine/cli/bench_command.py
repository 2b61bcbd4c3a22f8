"""``hce bench``: a model beside other engines on this CPU or a GPU, or the plan for a GPU and its bounds (``--dry-run``)."""

from __future__ import annotations

from pathlib import Path

import click

from ..arithmetic import IEEE
from ..errors import InputError, UnsupportedError
from .options import common, float_arithmetic, largest_batch, positive_integers, some_members

_MOST_ON_GPU = 65536


@click.command()
@click.argument("model", metavar="MODEL_OR_NAME")
@click.option("--peers", default="all", show_default=True, metavar="NAMES",
              help="Engines to compare with: all, none, or names such as openvino-int8,torch.")
@click.option("--batch", metavar="SIZES", help="Images per call; several by commas. Default: 128, for a GPU 256.")
@click.option("--threads", metavar="COUNTS", help="Threads of every engine on the CPU; several by commas. Default: all usable cores.")
@click.option("--data", type=click.Path(path_type=Path),
              help="Labelled images to check agreement on and to calibrate int8 with; without, images of noise.")
@click.option("--rounds", type=click.IntRange(min=1), default=9, show_default=True,
              help="Turns of every row; a verdict needs 6 at least.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=0.2, show_default=True, help="Length of a turn.")
@click.option("--isa", help="Hold our kernels, and peers as far as they can, to an instruction set. Default: HCE_ISA, else the best.")
@click.option("--format", "form", type=click.Choice(["table", "markdown"]), default="table", show_default=True)
@click.option("--dry-run", is_flag=True, help="Print the plan for a GPU and its bounds; needs no GPU and runs nothing.")
@click.option("--gpu", "gpu_name", type=click.Choice(["h200", "h100", "a100", "b200"]), default="h200", show_default=True,
              help="GPU of a dry run's bounds.")
@click.option("--bits", type=click.Choice(["2", "3", "4", "5", "6", "7", "8", "32"]), default="4", show_default=True,
              help="Width of weights and activations in a dry run of a network by name; 32: the float network.")
@some_members
@float_arithmetic
@largest_batch
@common
def command(
    model: str, peers: str, batch: str | None, threads: str | None, data: Path | None, rounds: int, seconds: float, isa: str | None,
    arithmetic: str, max_batch: int | None, form: str, dry_run: bool, gpu_name: str, bits: str, members: tuple[str, ...] | None, json_path: Path | None, device: str,
) -> int:
    """Measure MODEL beside other engines on the same work, or show the plan for a GPU.

    MODEL is a .hce file. All engines and members take turns in one run; nothing is timed before its results were
    checked and its threads counted; a verdict comes with an interval. docs/BENCHMARKING.md says what is compared with what. With
    --device cuda the same is done on a GPU, on images that are there and on images of the host.

    With --dry-run MODEL_OR_NAME is a .hce file, or the name of an architecture such as resnet20, resnet56, resnet50 or
    mobilenet_v2, which then has random weights and is quantized, unless --bits is 32. Times are bounds from the GPU's datasheet.

    \b
    Examples:
      hce bench model.hce --peers all --batch 1,128 --threads 1,2 --data cifar-10-batches-bin --json bench.json
      hce bench model.hce --peers openvino-int8 --members q --isa avx2
      hce bench model.hce --device cuda --batch 256,1024 --peers torch-compile-fp32,torch-compile-tf32
      hce bench model.hce --device cuda --batch 1 --max-batch 1
      hce bench resnet20 --device cuda --dry-run --bits 3
      hce bench resnet50 --device cuda --dry-run --bits 32 --batch 1
      hce bench model.hce --device cuda --dry-run --members q --batch 1024 --json plan.json
    """
    on_gpu = dry_run or device == "cuda"
    batches = positive_integers(("256" if on_gpu else "128") if batch is None else batch, "--batch", most=_MOST_ON_GPU if on_gpu else 4096)
    if max_batch is not None and (dry_run or device != "cuda"):
        raise UnsupportedError("bench --max-batch", expected="--device cuda without --dry-run", got="a dry run" if dry_run else f"--device {device}",
                               fix="leave it out: a dry run plans for --batch, a CPU takes batches as they come")
    if dry_run:
        from .bench_gpu import dry_run as show_plan

        if device not in ("auto", "cuda"):
            raise UnsupportedError("bench --dry-run", expected="--device cuda", got=device,
                                   fix="leave --device out: a dry run is of the plan for a GPU")
        if len(batches) > 1:
            raise InputError("bench --dry-run", expected="one batch size", got=str(batch), fix="name one")
        return show_plan(model, batches[0], gpu_name, int(bits), members, arithmetic, json_path)
    if device == "cuda":
        from .bench_cuda import compare as compare_on_gpu

        for option, value in (("--threads", threads), ("--isa", isa)):
            if value is not None:
                raise UnsupportedError(f"bench {option}", expected="the CPU", got="--device cuda", fix=f"leave {option} out")
        return compare_on_gpu(Path(model), peers, batches, data, rounds, seconds, form, members, arithmetic, max_batch, json_path)
    if device == "reference":
        raise UnsupportedError("bench", expected="--device cpu or cuda", got=f"--device {device}", fix="leave --device out to measure on the CPU")
    if arithmetic != IEEE:
        raise UnsupportedError("bench --arithmetic", expected="--device cuda, or ieee", got=f"{arithmetic} on the CPU", fix="leave --arithmetic out")
    from .bench_cpu import compare

    counts = None if threads is None else positive_integers(threads, "--threads", most=1024)
    return compare(Path(model), peers, batches, counts, data, rounds, seconds, isa, form, members, json_path)
