"""What the JSON files of a run say, short: ``python -m benchmarks.gpu.report OUT``; ``--tuned FILE`` writes the table of tuned
configurations as plans read it, ``--collect FILE`` all stages in one file, of which docs/RESULTS.md is made (page.py)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hce_engine.atomic import atomic_write

from . import page, stage, tune
from .goals import ENSEMBLE, goals

NAMES = ("machine", "tests", "accuracy", "repeats", "equality", "tune", "float_layers", "ensemble", "sanitizer", "members", "layers", "gemm")
GEMM_COLUMNS = ("ours w4a8", "ours w3a8", "ours w8a8", "ours w4a4", "torch.mm fp16", "torch._int_mm", "_weight_int4pack_mm", "GemLite A16W4")
LAYER_COLUMNS = ("ours", "cuDNN fp16 fused", "cuDNN fp16", "cuDNN bf16 fused", "cuDNN tf32 fused", "cuDNN fp32 fused")
FLOAT_COLUMNS = ("direct", "direct, tuned", "F(2x2)", "F(4x4)", "plain", "cuDNN fp32 NCHW fused", "cuDNN fp32 NHWC fused")
MOST_FAULTS = 12


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, numbers to the right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )


def _microseconds(contenders: dict[str, Any], name: str) -> str:
    result = contenders.get(name, {})
    if "median_us" not in result:
        return "-"
    share = f" ({result['percent_of_bound']:.0f} %)" if "percent_of_bound" in result else ""
    return f"{result['median_us']:.4g}{share}"


def ceilings(items: dict[str, Any]) -> str:
    parts = [f"{key} {result['value']:.4g} {result['unit']}" for key, result in items.items() if "value" in result]
    instructions = items.get("int8_instructions", {}).get("best")
    return "\n".join([*parts, *([f"int8 instructions, TOP/s: {instructions}"] if instructions else [])])


def gemm(items: dict[str, Any]) -> str:
    rows = [[key, *(_microseconds(result["contenders"], name) for name in GEMM_COLUMNS)]
            for key, result in items.items() if "contenders" in result]
    return table(["N x K x M, us (% of bound)", *GEMM_COLUMNS], rows)


def layers(items: dict[str, Any]) -> str:
    rows = [[key, *(_microseconds(result["contenders"], name) for name in LAYER_COLUMNS), f"{result.get('speedup_over_fp16', '-')}"]
            for key, result in items.items() if "contenders" in result and "compiled" not in key]
    return table(["layer, us (% of bound)", *LAYER_COLUMNS, "ours / best fp16"], rows)


def members(items: dict[str, Any]) -> str:
    rows = []
    for key, result in items.items():
        for name, contender in result.get("contenders", {}).items():
            if "images_per_s" in contender:
                rows.append([f"{key}: {name}", f"{contender['images_per_s']:,.0f}", f"{contender['host']['images_per_s']:,.0f}",
                             f"{contender['percent_of_bound']:.0f}" if "percent_of_bound" in contender else ""])
    return table(["member, images/s", "device", "from and to host", "% of bound"], rows)


def float_layers(items: dict[str, Any]) -> str:
    rows = []
    for key, result in items.items():
        shares, told = result.get("percent_of_ffma", {}), result.get("contenders", {})
        cells = [_microseconds({name: told.get(name, {}) | ({"percent_of_bound": shares[name]} if name in shares else {})}, name) for name in FLOAT_COLUMNS]
        if told:
            rows.append([key, *cells, f"{result.get('speedup_over_cudnn', '-')}"])
    return table(["float layer, us (% of FFMA bound)", *FLOAT_COLUMNS, "ours / best cuDNN"], rows)


def ensemble(items: dict[str, Any]) -> str:
    rows = []
    for key, result in items.items():
        for name, r in result.get("contenders", {}).items():
            if "images_per_s" in r:
                realised = result.get("realised", {}).get(name, {}).get("realised_share")
                rows.append([f"{key}: {name}", f"{r['images_per_s']:,.0f}", *(f"{r[k]['images_per_s']:,.0f}" if k in r else "" for k in ("host", "host_several")),
                             f"{r.get('percent_of_ffma', '')}", "" if realised is None else f"{realised}",
                             f"{result.get('overlap', {}).get(name.removeprefix(ENSEMBLE), '')}"])
    lines = [table(["ensemble, images/s", "device", "host", "several batches", "% of FFMA", "realised", "overlap"], rows)]
    return "\n".join([*lines, *(f"goal: {g.title}: {g.wanted:g}{g.unit} wanted, {g.got}: {g.verdict}" for g in goals(items))])


def proofs(name: str, items: dict[str, Any]) -> str:
    """One line per item that holds; what fails is named with the faults."""
    held = [key for key, result in items.items() if result.get("held", False)]
    why = [f"{key}: {result['why']}" for key, result in items.items() if "why" in result]
    return f"{name}: {len(held)} of {len(items)} hold ({', '.join(held)}){'; '.join(['', *why])}"


def collected(out: Path) -> dict[str, Any]:
    """All stages of a run, which must be of one GPU, one set of versions and one set of sources; series of clocks left out."""
    stages = {name: document for name in NAMES if (document := stage.read(out, name))}
    identities = {json.dumps(document["identity"], sort_keys=True) for document in stages.values()}
    if len(identities) != 1:
        raise SystemExit(f"benchmarks.gpu.report: expected results of one GPU, version and source in {out}, got {len(identities)} kinds; "
                         "run benchmarks/gpu/run.sh again")
    slim = {name: {key: value for key, value in document.items() if key not in ("identity", "clocks")} for name, document in stages.items()}
    return {"schema_version": page.SCHEMA_VERSION, "identity": json.loads(identities.pop()), "stages": slim}


def faults(name: str, items: dict[str, Any]) -> list[str]:
    """What does not hold, by name."""
    found = []
    for key, result in items.items():
        if not result.get("held", True):
            inner = [f"{n}: {r.get('error', r)}" for n, r in result.get("contenders", {}).items() if not r.get("held", True)]
            why = result.get("error") or result.get("why") or "; ".join(inner) or f"{result.get('differing', 'something')} differ"
            found.append(f"FAILED {name}: {key}: {why[:200]}")
    return found


def tables(out: Path) -> str:
    documents = {name: stage.read(out, name) for name in NAMES}
    items = {name: document.get("items", {}) for name, document in documents.items()}
    identity: dict[str, str] = next((d["identity"] for d in documents.values() if d), {})
    parts = [" ".join(f"{key} {value}" for key, value in identity.items()), ceilings(items["machine"])]
    if items["tests"]:
        parts.append(f"tests: {documents['tests'].get('counts')}")
    if items["equality"]:
        checked = items["equality"].values()
        parts.append(f"equality: {sum(r.get('differing') == 0 for r in checked)} configurations equal the reference, "
                     f"{sum('excluded' in r for r in checked)} do not fit this GPU, {sum(not r['held'] for r in checked)} fail")
    parts += [proofs(name, items[name]) for name in ("accuracy", "repeats", "sanitizer") if items[name]]
    shown = {"float_layers": float_layers, "ensemble": ensemble, "gemm": gemm, "layers": layers, "members": members}
    parts += [show(items[name]) for name, show in shown.items() if items[name]]
    wrong = [line for name in NAMES for line in faults(name, items[name])]
    parts.append("\n".join([*wrong[:MOST_FAULTS], *([f"and {len(wrong) - MOST_FAULTS} more in {out}"] if len(wrong) > MOST_FAULTS else [])]))
    for name, document in documents.items():
        if document.get("pending"):
            parts.append(f"not measured, {name}: {len(document['pending'])} items, {document['pending'][0]} first")
        elif not document:
            parts.append(f"not measured: {name}")
    return "\n\n".join(part for part in parts if part)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.report")
    parser.add_argument("out", type=Path)
    parser.add_argument("--tuned", type=Path, metavar="FILE", help="write the tuned configurations there, nothing else")
    parser.add_argument("--collect", type=Path, metavar="FILE", help="write all stages there, nothing else")
    given = parser.parse_args(argv)
    if given.collect:
        with atomic_write(given.collect) as file:
            file.write((json.dumps(collected(given.out), sort_keys=True) + "\n").encode())
    elif given.tuned:
        with atomic_write(given.tuned) as file:
            file.write((json.dumps(tune.table(given.out), indent=1, sort_keys=True) + "\n").encode())
    else:
        print(tables(given.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
