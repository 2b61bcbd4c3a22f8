"""``hce audit``: how much of the FLOPs saving became time, layer by layer, and why not all of it."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ..errors import InputError, UnsupportedError
from .options import common, keep_inputs, numbers
from .output import say, write_json


@click.command()
@click.argument("model", metavar="MODEL", type=click.Path(path_type=Path))
@click.option("--peers", default="all", show_default=True, metavar="NAMES",
              help="Engines to hold beside ours: all, none, or names such as openvino-int8,torch.")
@click.option("--sweep", is_flag=True, help="Also sweep pruning ratios and bits of the original.")
@click.option("--ratios", metavar="SHARES", help="Shares of the FLOPs that a sweep prunes. Default: 0.1 to 0.8 in steps of 0.1.")
@click.option("--algorithm", type=click.Choice(["planned", "direct"]), default="planned", show_default=True,
              help="Of convolutions in our engine: as planned, or direct ones everywhere.")
@click.option("--batch", type=click.IntRange(1, 4096), default=128, show_default=True, help="Images per call.")
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Of every engine. Layers are profiled on one.")
@click.option("--data", type=click.Path(path_type=Path),
              help="Labelled images to check agreement on and to calibrate int8 with; without, images of noise.")
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True, help="Turns of every candidate.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=0.2, show_default=True, help="Length of a turn.")
@click.option("--repeats", type=click.IntRange(min=1), default=15, show_default=True, help="Runs of a profile; medians count.")
@click.option("--isa", help="Hold our kernels, and peers as far as they can, to an instruction set. Default: HCE_ISA, else the best.")
@click.option("--picture", type=click.Path(path_type=Path, dir_okay=False), help="Draw the sweep: measured against ideal (.png or .svg).")
@common
def command(
    model: Path, peers: str, sweep: bool, ratios: str | None, algorithm: str, batch: int, threads: int, data: Path | None, rounds: int,
    seconds: float, repeats: int, isa: str | None, picture: Path | None, json_path: Path | None, device: str,
) -> int:
    """Show how much of MODEL's FLOPs saving became time, and what became of the rest.

    Time and FLOPs of every member and layer are held against those of the float original in the same engine; what is missing is
    charged to its causes by this machine's measured peaks. docs/AUDIT.md defines every figure. Run it on an idle machine.

    \b
    Examples:
      hce audit model.hce --peers openvino-fp32,openvino-int8 --json audit.json
      hce audit model.hce --peers none --sweep --picture sweep.png
      hce audit model.hce --peers none --sweep --algorithm direct --ratios 0.2,0.25,0.3,0.35,0.4,0.45,0.5,0.55,0.6
    """
    if device not in ("auto", "cpu"):
        raise UnsupportedError("audit", expected="--device cpu, whose layers and peaks it measures", got=f"--device {device}",
                               fix="leave --device out; `hce bench --device cuda` measures members on a GPU")
    if picture is not None and not sweep:
        raise InputError("--picture", expected="--sweep, which is what it shows", got="none", fix="add --sweep")
    if picture is not None and picture.suffix not in (".png", ".svg"):
        raise InputError("--picture", expected="a name that ends with .png or .svg", got=picture.name, fix="change its ending")
    keep_inputs((json_path, picture), (model, *([data] if data else [])))
    from .. import _native, artifact
    from ..bench.isa import hold_peers

    asked = isa or os.environ.get(_native.ISA_VARIABLE)
    if asked:
        hold_peers(_native.choose_isa(asked))
    from ..audit.report import audit, require_original
    from ..audit.running import Setting
    from ..audit.sweep import sweep as run_sweep
    from ..audit.variants import RATIOS
    from ..bench.sample import from_data, random_images
    from ..bench.subject import Subject
    from .audit_tables import show_audit, show_sweep
    from .bench_cpu import named_peers

    if picture is not None:
        from ..audit.picture import draw  # before anything is measured: it may need a package that is missing
    shares = RATIOS if ratios is None else numbers(ratios, "--ratios") or ()
    if not all(0 < share < 1 for share in shares):
        raise InputError("--ratios", expected="shares between 0 and 1", got=str(ratios), fix="write for example --ratios 0.2,0.4,0.6")
    others = named_peers(peers)
    loaded = artifact.load(model)
    sample = from_data(data, loaded.input) if data else random_images(loaded.input)
    setting = Setting(batch, threads, asked, algorithm, rounds, seconds, repeats)
    report = audit(loaded, sample, others, setting, say)
    report |= {"model": model.name, "digest": artifact.digest(model), "sweep": None}
    shown = str(json_path) != "-"
    if shown:
        show_audit(model, report)
    if sweep:
        subject = Subject(loaded, sample, asked)
        report["sweep"] = run_sweep(subject, require_original(loaded), others, setting, ratios=shares, say=say)
        if shown:
            show_sweep(report["sweep"])
        if picture is not None:
            draw(report, picture)
    write_json(json_path, "audit", report)
    return 0
