"""The page: whole in one file, saying what was measured and what could not be shown, and refusing what it cannot read."""

from __future__ import annotations

import base64
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from hce_engine.errors import CheckpointError, DataError, InputError, UnsupportedError, WriteError
from hce_engine.graph import merge
from hce_engine.ledger import ledger
from hce_engine.training.checkpoint import load_graph
from hce_engine.training.evaluate import evaluate_logits
from hce_engine.training.export import members_of
from hce_engine.training.pictures.plane import pruned_variants
from hce_engine.training.report import write_report
from hce_engine.training.report.blocks import count
from hce_engine.training.report.run_pages import Regions
from hce_engine.training.run import train

from .float_graphs import pictures
from .own_network import recipe

VOID = {"meta", "img", "link", "br"}


class Page(HTMLParser):
    """Parses strictly enough to see that every element is closed, and keeps what could reach outside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "img":
            self.images.append(values)
        self.links += [str(values[key]) for key in ("href", "src") if key in values]
        self.ids += [str(values[key]) for key in ("id",) if key in values]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def read(path: Path) -> Page:
    page = Page(path.read_text(encoding="utf-8"))
    assert "script" not in page.tags and "link" not in page.tags
    for link in page.links:
        assert link.startswith(("#", "data:image/")), f"the page reaches outside: {link[:80]}"
        assert not link.startswith("#") or link[1:] in page.ids
    for image in page.images:
        assert image["alt"]
        kind, data = re.fullmatch(r"data:image/(svg\+xml|png);base64,(.+)", image["src"]).groups()  # type: ignore[union-attr]
        assert base64.b64decode(data, validate=True).startswith(b"<?xml" if kind == "svg+xml" else b"\x89PNG")
    return page


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images, labels = pictures(120).transpose(0, 2, 3, 1).copy(), np.arange(120) % 3
    for c in range(3):
        images[labels == c, :, :, c] |= 0xC0
    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    np.savez(path, x_train=images[:90], y_train=labels[:90], x_test=images[90:], y_test=labels[90:])
    return path


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "small"
    brief = {"epochs": 1}
    train(recipe(o=brief, q=brief, s={**brief, "rounds": 1}), data, out, progress=False)
    yield out
    torch.set_num_threads(threads)


def test_a_run_with_its_data_has_everything(run: Path, data: Path, tmp_path: Path) -> None:
    told: list[str] = []
    regions = Regions(data, image=4, side=11)
    facts = write_report([run], tmp_path / "new" / "r.html", regions=regions, pictures=tmp_path / "figures", tell=told.append)
    assert facts["left_out"] == []
    expected = ["error-overlap-q-s", "reliability", "training-curves", "regions-compressed", "regions-members"]
    assert facts["pictures"] == expected
    assert sorted(p.stem for p in (tmp_path / "figures").iterdir()) == sorted(expected)
    page = read(tmp_path / "new" / "r.html")
    assert len(page.images) == 5
    result = json.loads((run / "result.json").read_text())
    for name in ("o", "q", "s", "ensemble"):
        assert f"{100 * result['accuracy'][name]:.2f} %" in page.text
        assert f"{result['members'][name]['nll']:.4f}" in page.text
        assert f"{result['scaled'][name]['temperature']:.3f}" in page.text
    assert f"{result['probability_mean']['brier']:.4f}" in page.text
    compressed = next(image["alt"] for image in page.images if image["alt"].startswith("Panels, "))
    assert compressed == "Panels, " + "; ".join([
        "quantized: O, 32-bit, 5-bit, 4-bit, 3-bit",
        "pruned, not retrained: " + ", ".join(pruned_variants(load_graph(run / "o.pt"))) + ".",
    ])
    assert "test image 4" in page.text and count(result["ledger"]["members"]["o"]["bops"]) in page.text
    assert any("3-bit" in line for line in told)


def test_the_same_run_is_the_same_page(run: Path, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_report([run], tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_what_is_missing_is_said(run: Path, tmp_path: Path) -> None:
    facts = write_report([run], tmp_path / "r.html")
    assert facts["left_out"] == ["Decision regions are left out: no data was given (--data)."]
    assert facts["left_out"][0] in read(tmp_path / "r.html").text

    older = shutil.copytree(run, tmp_path / "older")
    (older / "logits.npz").unlink()
    result = json.loads((older / "result.json").read_text())
    del result["scaled"], result["probability_mean"], result["pairs"]["q-s"]["corrected"]
    (older / "result.json").write_text(json.dumps(result))
    facts = write_report([older], tmp_path / "r.html")
    assert len(facts["left_out"]) == 4 and facts["pictures"] == ["training-curves"]

    unfinished = shutil.copytree(run, tmp_path / "unfinished")
    for name in ("result.json", "logits.npz", "s.pt", "metrics.jsonl"):
        (unfinished / name).unlink()
    facts = write_report([unfinished], tmp_path / "r.html")
    assert facts["pictures"] == [] and any("not finished" in sentence for sentence in facts["left_out"])


def test_a_run_of_o_alone(run: Path, data: Path, tmp_path: Path) -> None:
    train(recipe(o={"epochs": 1}, q=None, s=None), data, tmp_path / "run", reuse=[run], progress=False)
    facts = write_report([tmp_path / "run"], tmp_path / "r.html", regions=Regions(data, side=5))
    assert "regions-compressed" in facts["pictures"] and "regions-members" not in facts["pictures"]
    assert "mean of probabilities" not in read(tmp_path / "r.html").text


def test_wrong_data_and_images_are_refused(run: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--image"):
        write_report([run], tmp_path / "r.html", regions=Regions(data, image=30, side=5))
    other = tmp_path / "other.npz"
    images = np.zeros((9, 8, 8, 3), np.uint8)
    np.savez(other, x_train=images, y_train=np.arange(9) % 3, x_test=images + 1, y_test=np.arange(9) % 3)
    with pytest.raises(DataError, match="decision regions"):
        write_report([run], tmp_path / "r.html", regions=Regions(other, side=5))
    assert not (tmp_path / "r.html").exists()


def test_regions_are_drawn_of_the_runs_own_data_alone(run: Path, data: Path, tmp_path: Path) -> None:
    arrays = dict(np.load(data))
    changes = {
        "the run's test images": {**arrays, "x_test": arrays["x_test"][::-1]},
        "the run's train images": {**arrays, "y_train": (arrays["y_train"] + 1) % 3},
        "the run's 3 classes": {**arrays, "y_train": arrays["y_train"] % 2, "y_test": arrays["y_test"] % 2},
    }
    for expected, changed in changes.items():
        np.savez(tmp_path / "other.npz", **changed)
        with pytest.raises(DataError, match=expected):
            write_report([run], tmp_path / "r.html", regions=Regions(tmp_path / "other.npz", side=5))
    renamed = shutil.copytree(run, tmp_path / "renamed")
    identity = json.loads((run / "run.json").read_text())
    identity["classes"][1] = "zebra"
    (renamed / "run.json").write_text(json.dumps(identity))
    with pytest.raises(DataError, match="class 1 to be 'zebra'"):
        write_report([renamed], tmp_path / "r.html", regions=Regions(data, side=5))
    for part in ({"unknown": 1}, 3):
        (renamed / "run.json").write_text(json.dumps({**identity, "recipe": {**identity["recipe"], "data": part}}))
        with pytest.raises(CheckpointError, match="report on"):
            write_report([renamed], tmp_path / "r.html", regions=Regions(data, side=5))
    assert not (tmp_path / "r.html").exists()


def results() -> dict:
    rows: list[dict] = [
        {"row": f"V5-{ce}", "kind": "ensemble", "members": ["q", "s"], "seeds": [0, 1], "accuracy": [0.92 + ce / 100, 0.921],
         "flops_ratio": 0.568, "reading": "V5", "w_ce": ce, "w_diff": 1 - ce, "nll": [0.3, 0.4], "ece": [0.03, None]} for ce in (0.2, 0.6)
    ]
    rows.append({"row": "<script>alert(1)</script>", "title": "Q & S", "kind": "homogeneous", "members": ["q", "q"], "seeds": [0],
                 "accuracy": [0.93], "flops_ratio": 0.352})
    rows.append({"row": "hne", "kind": "ensemble", "status": "not run", "seeds": []})
    return {"schema_version": 1, "dataset": "cifar10", "arch": "resnet20", "rows": rows}


def test_results_become_a_table_and_pictures_beside_a_run(run: Path, tmp_path: Path) -> None:
    source = tmp_path / "results.json"
    source.write_text(json.dumps(results()))
    facts = write_report([run, source], tmp_path / "r.html")
    assert facts["pictures"][-2:] == ["2-accuracy-cost", "2-lambda-sweep"] and "1-reliability" in facts["pictures"]
    assert "Not run: hne." in facts["left_out"]
    page = read(tmp_path / "r.html")  # no script element: names are escaped
    assert "<script>alert(1)</script>" in page.text and "Q & S" in page.text
    assert f"{100 * (0.922 + 0.921) / 2:.2f} % ± 0.07" in page.text
    assert "0.3500" in page.text and "56.8 %" in page.text and "arXiv 2301.07794" in page.text


def test_a_cost_in_single_weights_has_a_star(tmp_path: Path) -> None:
    source = tmp_path / "results.json"
    every = results()
    every["rows"][0]["granularity"], every["rows"][1]["granularity"] = "weight", "filter"
    source.write_text(json.dumps(every))
    write_report([source], tmp_path / "r.html")
    page = read(tmp_path / "r.html")
    cost = {row[0]: row[4] for row in page.rows if row[0].startswith("V5")}
    assert cost == {"V5-0.2": "56.8 % *", "V5-0.6": "56.8 %"}
    assert "* counts only weights that are not zero" in page.text and "Hollow and coloured: " in page.text
    source.write_text(json.dumps(results()))
    write_report([source], tmp_path / "r.html")
    page = read(tmp_path / "r.html")
    assert "not zero" not in page.text and "56.8 % *" not in page.text
    assert "bits / 23, a rule reconstructed" in page.text and "8 / 23 at 8 bits" in page.text


def test_a_sweep_says_how_many_rows_it_shows(tmp_path: Path) -> None:
    source = tmp_path / "results.json"
    every = results()
    source.write_text(json.dumps(every))
    write_report([source], tmp_path / "r.html")
    text = read(tmp_path / "r.html").text
    assert "The 2 rows drawn differ in nothing else." in text and "Not drawn" not in text
    every["rows"].append({**every["rows"][0], "row": "alone", "reading": "V1"})
    every["rows"].append({**every["rows"][0], "row": "other", "granularity": "weight"})
    source.write_text(json.dumps(every))
    write_report([source], tmp_path / "r.html")
    assert "The 2 rows drawn differ in nothing else. Not drawn: 2 ensembles" in read(tmp_path / "r.html").text


def test_results_without_a_sweep_or_without_rows(tmp_path: Path) -> None:
    source = tmp_path / "results.json"
    source.write_text(json.dumps({**results(), "rows": results()["rows"][2:]}))
    assert any("sweep" in sentence for sentence in write_report([source], tmp_path / "r.html")["left_out"])
    source.write_text(json.dumps({**results(), "rows": []}))
    assert write_report([source], tmp_path / "r.html")["pictures"] == []


def test_an_evaluation_is_a_page_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    logits = {name: rng.normal(size=(200, 4)) + 2 * np.eye(4)[labels] for name in ("q", "s", "net-a")}
    evaluation = evaluate_logits(logits, labels)
    source = tmp_path / "eval.json"
    source.write_text(json.dumps({"command": "eval", "model": "m.hce", "data": "photos", "split": "test", **evaluation}))
    facts = write_report([source], tmp_path / "r.html")
    assert facts["pictures"] == ["error-overlap-q-s", "error-overlap-q-net-a", "error-overlap-s-net-a"]
    page = read(tmp_path / "r.html")
    assert "m.hce on photos (test), 200 images" in page.text and "Cost of one image" not in page.text
    shown = {row[0]: row[1:] for row in page.rows if " and " in row[0]}
    for pair, name in (("q-s", "Q and S"), ("q-net-a", "Q and net-a"), ("s-net-a", "S and net-a")):
        p = evaluation["pairs"][pair]
        assert shown[name] == [
            f"{100 * p['disagreement']:.2f} %", f"{100 * p['double_fault']:.2f} %", f"{p['q_statistic']:.3f}",
            f"{p['errors']['both']} of {p['errors']['either']}", f"{100 * p['error_overlap']:.2f} %",
        ]
    assert "401 of 1,434" in page.text and "28.0 %" in page.text


def test_the_cost_of_an_evaluated_model_is_shown(run: Path, tmp_path: Path) -> None:
    evaluation = json.loads((run / "result.json").read_text())
    source, members = tmp_path / "eval.json", members_of(run).members
    voters = merge({name: members[name] for name in ("q", "s")})
    for costs in (evaluation["ledger"], ledger(voters, reference_flops=1e6), ledger(voters), {}):
        source.write_text(json.dumps({**evaluation, "ledger": costs}))
        write_report([source], tmp_path / "r.html")
        page = read(tmp_path / "r.html")
        assert ("Cost of one image" in page.text) == bool(costs)
        if costs:
            assert ["ensemble", count(costs["ensemble"]["flops_paper"])] in [row[:2] for row in page.rows]
        relative = costs.get("flops_ratio") is not None
        assert ("relative to O" in page.text) == (relative and "o" in costs["members"])
        assert ("Relative to the uncompressed network" in page.text) == (relative and "o" not in costs["members"])
        if relative:
            assert f"{100 * costs['flops_ratio']:.1f} %" in page.text


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rows": [1]}', '{"rows": [{"row": "a", "accuracy": ["x"]}], "arch": "a", "dataset": "d"}',
                                     '{"command": "eval"}', '{"members": {"q": {}}, "pairs": {}, "total": 3}'])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    source = tmp_path / "source.json"
    source.write_text(content)
    with pytest.raises(DataError, match="report on"):
        write_report([source], tmp_path / "r.html")
    with pytest.raises(DataError, match="report on"):
        write_report([tmp_path / "missing"], tmp_path / "r.html")


def damage(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


@pytest.mark.parametrize("change", [damage("run.json", b"{}"), damage("result.json", b"[]"), damage("logits.npz", b"nothing"),
                                    damage("metrics.jsonl", b'{"phase": "o"}\n')])
def test_a_damaged_run_is_named(run: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    folder = shutil.copytree(run, tmp_path / "damaged")
    change(folder)
    with pytest.raises(CheckpointError):
        write_report([folder], tmp_path / "r.html")


def test_logits_without_labels_are_refused(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "damaged")
    np.savez(folder / "logits.npz", **{"test/q": np.zeros((3, 3), np.float32)})
    with pytest.raises(CheckpointError, match="labels"):
        write_report([folder], tmp_path / "r.html")


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    source = tmp_path / "results.json"
    source.write_text(json.dumps(results()))
    with pytest.raises(WriteError):
        write_report([source], source / "r.html")


def test_without_jinja_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith(("jinja2", "hce_engine.training.report"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UnsupportedError, match=r"hce-engine\[report\]"):
        import hce_engine.training.report  # noqa: F401


@pytest.mark.parametrize(("value", "shown"), [(0, "0"), (999, "999"), (1000, "1.00 k"), (41_214_976, "41.2 M"), (4.1e9, "4.10 G"), (999_999, "1000 k")])
def test_counts_have_three_digits(value: float, shown: str) -> None:
    assert count(value) == shown
