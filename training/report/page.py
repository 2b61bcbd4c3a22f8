"""From sources to the page: which kind a source is, and how sections become HTML."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hce_engine.errors import DataError, UnsupportedError
from hce_engine.training import checkpoint
from hce_engine.training.export import is_run
from hce_engine.training.pictures.style import data_uri, encode

from .blocks import Picture, Section
from .measured import accuracy_section, difference_sections, ledger_section
from .rows import results_sections
from .run_pages import Regions, run_sections

try:
    import jinja2
except ImportError:
    raise UnsupportedError("report", expected="jinja2", got="no such package", fix='pip install "hce-engine[report]"') from None

TEMPLATE = Path(__file__).with_name("page.html")
PNG_DPI = 200


def _read(source: Path) -> dict[str, Any]:
    try:
        value = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"report on {source}", expected="the folder of a training run, or a JSON file", got=str(error)[:120],
                        fix="name what `hce train`, `hce eval --json` or a matrix of experiments wrote") from None
    if not isinstance(value, dict):
        raise DataError(f"report on {source}", expected="a JSON object", got=type(value).__name__, fix="name another file")
    return value


def sections_of(source: Path, regions: Regions, device: str, tell: Callable[[str], None]) -> list[Section]:
    """A run's folder, results/*.json, the JSON of ``hce eval``, or a run's result.json.

    Raises DataError for anything else, CheckpointError for a damaged run.
    """
    if is_run(source):
        return run_sections(source, regions, device, tell)
    value = _read(source)
    if isinstance(value.get("rows"), list):
        return results_sections(value, str(source))
    try:
        what = f"{value['model']} on {value['data']} ({value['split']})" if value.get("command") == "eval" else "Test set"
        sections = [accuracy_section(value, what), *difference_sections(value)]
        if value.get("ledger"):  # an artifact may be without one
            sections.append(ledger_section(value["ledger"]))
    except (KeyError, TypeError, AttributeError, ValueError, StopIteration) as error:
        raise DataError(f"report on {source}", expected="results with rows, or what `hce eval --json` writes", got=repr(error)[:120],
                        fix="name another file") from None
    return sections


def write_report(
    sources: Sequence[str | Path], out: str | Path, *, regions: Regions | None = None, device: str = "auto",
    pictures: str | Path | None = None, tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Writes the page to ``out``; returns ``{report, sources, pictures: names, left_out: sentences}``.

    sources: in the order in which they stand on the page, see :func:`sections_of`.  regions: of which data and how decision
    regions are drawn; by default not.  device: the engine's, for decision regions.  pictures: a folder that gets every
    picture as a file of its own as well.  tell: hears what takes long.
    Raises DataError, CheckpointError, InputError, WriteError.
    """
    chapters = [(str(source), sections_of(Path(source), regions or Regions(), device, tell)) for source in sources]
    images: dict[str, tuple[Picture, bytes]] = {}
    for number, (_, sections) in enumerate(chapters):
        for block in (block for section in sections for block in section.blocks):
            if isinstance(block, Picture):
                name = block.name if len(chapters) == 1 else f"{number + 1}-{block.name}"
                images[name] = block, encode(block.figure, block.format, PNG_DPI)
    page = _render(chapters, {id(block): data_uri(data, block.format) for block, data in images.values()})
    for name, (block, data) in images.items() if pictures is not None else ():
        checkpoint.write_bytes(Path(str(pictures)) / f"{name}.{block.format}", data)
    checkpoint.write_bytes(Path(out), page.encode())
    left_out = [sentence for _, sections in chapters for section in sections for sentence in section.left_out]
    return {"report": str(out), "sources": [name for name, _ in chapters], "pictures": list(images), "left_out": left_out}


def _render(chapters: Sequence[tuple[str, Sequence[Section]]], images: dict[int, str]) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(chapters=chapters, image_of=lambda block: images[id(block)])
