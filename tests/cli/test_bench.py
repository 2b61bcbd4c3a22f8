"""``hce bench --dry-run``: the plan for the GPU, its memory, launches, bytes and bounds, without a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hce_engine import artifact
from hce_engine.artifact import Artifact
from hce_engine.graph import merge
from hce_engine.preprocess import InputSpec
from tests.backends.graphs import GraphBuilder

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a quantized member q and a float member s."""
    q, s = GraphBuilder(SHAPE, seed=1), GraphBuilder(SHAPE, seed=2)
    graphs = {"q": q.finish(q.qconv(q.qconv("image", 16, weight_dtype="s8", out="u4"), 2, stride=(4, 4))),
              "s": s.finish(s.conv(s.normalize(), 2, stride=(4, 4)))}
    path = tmp_path_factory.mktemp("mixed") / "model.hce"
    artifact.save(path, Artifact(merge(graphs), InputSpec("uint8_nhwc", SHAPE, (0.5,) * 3, (0.25,) * 3)))
    return path


def test_a_plan_is_shown_and_written(run_hce: Callable, mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    result = run_hce("bench", mixed, "--device", "cuda", "--dry-run", "--members", "q", "--batch", 64, "--gpu", "a100", "--json", out)
    assert result.code == 0, result.err
    assert "conv2d_u8xs8_u4" in result.out
    assert "bound, not a measurement" in result.out
    assert "images/s on NVIDIA A100" in result.out
    facts = json.loads(out.read_text())
    steps, totals = facts["steps"], facts["totals"]
    assert (facts["command"], facts["dry_run"], facts["batch"], facts["members"]) == ("bench", True, 64, ["q"])
    assert [s["kernel"] for s in steps][:2] == ["load_pixels", "conv2d_u8xs8_u4"]
    assert steps[1]["macs"] == 64 * 64 * 16 * 27 < steps[1]["walked_macs"]
    assert steps[1]["writes"]["y"].startswith("c4[8x8x16/16]")
    for total, part in (("launches", "launches"), ("macs", "macs"), ("walked_macs", "walked_macs"), ("weight_bytes", "weight_bytes"),
                        ("bound_seconds", "bound_seconds")):
        assert totals[total] == pytest.approx(sum(s[part] for s in steps))
    assert totals["bytes"] == sum(s["read_bytes"] + s["written_bytes"] for s in steps)
    assert totals["bound_images_per_second"] == pytest.approx(64 / totals["bound_seconds"])
    assert facts["gpu"]["name"] == "NVIDIA A100-SXM4-80GB"
    assert json.loads(run_hce("bench", mixed, "--dry-run", "--members", "q", "--json", "-").out)["batch"] == 256


def test_an_ensemble_is_shown_part_by_part(run_hce: Callable, mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    result = run_hce("bench", mixed, "--device", "cuda", "--dry-run", "--batch", 64, "--json", out)
    assert result.code == 0, result.err
    for words in ("conv2d_u8xs8_u4", "float32 in NHWC", "conv2d_nhwc_f32", "sequential", "perfect overlap"):
        assert words in result.out
    facts = json.loads(out.read_text())
    assert [(p["kind"], p["members"]) for p in facts["parts"]] == [("codes", ["q"]), ("nhwc", ["s"])]
    lanes, totals = facts["parts"][1], facts["totals"]
    assert [s["kernel"] for s in lanes["steps"]] == ["load_images_nhwc", "conv2d_nhwc_f32", "flatten_nhwc_f32", "store_logits_nhwc"]
    assert lanes["steps"][1]["macs"] == 64 * 4 * 2 * 27
    assert lanes["gpu"]["ffma_operations_per_second"] == 67e12
    assert totals["launches"] == sum(p["totals"]["launches"] for p in facts["parts"]) + 1
    rows = facts["arithmetics"]
    assert [r["arithmetic"] for r in rows] == ["ieee", "tf32x3", "fp16x3", "bf16x3"]
    assert all(r["arithmetic"] in result.out and list(r["alone"]) == ["s"] for r in rows)
    assert rows[0]["alone"]["s"] == facts["alone"]["s"]
    assert {**rows[0]["totals"], "largest_bucket": totals["largest_bucket"]} == totals
    chosen = json.loads(run_hce("bench", mixed, "--dry-run", "--batch", 64, "--arithmetic", "tf32x3", "--json", "-").out)
    assert (chosen["arithmetics"], chosen["alone"]["s"]) == (rows, rows[1]["alone"]["s"])
    assert totals["sequential_bound_seconds"] > totals["perfect_overlap_bound_seconds"]
    assert totals["sequential_bound_images_per_second"] == pytest.approx(64 / totals["sequential_bound_seconds"])
    alone = json.loads(run_hce("bench", mixed, "--dry-run", "--members", "s", "--batch", 64, "--json", "-").out)
    assert alone["parts"] == [lanes]


def test_winograd_layers_are_shown_with_what_they_compute(run_hce: Callable, tmp_path: Path) -> None:
    b = GraphBuilder(SHAPE, seed=1)
    graph = merge({"s": b.finish(b.conv(b.conv(b.normalize(), 16), 16))})
    artifact.save(tmp_path / "s.hce", Artifact(graph, InputSpec("uint8_nhwc", SHAPE, (0.5,) * 3, (0.25,) * 3)))
    result = run_hce("bench", tmp_path / "s.hce", "--dry-run", "--batch", 4096, "--json", tmp_path / "plan.json")
    assert result.code == 0, result.err
    for words in ("winograd_f32", "F(4x4, 3x3)", "0.25x", "those of direct convolution"):
        assert words in result.out
    (lanes,) = json.loads((tmp_path / "plan.json").read_text())["parts"]
    step = lanes["steps"][2]
    assert (step["kernel"], step["reason"], step["config"]["output"]) == ("winograd_f32", "Winograd", 4)
    assert step["walked_macs"] * 4 == step["macs"] == 4096 * 64 * 16 * 16 * 9
    totals = lanes["totals"]
    assert totals["ffma_bound_seconds"] == 2 * totals["walked_macs"] / 67e12 < totals["direct_ffma_bound_seconds"]
    assert step["bound_seconds"] == max(2 * step["walked_macs"] / 67e12, (step["read_bytes"] + step["written_bytes"]) / 4.8e12)


def test_members_of_both_kinds_are_refused_with_a_way_out(run_hce: Callable, tmp_path: Path) -> None:
    q, x = GraphBuilder(SHAPE, seed=1), GraphBuilder(SHAPE, seed=2)
    codes = q.finish(q.qconv("image", 2, stride=(4, 4)))
    both = x.finish(x.add("clamp", [x.probe(x.qconv("image", 2, stride=(4, 4)))], {"min": None, "max": 0.5}))
    path = tmp_path / "model.hce"
    artifact.save(path, Artifact(merge({"q": codes, "x": both}), InputSpec("uint8_nhwc", SHAPE, (0.5,) * 3, (0.25,) * 3)))
    result = run_hce("bench", path, "--device", "cuda", "--dry-run")
    assert result.code == 3
    assert "member 'x'" in result.err and "--members q" in result.err


def test_an_architecture_by_name(run_hce: Callable, own_module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(own_module))
    small = "small_net_for_tests:factory"
    result = run_hce("bench", small, "--dry-run", "--bits", 3, "--batch", 1)
    assert result.code == 0, result.err
    assert "head_u8xs8_f32" in result.out
    assert run_hce("bench", small, "--dry-run", "--bits", 9).code == 2
    assert run_hce("bench", small, "--dry-run", "--members", "q").code == 2
    assert run_hce("bench", "resnet", "--dry-run").code == 2


def test_resnet20_has_its_published_cost(run_hce: Callable) -> None:
    facts = json.loads(run_hce("bench", "resnet20", "--dry-run", "--bits", 4, "--json", "-").out)
    assert facts["totals"]["macs"] == 256 * 40_551_040
    assert facts["totals"]["launches"] == 23
    assert facts["totals"]["walked_macs"] < 2 * facts["totals"]["macs"]


def test_a_float_network_by_name_shows_its_layout(run_hce: Callable, tmp_path: Path) -> None:
    result = run_hce("bench", "resnet20", "--device", "cuda", "--dry-run", "--bits", 32, "--batch", 1)
    assert result.code == 0, result.err
    for words in ("float32 in NHWC, batch 1, bounds of NVIDIA H200", "conv2d_nhwc_f32", "layout NHWC (modelled", "us, lanes ", "per image"):
        assert words in result.out
    result = run_hce("bench", "resnet20", "--dry-run", "--bits", 32, "--json", tmp_path / "plan.json")
    for words in ("float32 in image lanes, batch 256 in 8 tiles", "layout image lanes (modelled", "us, nhwc ", "per tile of 32 images"):
        assert words in result.out
    (part,) = json.loads((tmp_path / "plan.json").read_text())["parts"]
    assert (part["kind"], part["batch"], part["members"]) == ("lanes", 256, ["o"])
    assert part["why"].startswith("modelled ")
    assert part["totals"]["macs"] == 256 * 40_551_040


def test_what_it_cannot_do_yet(run_hce: Callable, mixed: Path) -> None:
    for arguments, reason in ((("--device", "cuda"), "--dry-run"), (("--dry-run", "--device", "cpu"), "GPU")):
        result = run_hce("bench", mixed, *arguments)
        assert result.code == 3
        assert reason in result.err


def test_eval_and_run_take_some_members(run_hce: Callable, mixed: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(9) % 8)
    np.save(tmp_path / "images.npy", images)
    written = tmp_path / "eval.json"
    result = run_hce("eval", mixed, "--data", tmp_path / "data.npz", "--members", "q", "--json", written)
    assert result.code == 0, result.err
    assert set(json.loads(written.read_text())["members"]) == {"q", "ensemble"}
    assert run_hce("run", mixed, tmp_path / "images.npy", "-o", tmp_path / "p.csv", "--members", "q,s").code == 0
    assert "q, s" in run_hce("run", mixed, tmp_path / "images.npy", "-o", tmp_path / "p.csv", "--members", "x").err
    assert run_hce("eval", mixed, "--data", tmp_path / "data.npz", "--device", "cuda").code == 3
