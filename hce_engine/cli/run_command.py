"""``hce run``: predictions for a folder of images, an array or a CIFAR folder, batch by batch."""

from __future__ import annotations

import time
from pathlib import Path

import click

from .options import common, float_arithmetic, keep_inputs, largest_batch, some_members, trace_file
from .output import amount, progress_bar, say, write_json
from .predictions import NO_CLASS, open_predictions, top_class


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("source", type=click.Path(path_type=Path), metavar="INPUT")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Predictions: a .csv or .npz file.")
@click.option("--batch", type=click.IntRange(min=1), default=256, show_default=True, help="Images per call.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the engine; default: all usable cores.")
@click.option("--skip-bad", is_flag=True, help="Leave unreadable image files out and list them at the end.")
@trace_file
@some_members
@float_arithmetic
@largest_batch
@common
def command(
    model: Path, source: Path, out: Path, batch: int, threads: int | None, skip_bad: bool, trace_path: Path | None,
    members: tuple[str, ...] | None, arithmetic: str, max_batch: int | None, json_path: Path | None, device: str,
) -> int:
    """Classify INPUT with the ensemble of MODEL.

    INPUT is a folder of images, one image, a .npy or .npz array as the model takes it, or a CIFAR binary folder. The
    output has one row per image: file name or index, class, probability. It appears when all are done, or not at all.

    \b
    Examples:
      hce run model.hce photos/ -o predictions.csv --skip-bad
      hce run model.hce images.npy -o predictions.npz --batch 1024
    """
    import numpy as np

    from .. import load
    from ..errors import DataError
    from ..images import open_images
    from ..images.cifar import find_cifar

    keep_inputs((out, trace_path, json_path), (model, source))
    engine = load(model, device=device, threads=threads, members=members, arithmetic=arithmetic, max_batch=max_batch)
    if trace_path is not None:
        engine.require_trace()
    images = open_images(source, engine.input, skip_bad=skip_bad)
    by_index = source.suffix.lower() in (".npy", ".npz") or (source.is_dir() and find_cifar(source) is not None)
    done = unclear = 0
    first: np.ndarray | None = None
    started = time.monotonic()
    with open_predictions(out, "index" if by_index else "file", engine.artifact.classes) as writer, \
            progress_bar("classifying", images.total) as bar:
        for names, chunk in images.batches(batch):
            logits = np.asarray(engine(chunk))
            first = chunk if first is None else first
            writer.add(names, logits)
            done += len(names)
            unclear += int((top_class(logits)[0] == NO_CLASS).sum())
            bar.advance(len(names))
        if not done and images.skipped:
            raise DataError(f"run {source}", expected="at least one readable image", fix="check the files and their sizes",
                            got=f"none of {len(images.skipped)} ({images.skipped[0].name}: {images.skipped[0].reason})")
    seconds = time.monotonic() - started
    concurrency = engine.report()
    if trace_path is not None and first is not None:
        engine.trace(first, trace_path, ensemble_only=True)
    say(f"{done} images in {seconds:.1f} s ({amount(done / max(seconds, 1e-9))} images/s, reading included) -> {out}")
    if unclear:
        say(f"{unclear} images hold NaN or Inf and got no class")
    for skipped in images.skipped:
        say(f"skipped {skipped.name}: {skipped.reason}")
    write_json(json_path, "run", {
        "model": str(model), "input": str(source), "out": str(out), "images": done, "without_class": unclear,
        "skipped": [{"name": s.name, "reason": s.reason} for s in images.skipped], "seconds": seconds,
        "concurrency": concurrency,
    })
    return 0
