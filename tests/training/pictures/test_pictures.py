"""What the pictures show: areas, places and figures by number, and no picture that cannot be read."""

from __future__ import annotations

import math
import re
import sys

import numpy as np
import pytest

from hce_engine.errors import UnsupportedError
from hce_engine.training.evaluate import expected_calibration_error, softmax
from hce_engine.training.pictures.curves import by_member, training_curves
from hce_engine.training.pictures.overlap import distance_for, error_overlap, lens_area
from hce_engine.training.pictures.plane import random_plane
from hce_engine.training.pictures.regions import class_colours, decision_regions
from hce_engine.training.pictures.reliability import reliability, reliability_diagrams
from hce_engine.training.pictures.style import CLASS_COLOURS, MEMBERS, OTHER_CLASSES, encode
from hce_engine.training.pictures.sweep import lambda_sweep, sweep_family, swept
from hce_engine.training.pictures.tradeoff import accuracy_against_cost, anchors

from .legible import assert_legible, assert_repeatable, words


def pair(only_first: int, both: int, only_second: int, introduced: int = 0) -> dict:
    either = only_first + both + only_second
    return {
        "errors": {"only_first": only_first, "only_second": only_second, "both": both, "either": either},
        "error_overlap": both / either if either else None, "introduced": introduced,
        "corrected": {"only_first": only_first // 2, "only_second": only_second // 3, "both": both // 10, "either": 0},
    }


def test_lens_areas_are_those_of_known_circles() -> None:
    assert lens_area(1, 1, 2) == 0 and lens_area(1, 3, 1) == pytest.approx(math.pi)
    # Two unit circles through each other's centres: 2 pi / 3 - sqrt(3) / 2
    assert lens_area(1, 1, 1) == pytest.approx(2 * math.pi / 3 - math.sqrt(3) / 2)
    for a, b, area in ((2, 3, 4.0), (1, 5, 0.5), (2, 2, 12.0)):
        assert lens_area(a, b, distance_for(a, b, area)) == pytest.approx(area, rel=1e-6)


@pytest.mark.parametrize("counts", [(255, 592, 540), (8, 592, 540), (0, 300, 0), (100, 0, 100), (0, 0, 0), (3, 0, 0), (9000, 900, 40, 25)])
def test_error_overlap_states_its_counts(counts: tuple[int, ...]) -> None:
    figure = error_overlap("q", "s", pair(*counts), 77)
    assert_legible(figure)
    shown = words(figure)
    assert all(f"{n:,}" in shown for n in counts[:3] if n)
    assert any("the ensemble makes 77" in text for text in shown)
    assert any("new errors" in text for text in shown) == (len(counts) == 4)


def test_a_number_that_its_crescent_cannot_hold_stands_outside() -> None:
    venn = error_overlap("q", "s", pair(8, 592, 540), 77).axes[0]
    q, s = (next(p for p in venn.patches if p.get_edgecolor()[3] and p.get_radius() == r) for r in sorted({p.get_radius() for p in venn.patches}))
    at = {t.get_text(): t.get_position()[0] for t in venn.texts}
    assert at["8"] < q.center[0] - q.get_radius()
    assert q.center[0] + q.get_radius() < at["540"] < s.center[0] + s.get_radius()


def test_a_class_keeps_its_colour_from_picture_to_picture() -> None:
    assert class_colours({"a": np.array([3])}, 10)[3] == class_colours({"a": np.array([3, 5, 5])}, 10)[3] == CLASS_COLOURS[3]
    many = {"a": np.repeat(np.arange(100), np.arange(100)), "b": np.full(5000, 7)}
    colours = class_colours(many, 100)
    assert colours[7] == CLASS_COLOURS[0] and colours[99] == CLASS_COLOURS[1] and colours[5] == OTHER_CLASSES
    assert 0 not in colours  # has no area


def regions(classes: int = 10, side: int = 21) -> tuple[dict[str, np.ndarray], object, list[str]]:
    plane = random_plane(np.full((4, 4, 3), 100, np.uint8), 8.0, side, 0)
    y, x = np.mgrid[:side, :side]
    whole, halves = np.zeros(side * side, np.int64), (x > side // 2).astype(np.int64).ravel()
    stripes = ((x + y) * classes // (2 * side)).ravel()
    noise = np.random.default_rng(0).integers(0, classes, side * side)
    return {"whole": whole, "halves": halves, "stripes": stripes, "noise": noise}, plane, ["automobile", *(f"class{i}" for i in range(1, classes))]


@pytest.mark.parametrize("classes", [4, 10, 40])
def test_regions_are_named_where_the_name_fits(classes: int) -> None:
    predictions, plane, names = regions(classes)
    figure = decision_regions({"first": ["whole", "halves"], "second": ["stripes"]}, predictions, plane, names, 0)
    assert_legible(figure)
    first = figure.axes[0]
    assert [t.get_text() for t in first.texts] == ["automobile"]
    assert {t.get_text() for t in figure.axes[1].texts} == {"automobile", "class1"}
    x, y = first.texts[0].get_position()
    assert math.hypot(x, y) > 1  # beside the marker, not on it
    assert "the image (automobile)" in words(figure)


def test_noise_is_drawn_without_names() -> None:
    predictions, plane, names = regions()
    figure = decision_regions({"": ["noise"]}, predictions, plane, names, 0)
    assert not figure.axes[0].texts
    assert_legible(figure)


def test_a_panel_is_its_predictions_right_way_up() -> None:
    _, plane, names = regions()
    predicted = np.zeros((21, 21), np.int64)
    predicted[:5] = 1  # largest b
    image = decision_regions({"": ["p"]}, {"p": predicted.ravel()}, plane, names, 0).axes[0].images[0]
    assert image.origin == "upper" and image.get_extent()[2] < image.get_extent()[3]
    rgb = np.asarray(image.get_array())
    assert tuple(np.rint(rgb[0, 0] * 255).astype(int)) == tuple(bytes.fromhex(CLASS_COLOURS[1][1:]))
    assert tuple(np.rint(rgb[20, 0] * 255).astype(int)) == tuple(bytes.fromhex(CLASS_COLOURS[0][1:]))


def records(epochs: int = 30) -> list[dict]:
    o = [{"phase": "o", "epoch": e, "loss": 1 / (e + 1), "train": 1 - 0.6 / (e + 1), "holdout": 0.9 - 0.4 / (e + 1)} for e in range(epochs)]
    q = [{"phase": p, "epoch": e, "loss": 0.2, "train": 0.9, "holdout": 0.89} for p in ("q-5", "q") for e in range(3)]
    s = [{"phase": p, "epoch": 0, "loss": 0.3, "train": 0.8, "holdout": 0.9, "holdout_s": 0.85} for p in ("s-1", "s-2", "s")]
    return o + q + s


def test_curves_have_a_column_per_member_and_a_line_per_phase() -> None:
    lines = records()
    assert [len(v) for v in by_member([*lines[30:], *lines[:30]]).values()] == [30, 6, 3]
    figure = training_curves(lines)
    assert_legible(figure)
    assert {"O, original", "Q, quantized", "S, pruned", "q-5", "s-1", "hold-out, Q and S together"} <= words(figure)
    of_s = {line.get_color() for line in figure.axes[2].lines if len(line.get_xdata()) == 3}
    assert of_s == {MEMBERS["s"].colour, MEMBERS["ensemble"].colour}


def test_curves_of_little() -> None:
    for lines in (records()[:1], [{"phase": "o", "epoch": 0, "loss": 1.0, "train": 0.5}], records(3)[:7]):
        assert_legible(training_curves(lines))


def row(name: str, accuracy: list[float], cost: float, kind: str = "ensemble", **keys: object) -> dict:
    members = {"ensemble": ["q", "s"], "homogeneous": ["q", "q"]}.get(kind, [kind])
    return {"row": name, "kind": kind if kind in ("ensemble", "homogeneous") else "member", "members": members,
            "accuracy": accuracy, "flops_ratio": cost, **keys}


def sweep_rows() -> list[dict]:
    rows = [row("o", [0.92, 0.922], 1.0, "o")]
    for reading in ("V1", "V5"):
        for ce in (0.2, 0.4, 0.8):
            bonus = 0.003 if reading == "V5" else 0
            rows.append(row(f"{reading}-{ce}", [0.92 - (ce - 0.4) ** 2 / 10 + bonus, 0.92], 0.568, reading=reading, w_ce=ce, w_diff=1 - ce))
    return rows


def test_a_sweep_joins_what_differs_in_the_weight_alone() -> None:
    rows = sweep_rows()
    assert {k: [x for x, _ in v] for k, v in swept(rows).items()} == {"V1": [0.2, 0.4, 0.8], "V5": [0.2, 0.4, 0.8]}
    assert swept(rows)["V1"][1][1] == [92.0, 92.0]
    other = row("V5-long", [0.95], 0.568, reading="V5", w_ce=1.0, w_diff=1.0, epochs={"s": 500})
    alone = row("V2", [0.95], 0.568, reading="V2", w_ce=1.0, w_diff=1.0)
    assert swept([*rows, other, alone]) == swept(rows)
    scaled = [{**r, "w_ce": 3 * r["w_ce"], "w_diff": 3 * r["w_diff"]} for r in rows if "w_ce" in r]
    assert [round(x, 9) for x, _ in swept(scaled)["V1"]] == [0.2, 0.4, 0.8]
    figure = lambda_sweep(rows)
    assert_legible(figure)
    legend = [t.get_text() for t in figure.legends[0].get_texts()]
    assert legend == ["V5", "V1", "O"]  # the best first
    assert swept([]) == {}


def test_all_lines_of_a_sweep_are_of_one_family() -> None:
    rows = sweep_rows()
    sparse = [{**r, "granularity": "weight", "reading": "V3"} for r in rows if r.get("reading") == "V5"]
    sparse += [{**r, "granularity": "weight", "accuracy": [0.94]} for r in rows if r.get("reading") == "V1"][:2]
    assert set(swept(rows)) == set(swept([*sparse, *rows])) == {"V1", "V5"}  # six points against five
    assert swept([*sparse, *rows]) == swept(rows)
    assert {r.get("granularity") for r in sweep_family([*rows, *sparse])} == {None}
    more = {**sparse[0], "w_ce": 0.6, "w_diff": 0.4}, {**sparse[0], "w_ce": 1.0, "w_diff": 0.0}
    assert set(swept([*rows, *sparse, *more])) == {"V1", "V3"}
    assert {r["granularity"] for r in sweep_family([*rows, *sparse, *more])} == {"weight"}


def test_costs_within_half_a_point_are_one_family() -> None:
    costs = {0.2: 0.5674, 0.4: 0.5676, 0.6: 0.5630}  # on both sides of what half a point rounds to
    near = [row(f"V5-{ce}", [0.92], cost, reading="V5", w_ce=ce, w_diff=1 - ce) for ce, cost in costs.items()]
    far = row("V5-0.8", [0.95], 0.60, reading="V5", w_ce=0.8, w_diff=0.2)
    assert [x for x, _ in swept(near)["V5"]] == [x for x, _ in swept([*near, far])["V5"]] == [0.2, 0.4, 0.6]


@pytest.mark.parametrize("arch", ["resnet20", "resnet56", "another"])
def test_accuracy_against_cost_names_the_best_of_each_cost(arch: str) -> None:
    rows = [*sweep_rows(), row("q4", [0.921], 0.176, "q"), row("2q", [0.925, 0.927], 0.352, "homogeneous"),
            row("s", [0.915], 0.566, "s"), row("poor", [0.6], 0.176, "q"), {"row": "absent", "kind": "ensemble", "status": "not run"}]
    figure = accuracy_against_cost(rows, arch)
    shown = words(figure)
    assert {"V5-0.4 (best of 6)", "q4", "2q", "s", "o"} <= shown and not {"poor", "absent", "V1-0.2"} & shown
    assert any(text.startswith("not shown") and text.endswith(": 1") for text in shown)
    assert ("HCE, as published" in shown) == (arch != "another")
    assert_legible(figure)


def test_rows_whose_cost_is_in_single_weights_are_hollow_and_stand_alone() -> None:
    filters = row("by filter", [0.92], 0.568, granularity="filter")
    weights = row("by weight", [0.93], 0.568, granularity="weight")
    figure = accuracy_against_cost([filters, weights], "another")
    assert {"by filter", "by weight", "hollow: non-zero weights counted"} <= words(figure)
    faces = {round(float(line.get_ydata()[0]), 1): str(line.get_markerfacecolor()) for line in figure.axes[0].lines
             if line.get_markersize() == 7.5}
    assert faces == {92.0: MEMBERS["ensemble"].colour, 93.0: "white"}
    assert_legible(figure)
    assert not any("hollow" in text for text in words(accuracy_against_cost([filters], "another")))


# Accuracy and cost as the sources state them: READMEs, tables and, of HCE, the abstract.
PUBLISHED = {
    "resnet20": {
        ("APoT W2A2", 90.96, 8.7), ("APoT W3A3", 92.49, 13.0), ("APoT W4A4", 92.45, 17.4),
        ("FPGM-mix 40 %", 91.99, 46.0), ("FPGM-only 40 %", 90.44, 46.0), ("FPGM-only 30 %", 91.09, 57.8),
        ("SFP", 90.83, 57.8), ("HCE, as published", 92.35, 56.8),
    },
    "resnet56": {
        ("APoT W2A2", 93.05, 8.7), ("APoT W3A3", 93.77, 13.0), ("APoT W4A4", 93.93, 17.4),
        ("DepGraph", 93.64, 38.9), ("DepGraph", 93.77, 46.9), ("ResRep", 93.71, 47.2), ("Polar", 93.83, 53.2),
        ("GReg-2", 93.36, 39.2), ("HRank", 93.17, 50.0), ("FPGM-only 40 %", 93.49, 47.4), ("HCE, as published", 93.56, 47.8),
    },
}


@pytest.mark.parametrize("arch", PUBLISHED)
def test_anchors_are_what_was_published(arch: str) -> None:
    found = anchors(arch)
    assert {(a.name, a.accuracy, a.cost) for a in found} == PUBLISHED[arch] and len(found) == len(PUBLISHED[arch])
    families = {"APoT": ("low-bit", "APoT"), "FPGM": ("pruned", "1811.00250"), "SFP": ("pruned", "1811.00250"),
                "HCE": ("ensemble", "2301.07794"), "HRank": ("pruned", "HRank")}
    for anchor in found:
        method = re.split("[-, ]", anchor.name)[0]
        kind, source = families.get(method, ("pruned", "Torch-Pruning"))
        assert anchor.kind == kind and source in anchor.source
        if kind == "low-bit":
            assert anchor.cost == pytest.approx(100 * int(anchor.name[-1]) / 23, abs=0.05)


def test_other_networks_have_no_anchors() -> None:
    assert not anchors("resnet50")


def test_reliability_bins_are_those_of_the_calibration_error() -> None:
    rng = np.random.default_rng(0)
    labels, z = rng.integers(0, 4, 5000), rng.normal(size=(5000, 4)) * 2
    confidence, accuracy, share = reliability(z, labels)
    assert share.sum() == pytest.approx(1, abs=0.01)
    gap = float((np.abs(confidence - accuracy) * share).sum())
    assert gap == pytest.approx(expected_calibration_error(softmax(z), labels), abs=0.005)
    few = reliability(np.array([[5.0, 0.0]] * 12 + [[0.1, 0.0]] * 3), np.zeros(15, np.int64))
    assert len(few[0]) == 1 and few[1][0] == 1.0  # three images are no bin


def test_reliability_diagrams_show_the_error_before_and_after() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 500)
    z = {name: rng.normal(size=(500, 4)) + 3 * np.eye(4)[labels] for name in ("o", "q", "s", "ensemble")}
    figure = reliability_diagrams(z, labels, {"o": 1.5, "q": 2.0})
    assert_legible(figure)
    notes = [text for text in words(figure) if text.startswith("ECE")]
    assert sum("→" in note for note in notes) == 2 and len(notes) == 4
    assert_legible(reliability_diagrams({"o": z["o"]}, labels, {}))


def test_equal_data_gives_equal_bytes() -> None:
    predictions, plane, names = regions()
    assert_repeatable(lambda: decision_regions({"": ["halves"]}, predictions, plane, names, 0), "png")
    assert_repeatable(lambda: accuracy_against_cost(sweep_rows()[:3], "resnet20"), "svg")


def test_every_colour_is_used_for_one_thing() -> None:
    members = [style.colour for style in MEMBERS.values()]
    assert len(set(members)) == 4 and len(set(CLASS_COLOURS)) == 9
    assert len({style.marker for style in MEMBERS.values()}) == 4


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith(("matplotlib", "hce_engine.training.pictures"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UnsupportedError, match=r"hce-engine\[report\]"):
        import hce_engine.training.pictures.style  # noqa: F401


def test_a_png_has_the_stated_resolution() -> None:
    data = encode(error_overlap("q", "s", pair(1, 2, 3), 4), "png", dpi=50)
    width = int.from_bytes(data[16:20], "big")
    assert width == 390  # 7.8 inches
