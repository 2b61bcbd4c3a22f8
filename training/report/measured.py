"""Sections on what members and ensemble get right, how differently they err, how calibrated they are, what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hce_engine.backends.reference import mean_logits
from hce_engine.training.pictures.overlap import error_overlap
from hce_engine.training.pictures.reliability import reliability_diagrams
from hce_engine.training.pictures.style import MEMBERS

from .blocks import Picture, Section, Table, Text, count, number, percent

Values = Mapping[str, Any]
CONVENTIONS = {
    "flops_paper": "FLOPs, paper", "macs": "MACs", "b23": "MACs · b/23", "bb23": "MACs · b·b/23", "bb529": "MACs · b·b/529",
    "bops": "BOPs", "params": "parameters", "bytes": "bytes",
}


def member_name(name: str) -> str:
    return MEMBERS[name].name if name in MEMBERS else name


def in_order(names: Mapping[str, Any]) -> list[str]:
    """o, q, s, other members as they come, then the ensemble."""
    known = [n for n in MEMBERS if n in names and n != "ensemble"]
    return [*known, *(n for n in names if n not in MEMBERS), *(["ensemble"] if "ensemble" in names else [])]


def pair_of(key: str, members: Values) -> tuple[str, str]:
    """The two members of a key ``a-b`` of ``pairs``; names may hold hyphens of their own."""
    return next((a, b) for a in members for b in members if a != b and f"{a}-{b}" == key)


def accuracy_section(result: Values, what: str) -> Section:
    """result: of ``evaluate.evaluate_logits``, as JSON.  what: the images that it was measured on."""
    section = Section("Accuracy")
    entries = [(member_name(name), result["members"][name]) for name in in_order(result["members"])]
    strong = [i for i, name in enumerate(in_order(result["members"])) if name == "ensemble"]
    if result.get("probability_mean") and result["pairs"]:
        entries.append(("ensemble, mean of probabilities", result["probability_mean"]))
    rows = [
        (name, f"{m['correct']:,}", percent(m["accuracy"]), " to ".join(percent(x) for x in m["interval"]), number(m["nll"]),
         number(m["ece"]), number(m["brier"])) for name, m in entries
    ]
    section.blocks.append(Table(
        ("member", "correct", "accuracy", "95 % interval", "NLL", "ECE", "Brier"), rows, strong=strong,
        note=f"{what}, {result['total']:,} images. The interval is Wilson's; ECE has 15 bins. The ensemble averages logits "
        "unless it says otherwise.",
    ))
    if result.get("scaled"):
        scaled = result["scaled"]
        names = [n for n in [*in_order(result["members"]), "probability_mean"] if n in scaled and (n != "probability_mean" or result["pairs"])]
        section.blocks.append(Table(
            ("member", "temperature", "NLL", "ECE", "Brier"),
            [("ensemble, mean of probabilities" if n == "probability_mean" else member_name(n), number(scaled[n]["temperature"], 3),
              number(scaled[n]["nll"]), number(scaled[n]["ece"]), number(scaled[n]["brier"])) for n in names],
            strong=[i for i, n in enumerate(names) if n == "ensemble"],
            note="Temperatures are fitted on the hold-out by NLL and applied to the images above; accuracy does not change.",
        ))
    else:
        section.left_out.append("Temperature scaling is left out: there are no logits of a hold-out to fit temperatures on.")
    return section


def difference_sections(result: Values) -> list[Section]:
    """How the voters differ: one section, and none with a single voter."""
    if not result["pairs"]:
        return []
    section = Section("How differently the members err")
    rows = [
        (" and ".join(name.upper() if name in MEMBERS else name for name in pair_of(pair, result["members"])), percent(p["disagreement"]), percent(p["double_fault"]),
         number(p["q_statistic"], 3), f"{p['errors']['both']:,} of {p['errors']['either']:,}", percent(p["error_overlap"]))
        for pair, p in result["pairs"].items()
    ]
    section.blocks.append(Table(
        ("pair", "disagree", "both wrong", "Q statistic", "errors shared", "overlap"), rows,
        note="Q statistic: 1 where the members err on the same images, 0 where they err independently. The overlap of "
        "the paper's ResNet-56 is 28.0 %, computed from the counts in its Fig. 4: 401 of 1,434 errors shared.",
    ))
    for pair, p in result["pairs"].items():
        if "corrected" not in p:
            section.left_out.append("The picture of error overlap is left out: this result was written before corrections were counted.")
            continue
        first, second = pair_of(pair, result["members"])
        wrong = result["total"] - result["correct"]["ensemble"]
        section.blocks.append(Picture(
            f"error-overlap-{pair}", error_overlap(first, second, p, wrong),
            "Areas are in proportion to counts. Right: what becomes of the members' errors in the ensemble; grey is what is wrong "
            "there, too.",
            f"Of {p['errors']['either']} images that {first} or {second} gets wrong, {p['errors']['both']} are wrong in both; the "
            f"ensemble corrects {p['corrected']['either']} and adds {p['introduced']}.",
        ))
    return [section]


def calibration_section(logits: Mapping[str, np.ndarray], labels: np.ndarray, result: Values, voters: list[str]) -> Section:
    """Reliability diagrams, from the logits themselves."""
    every = {name: logits[name] for name in in_order(logits)}
    if len(voters) > 1:
        every["ensemble"] = mean_logits([logits[name] for name in voters])
    section = Section("Calibration")
    finite = {name: z for name, z in every.items() if np.isfinite(z).all()}
    if not finite:
        section.left_out.append("Reliability diagrams are left out: no member's logits are all finite.")
        return section
    temperatures = {name: m["temperature"] for name, m in result.get("scaled", {}).items()}
    section.blocks.append(Picture(
        "reliability", reliability_diagrams(finite, labels, temperatures),
        "How often predictions of a given confidence are right; on the grey line confidence is honest. The size of a marker grows "
        "with the share of images; bins of fewer than 10 images are not drawn.",
        "Reliability diagrams of " + ", ".join(map(member_name, finite)) + ".",
    ))
    return section


def ledger_section(ledger: Values) -> Section:
    """The cost of every member in every convention, and relative to the reference."""
    section = Section("Cost of one image")
    costs = {**ledger["members"], "ensemble": ledger["ensemble"]}
    reference = ledger["reference"]["member"]
    names = in_order(costs)
    rows = [(member_name(name), *(count(costs[name][key]) for key in CONVENTIONS)) for name in names]
    strong = [i for i, name in enumerate(names) if name == "ensemble"]
    section.blocks.append(Table(("member", *CONVENTIONS.values()), rows, strong=strong))
    if reference is not None:
        base = costs[reference]
        section.blocks.append(Text(f"The same, relative to {member_name(reference)}:"))
        section.blocks.append(Table(
            ("member", *CONVENTIONS.values()),
            [(member_name(n), *(percent(costs[n][key] / base[key] if base[key] else None, 1) for key in CONVENTIONS)) for n in names],
            strong=strong,
            note=f"FLOPs, paper: {ledger['convention']}. The columns with b count MACs alone, scaled by the bits of weights and "
            "activations: b is the larger of the two, b·b their product; BOPs is MACs · b·b with 32 bits for floats.",
        ))
    elif ledger["flops_ratio"] is not None:
        shares = ", ".join(f"{member_name(name)} {percent(ledger['flops_ratios'][name], 1)}" for name in names)
        section.blocks.append(Text(
            f"Relative to the uncompressed network, FLOPs, paper: {shares}. Convention: {ledger['convention']}."
        ))
    return section
