"""A table of what benchmarks/test_kernels.py measured.

    python -m benchmarks.kernel_table kernels.json --sort share
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from hce_engine.cli.output import show_table

COLUMNS = ("case", "kernel", "us", "GMAC/s", "% of peak", "executed %", "GB/s", "% of bandwidth", "place")


def rows(document: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row per benchmark that has a kernel, in the file's order."""
    found = []
    for benchmark in document["benchmarks"]:
        info = benchmark["extra_info"]
        if "kernel" not in info:
            continue
        products = ("", "", "")
        if "macs_per_second" in info:
            products = (f"{info['macs_per_second'] / 1e9:.1f}", f"{100 * info['peak_share']:.0f}", f"{100 * info['executed_share']:.0f}")
        found.append((
            benchmark["param"], info["kernel"], f"{1e6 * benchmark['stats']['median']:.2f}", *products,
            f"{info['bytes_per_second'] / 1e9:.1f}", f"{100 * info['bandwidth_share']:.0f}", info["place"],
        ))
    return found


@click.command()
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path, exists=True))
@click.option("--sort", type=click.Choice(["name", "share", "file"]), default="file", show_default=True,
              help="By name, or by the share of the peak, worst first.")
def main(source: Path, sort: str) -> None:
    """FILE is what --benchmark-json wrote."""
    document = json.loads(source.read_text())
    table = rows(document)
    if not table:
        raise click.ClickException(f"{source} holds no kernels; run benchmarks/test_kernels.py with --benchmark-json")
    if sort == "name":
        table.sort()
    elif sort == "share":
        table.sort(key=lambda row: float(row[4] or "inf"))
    isa = next(b["extra_info"]["isa"] for b in document["benchmarks"] if "kernel" in b["extra_info"])
    show_table(f"Kernels of {isa}, one thread, one tile of 16 images; peaks of this machine as measured", COLUMNS, table)


if __name__ == "__main__":
    main()
