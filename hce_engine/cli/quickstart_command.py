"""``hce quickstart``: the whole product on real data, in minutes, with nothing to download."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..errors import UnsupportedError
from .options import common
from .output import write_json


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default="quickstart", show_default=True,
              help="Folder for model.hce, report.json and the training run.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads for training and timing; default: all usable cores.")
@common
def command(out: Path, threads: int | None, json_path: Path | None, device: str) -> int:
    """Train on bundled digits, compress, build, run and measure.

    Ends with one table: original, quantized, pruned, ensemble; accuracy, cost, bytes, images per second beside PyTorch.

    \b
    Example:
      hce quickstart --out quickstart
    """
    if device not in ("auto", "cpu"):
        raise UnsupportedError("quickstart", expected="--device auto or cpu", got=device, fix="leave --device out")
    from rich.console import Console

    from ..training.quickstart import quickstart, table

    report = quickstart(out, threads=threads, progress=True)
    if str(json_path) != "-":
        (Console() if sys.stdout.isatty() else Console(width=120)).print(table(report))
        click.echo(f"{out / 'model.hce'} and {out / 'report.json'} are written; try: hce info {out / 'model.hce'}")
    write_json(json_path, "quickstart", report)
    return 0
