"""The measured tables of the README and of docs/SPEED.md, generated from committed measurements.

    python -m benchmarks.readme_table                 rewrites both pages between their markers
    python -m benchmarks.readme_table --check         exit code 1 if a page is not what the measurements say
    python -m benchmarks.readme_table --add digits --caption "Digits, half held out" \
        --command "make quickstart" quickstart/report.json

``--add`` joins the JSON files of ``hce quickstart``, ``hce eval`` and ``hce info`` (later ones win) into
``benchmarks/results/NAME.json``, with what this machine is; the JSON of ``hce bench`` and ``hce audit`` is kept whole. A NAME that begins
with ``speed/`` goes to docs/SPEED.md instead of the README.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from hce_engine.machine import processor
from hce_engine.threads import available_threads

ROOT = Path(__file__).resolve().parent.parent
RESULTS, README, SPEED = ROOT / "benchmarks" / "results", ROOT / "README.md", ROOT / "docs" / "SPEED.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
PEER_PACKAGES = ("torch", "onnxruntime", "openvino", "nncf")
KEPT = ("accuracy", "total", "flops_ratios", "bytes", "images_per_second", "batch", "isa")
ROWS = {
    "o": "O, original, float32", "q": "Q, quantized", "s": "S, pruned, float32", "ensemble": "**Q + S, ensemble**",
    "torch": "O in PyTorch (better of eager channels_last and torch.compile)",
}


def comparison(result: dict[str, Any]) -> str:
    """A run of ``hce bench``: per batch size, what our engine and the fastest peer do of each member, per thread count."""
    lines = [f"{result['caption']}. `{result['command']}`; {result['machine']}; {_versions(result)}."]
    measured = [row for row in result["rows"] if row["images_per_second"]]
    threads = sorted({row["threads"] for row in measured})
    for batch in sorted({row["batch"] for row in measured}):
        lines += ["", f"| batch {batch}, images/s |" + "".join(f" HCE, {t} thread{'s' * (t > 1)} | fastest peer | ratio |" for t in threads),
                  "|---|" + "---:|---:|---:|" * len(threads)]
        rows = [row for row in measured if row["batch"] == batch]
        for member, title in ROWS.items():
            cells = [_ours_and_fastest([row for row in rows if row["threads"] == t and row["member"] == member]) for t in threads]
            if any(cells):
                lines.append(f"| {title} |" + "".join(cell or " | | |" for cell in cells))
        claims = {claim["threads"]: claim for claim in result["claims"] if claim["batch"] == batch}
        if claims:
            cells = [_claim(claims[t], [row for row in rows if row["threads"] == t]) if t in claims else " | | |" for t in threads]
            lines.append("| the ensemble against O, float32 |" + "".join(cells))
    return "\n".join(lines)


def _ours_and_fastest(rows: list[dict[str, Any]]) -> str:
    """Three cells, or nothing where either side is missing."""
    ours = [row for row in rows if row["engine"] == "hce"]
    peers = [row for row in rows if row["against"] and row["isa_held"]]
    if not ours or not peers:
        return ""
    best = max(peers, key=lambda row: row["images_per_second"])
    return _cells(ours[0], best, best["against"])


def _claim(claim: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    (ours,) = (row for row in rows if (row["engine"], row["member"]) == ("hce", "ensemble"))
    (peer,) = (row for row in rows if (row["engine"], row["member"]) == (claim["peer"], "o"))
    return _cells(ours, peer, claim)


def _cells(ours: dict[str, Any], peer: dict[str, Any], against: dict[str, Any]) -> str:
    doubt = "" if against["verdict"] in ("FASTER", "SLOWER") else f", {against['verdict']}"
    return f" {ours['images_per_second']:,.0f} | {peer['images_per_second']:,.0f} {peer['engine']} | {against['ratio']:.2f}x{doubt} |"


def audit(result: dict[str, Any]) -> str:
    """A run of ``hce audit``: FLOPs and time of each member against the original, and of the sweep."""
    machine, setting = result["machine"], result["setting"]
    peaks = result["peaks"][0]["macs"]
    lines = [f"{result['caption']}. `{result['command']}`; {machine['processor']}, {machine['isa']}, {setting['threads']} thread, batch "
             f"{setting['batch']}; measured peaks " + ", ".join(f"{kind} {rate / 1e9:,.0f} GMAC/s" for kind, rate in peaks.items()) + ".", "",
             "| against O in the same engine | FLOPs | time | realised share | share of what the peaks allow |", "|---|---:|---:|---:|---:|"]
    rows = [(ROWS[name], row) for name, row in result["members"].items()]
    rows += [(f"{row['member']} on {row['engine']}", row) for row in result["peers"]["rows"] if row["member"] != result["original"]["member"]]
    for title, row in rows:
        bound = row.get("bound_share")
        lines.append(f"| {title} | {100 * row['flops_ratio']:.1f} % | {100 * row['time_ratio']:.1f} % | {row['realised_share']:.2f} | "
                     f"{'' if bound is None else f'{bound:.2f}'} |")
    for engine, line in (result.get("sweep") or {}).get("lines", {}).items():
        lines += ["", f"Pruning sweep, {engine}: time = {line['fixed']:.3f} + {line['slope']:.3f} x FLOPs; farthest point "
                  f"{100 * line['largest_distance']:.1f} % of O's time off the line; smallest realised share {line['least_share']:.2f}."]
    return "\n".join(lines)


def _versions(result: dict[str, Any]) -> str:
    return ", ".join(f"{name} {result['versions'][name].split('-')[0]}" for name in PEER_PACKAGES if name in result["versions"])


def table(result: dict[str, Any]) -> str:
    """One measurement as markdown: caption, command and machine, then a row per member."""
    if "rows" in result:
        return comparison(result)
    if "layers" in result:
        return audit(result)

    def cell(key: str, member: str) -> str:
        value = result.get(key, {}).get(member)
        if value is None:
            return ""
        return f"{100 * value:.2f} %" if key == "accuracy" else f"{100 * value:.1f} %" if key == "flops_ratios" else f"{value:,.0f}"

    columns = {"accuracy": "accuracy", "flops_ratios": "FLOPs (paper's convention)", "bytes": "bytes", "images_per_second": "images/s"}
    columns = {key: title for key, title in columns.items() if key in result}
    lines = [f"{result['caption']} ({result['total']:,} images). `{result['command']}`; {result['machine']}.", "",
             "| | " + " | ".join(columns.values()) + " |", "|---|" + "---:|" * len(columns)]
    for member, title in ROWS.items():
        cells = [cell(key, member) for key in columns]
        if any(cells):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rendered(folder: Path) -> str:
    """All tables of a folder, in the order of its files' names."""
    found = [table(json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))]
    return "\n\n".join(found) if found else "No measurement is committed yet: `make quickstart` prints this machine's."


