"""``hce report``: one self-contained page with tables and pictures."""

from __future__ import annotations

from pathlib import Path

import click

from .options import common, keep_inputs
from .output import say, write_json


@click.command()
@click.argument("sources", metavar="RUN|JSON...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The page to write (.html).")
@click.option("--data", help="Data of the run, as `hce train` got it: adds decision regions, which take minutes.")
@click.option("--image", type=int, help="Number of the test image for them; default: the first that all members get right.")
@click.option("--radius", type=float, default=24.0, show_default=True, help="Half of their side, in codes of change per pixel.")
@click.option("--side", type=int, default=101, show_default=True, help="Their points per axis, an odd number.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of their random plane.")
@click.option("--pictures", type=click.Path(path_type=Path, file_okay=False), help="Folder that gets the pictures as files, too.")
@common
def command(
    sources: tuple[Path, ...], out: Path, data: str | None, image: int | None, radius: float, side: int, seed: int,
    pictures: Path | None, json_path: Path | None, device: str,
) -> int:
    """Write one page about training runs, results/*.json, or what `hce eval --json` wrote.

    Nothing on the page is fetched from elsewhere. Parts that cannot be made, such as decision regions without --data, are
    named on the page and here.

    \b
    Examples:
      hce report runs/r20 --data cifar-10-batches-bin -o report.html
      hce report runs/r20 results/cifar10-resnet20.json -o report.html --pictures figures
    """
    keep_inputs((out, json_path), [path for path in (*sources, Path(data or "")) if path.is_file()])
    from ..training.report import write_report
    from ..training.report.run_pages import Regions

    regions = Regions(data, image, radius, side, seed)
    facts = write_report(sources, out, regions=regions, device=device, pictures=pictures, tell=say)
    for sentence in facts["left_out"]:
        say(sentence)
    if str(json_path) != "-":
        click.echo(f"wrote {out}; pictures: {len(facts['pictures'])}")
    write_json(json_path, "report", facts)
    return 0
