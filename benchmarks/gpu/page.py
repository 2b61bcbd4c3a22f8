"""What runs on GPUs say, as markdown for docs/RESULTS.md: every figure is one of ``results/gpu/*.json``, collected from a run by
``python -m benchmarks.gpu.report OUT --collect results/gpu/CARD.json``. What has no result is said not to be measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .goals import ENSEMBLE, NOT_MEASURED, fastest_ensemble, goals, speedup
from .names import CASES, COMPENSATED, DIRECT, ENSEMBLE_BATCHES, NHWC, PLAIN, plain_key

SCHEMA_VERSION = 1
LAYER_COLUMNS = (DIRECT, "direct, tuned", "F(2x2)", "F(4x4)", PLAIN, NHWC, *COMPENSATED, "cuDNN fp32 NCHW", "cuDNN fp32 NCHW fused",
                 "cuDNN fp32 NHWC", "cuDNN fp32 NHWC fused", "cuBLAS fp32")
HEADER = """## On a GPU

One section per card, from `results/gpu/*.json`, which `benchmarks/gpu/run.sh` wrote (benchmarks/gpu/README.md says how it measures).
Times are medians of interleaved runs; per cent are of rates that the same run reached on the same card. The FFMA bound is that of the
multiply-accumulates which a plan walks: by direct convolution, or by Winograd where the plan takes that. The realised share is what
became of the FLOPs that a member saves, (1 - t / t_o) / (1 - f / f_o), with t_o our own time of the unpruned network. A goal is judged
only where it was measured.
"""

Document = Mapping[str, Any]
Items = Mapping[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def number(value: float | None, form: str = ".4g") -> str:
    return "" if value is None else f"{value:{form}}"


def section_of(title: str, body: str) -> str:
    return f"#### {title}\n\n{body or NOT_MEASURED[0].upper() + NOT_MEASURED[1:] + '.'}"


def goal_rows(items: Items) -> str:
    return table(["goal", "wanted", "measured", ""], [[g.title, f"{g.wanted:g}{g.unit}", g.got, g.verdict] for g in goals(items)])


def machine(document: Document) -> str:
    items = document.get("items", {})
    rows = [[f"`{key}`", number(r["value"]), r["unit"], number(r.get("datasheet"))] for key, r in items.items() if "value" in r]
    told = items.get("environment", {})
    about = ", ".join(f"{key} {told[key]}" for key in ("torch", "cuda", "cudnn", "triton", "commit") if key in told)
    driver = told.get("nvidia_smi", {}).get("driver_version")
    return "\n\n".join([*([f"{about}{f', driver {driver}' if driver else ''}."] if about else []),
                        *([table(["rate", "reached", "unit", "datasheet"], rows)] if rows else [])])


def layers(document: Document) -> str:
    """Microseconds, of ours with the per cent of the bound of fused multiply-adds."""
    items = [r for r in document.get("items", {}).values() if "contenders" in r]
    columns = [name for name in LAYER_COLUMNS if any("median_us" in r["contenders"].get(name, {}) for r in items)]
    rows = []
    for result in items:
        cells = []
        for name in columns:
            time, share = result["contenders"].get(name, {}).get("median_us"), result.get("percent_of_ffma", {}).get(name)
            cells.append(f"{time:.4g}{f' ({share:.0f} %)' if share is not None else ''}" if time is not None else "")
        rows.append([f"{result['layer']}, {result['batch']}", *cells, number(result.get("speedup_over_cudnn"), ".2f")])
    return table(["layer, batch; us (% of the FFMA bound)", *columns, "float32 / best cuDNN"], rows) if rows else ""


def layer_errors(document: Document) -> str:
    """The worst over all layers, of each way to compute them."""
    rows = []
    for name in LAYER_COLUMNS:
        found = [r["contenders"][name] for r in document.get("items", {}).values() if "max_error" in r.get("contenders", {}).get(name, {})]
        if found:
            rows.append([name, str(len(found)), *(f"{max(r[key] for r in found):.1e}" for key in ("max_error", "mean_error"))])
    return table(["kernel", "layers", "largest error", "largest mean error"], rows) if rows else ""


def ensemble(items: Items, case: str, batch: int) -> str:
    """Every contender of the item without torch.compile, and those of the items with it."""
    rows = []
    for key, result in items.items():
        if (result.get("case"), result.get("batch")) != (case, batch):
            continue
        compiled = key != plain_key(case, batch)
        for name, r in result["contenders"].items():
            if "images_per_s" in r and not (compiled and not name.startswith("torch ")):
                rate = [f"{r[k]['images_per_s']:,.0f}" if k in r else "" for k in ("host", "host_several")]
                rows.append([name, f"{r['images_per_s']:,.0f}", *rate, number(r.get("percent_of_ffma"), ".0f"),
                             number(result.get("realised", {}).get(name, {}).get("realised_share"), ".2f")])
    if not rows:
        return ""
    lines = [table([f"{case}, batch {batch}; images/s", "on the device", "from the host", "several batches per call", "% of the FFMA bound",
                    "realised share"], rows)]
    overlap = items.get(plain_key(case, batch), {}).get("overlap", {})
    if overlap:
        told = items[plain_key(case, batch)]["contenders"]
        ways = {mode: told.get(f"{ENSEMBLE}{mode}", {}).get("way", mode) for mode in overlap}
        lines.append("Overlap: " + "; ".join(f"{ways[mode]} {value:.2f}" for mode, value in overlap.items()) + ".")
    for kind in ("fp32", "tf32"):
        ratio, best = speedup(items, kind, case, batch), fastest_ensemble(items, plain_key(case, batch))
        if ratio is not None and best is not None:
            lines.append(f"Against torch.compile {kind}: {ratio:.2f}x ({best[0]}).")
    return "\n\n".join(lines)


def quantized(document: Document) -> str:
    """Q alone, of networks with random weights, beside the float network."""
    rows = []
    for key, result in document.get("items", {}).items():
        for name, r in result.get("contenders", {}).items():
            if "images_per_s" in r:
                rows.append([f"{key}: {name}", f"{r['images_per_s']:,.0f}", f"{r['host']['images_per_s']:,.0f}", number(r.get("percent_of_bound"), ".0f")])
    return table(["member; images/s", "on the device", "from the host", "% of the bound of memory and int8 rate"], rows) if rows else ""


def correctness(stages: Mapping[str, Document]) -> str:
    """One row per proof."""
    rows = []
    counts = stages.get("tests", {}).get("counts")
    rows.append(["tests with compiled kernels", ", ".join(f"{n} {outcome}" for outcome, n in counts.items()) if counts else NOT_MEASURED])
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        r = stages.get("sanitizer", {}).get("items", {}).get(tool)
        text = NOT_MEASURED if r is None else r.get("why") or r.get("error") or f"{r['errors']} errors in {r['checks']} checks of {len(r['started'])} kernels"
        rows.append([f"compute-sanitizer {tool}", text])
    for key, r in stages.get("repeats", {}).get("items", {}).items():
        rows.append([f"repeats, {key}", r.get("error") or f"{r['differing']} logits differ in {r['repeats']} repeats"])
    accuracy = stages.get("accuracy", {}).get("items", {})
    for key in ("logits", "hce eval", "hce run"):
        r = accuracy.get(key)
        rows.append([f"GPU beside CPU, {key}", NOT_MEASURED if r is None else r.get("error") or told(r)])
    return table(["proof", "what it found"], rows)


def told(result: Mapping[str, Any]) -> str:
    """An item of accuracy in words."""
    if "right" in result:
        counts = {device: ", ".join(f"{name} {n}" for name, n in right.items()) for device, right in result["right"].items()}
        return f"right of {result['total']}: " + "; ".join(f"{device}: {text}" for device, text in counts.items())
    if "rows" in result:
        return f"{result['differing']} of {result['rows']} classes differ"
    words = []
    for name, r in result["contenders"].items():
        error = f", error {r['max_error']:.1e}" if "max_error" in r else ""
        words.append(f"{name} {'holds' if r['held'] else 'DOES NOT HOLD'}{error}")
    return "; ".join(words)


def card(collected: Mapping[str, Any]) -> str:
    """One file of results/gpu."""
    stages = collected["stages"]
    found = stages.get("ensemble", {}).get("items", {})
    parts = [f"### {collected['identity']['gpu']}", goal_rows(found),
             section_of("The machine", machine(stages.get("machine", {}))), section_of("Correctness", correctness(stages)),
             section_of("Float layers", layers(stages.get("float_layers", {}))),
             section_of("Errors of float layers, in parts of the largest output", layer_errors(stages.get("float_layers", {})))]
    for case in CASES:
        tables = [text for batch in ENSEMBLE_BATCHES if (text := ensemble(found, case, batch))]
        missing = [str(batch) for batch in ENSEMBLE_BATCHES if plain_key(case, batch) not in found]
        if tables and missing:
            tables.append(f"Batch {', '.join(missing)}: {NOT_MEASURED}.")
        parts.append(section_of(f"Ensemble: {case}", "\n\n".join(tables)))
    parts.append(section_of("Quantized members", quantized(stages.get("members", {}))))
    return "\n\n".join(parts)


def rendered(folder: Path) -> str:
    """The part of the page that is about GPUs."""
    files = sorted(folder.glob("*.json"))
    if not files:
        return f"{HEADER}\n{goal_rows({})}\n\nNo card has been measured: there is no file in `results/gpu/`."
    return "\n".join([HEADER, "\n\n".join(card(json.loads(path.read_text(encoding="utf-8"))) for path in files)])