def with_tables(text: str, folder: Path) -> str:
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{rendered(folder)}\n{END}{after}"


def pages() -> dict[Path, str]:
    """What each page of this checkout should be."""
    folders = {README: RESULTS, SPEED: RESULTS / "speed"}
    return {page: with_tables(page.read_text(encoding="utf-8"), folder) for page, folder in folders.items() if page.exists()}


def _add(name: str, caption: str, command: str, sources: tuple[Path, ...]) -> None:
    merged: dict[str, Any] = {}
    for source in sources:
        merged.update(json.loads(source.read_text(encoding="utf-8")))
    RESULTS.mkdir(exist_ok=True)
    if "rows" in merged or "layers" in merged:  # of hce bench or audit, which say themselves what machine they ran on
        _store(name, {"caption": caption, "command": command, **{k: v for k, v in merged.items() if k != "command"}})
        return
    kept = {key: merged[key] for key in KEPT if key in merged}
    details = [processor(), f"{merged.get('threads', available_threads())} threads"]
    details += [str(merged["isa"])] if "isa" in merged else []
    details += [f"batch {merged['batch']}"] if "batch" in merged else []
    _store(name, {"caption": caption, "command": command, "machine": ", ".join(details), **kept})


def _store(name: str, document: dict[str, Any]) -> None:
    (RESULTS / name).parent.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


@click.command()
@click.argument("sources", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--add", "name", help="Store SOURCES as this measurement first.")
@click.option("--caption", default="")
@click.option("--command", "made_by", default="", help="The command that made the figures.")
@click.option("--check", is_flag=True, help="Change nothing; exit code 1 if README.md is out of date.")
def main(sources: tuple[Path, ...], name: str | None, caption: str, made_by: str, check: bool) -> None:
    """Write the measured tables into their pages."""
    if name:
        if not (sources and caption and made_by):
            raise click.UsageError("--add needs --caption, --command and at least one JSON file")
        _add(name, caption, made_by, sources)
    if check:
        raise SystemExit(any(page.read_text(encoding="utf-8") != text for page, text in pages().items()))
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
