"""``hce build`` and ``hce_engine.build``: what is written, what is refused, and that nothing is left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import hce_engine as hce
from hce_engine import artifact, builder
from hce_engine.cli import build_command
from hce_engine.errors import GraphError, InputError, VerificationError
from hce_engine.images import load_labelled
from hce_engine.preprocess import FLOAT32_NCHW, RESIZES, UINT8_NHWC, InputSpec

ARCH = "small_net_for_tests:factory"


def test_a_checkpoint_becomes_one_voting_member(run_hce: Callable, checkpoint: Path, tmp_path: Path) -> None:
    out, facts = tmp_path / "o.hce", tmp_path / "facts.json"
    result = run_hce("build", checkpoint, "--arch", ARCH, "--size", 8, "-o", out, "--json", facts)
    assert result.code == 0, result.err
    loaded = artifact.load(out)
    assert [(m.name, m.role) for m in loaded.graph.members] == [("o", "vote")]
    assert loaded.input.shape == (3, 8, 8)
    verification = json.loads(facts.read_text())["verification"]
    assert verification["images"] >= 256
    assert verification["members"]["o"]["same_prediction"] == 1.0


def test_mean_and_std_reach_the_artifact(run_hce: Callable, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.hce"
    result = run_hce("build", checkpoint, "--arch", ARCH, "-o", out, "--mean", "0.1,0.2,0.3", "--std", "0.5,0.6,0.7")
    assert result.code == 0, result.err
    loaded = artifact.load(out)
    assert loaded.input.mean == (0.1, 0.2, 0.3)
    assert loaded.input.std == (0.5, 0.6, 0.7)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "--arch"),
        (("--arch", "resnet21"), "resnet20"),
        (("--arch", "no_such_module_anywhere:factory"), "imported"),
        (("--arch", "resnet20"), "missing"),
        (("--arch", ARCH, "--classes", "7"), "shape"),
        (("--arch", ARCH, "--mean", "a,b"), "--mean"),
        (("--arch", ARCH, "--mean", "0.5"), "3 values"),
        (("--arch", ARCH, "--std", "0,0,0"), "std"),
    ],
)
def test_what_a_user_can_get_wrong(
    run_hce: Callable, checkpoint: Path, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    out = tmp_path / "out" / "o.hce"
    out.parent.mkdir()
    result = run_hce("build", checkpoint, *options, "-o", out)
    assert result.code == 2
    assert says in result.err
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err
    assert list(out.parent.iterdir()) == []


def test_a_missing_folder_is_one_sentence(run_hce: Callable, checkpoint: Path, tmp_path: Path) -> None:
    result = run_hce("build", checkpoint, "--arch", ARCH, "-o", tmp_path / "nowhere" / "o.hce")
    assert result.code == 1
    assert "nowhere" in result.err
    assert "Traceback" not in result.err


def test_every_resize_rule_can_be_chosen(run_hce: Callable) -> None:
    choice = next(option for option in build_command.command.params if option.name == "resize").type
    assert tuple(choice.choices) == RESIZES


def test_image_folders_verify_and_evaluate(run_hce: Callable, checkpoint: Path, tmp_path: Path) -> None:
    """ImageNet's layout: train/ is for training, val/ for everything else, each image cut by the model's rule."""
    rng = np.random.default_rng(0)
    for place, label in ((p, c) for p in ("train", "val") for c in "abcd"):
        (tmp_path / "images" / place / label).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / place / label / f"{i}.jpeg")
    (tmp_path / "images" / "train" / "a" / "0.jpeg").write_bytes(b"not looked at")
    out, facts = tmp_path / "o.hce", tmp_path / "facts.json"
    result = run_hce("build", checkpoint, "--arch", ARCH, "--size", 8, "--resize", "imagenet-center-crop", "-o", out,
                     "--data", tmp_path / "images")
    assert result.code == 0, result.err
    loaded = artifact.load(out)
    assert (loaded.classes, loaded.input.resize) == (("a", "b", "c", "d"), "imagenet-center-crop")
    result = run_hce("eval", out, "--data", tmp_path / "images", "--batch", 5, "--json", facts)
    assert result.code == 0, result.err
    held_out = load_labelled(tmp_path / "images", "test", spec=loaded.input)
    logits = hce.Engine(loaded, device="reference")(held_out.images)
    found = json.loads(facts.read_text())
    assert (found["total"], found["correct"]["o"]) == (12, int((logits.argmax(1) == held_out.labels).sum()))


def test_a_difference_from_the_source_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builder._module_logits
    monkeypatch.setattr(builder, "_module_logits", lambda *a: real(*a) + np.float32(0.1))
    path = tmp_path / "model.hce"
    path.write_bytes(b"what was here before")
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(VerificationError, match="member 'o'"):
        hce.build({"o": network}, InputSpec(UINT8_NHWC, (3, 2, 2), (0.0,) * 3, (1.0,) * 3), path=path)
    assert path.read_bytes() == b"what was here before"
    assert [p.name for p in tmp_path.iterdir()] == ["model.hce"]


def test_an_example_batch_gives_the_input_and_the_mode_is_kept() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).train()
    built = hce.build({"o": network}, torch.zeros(2, 3, 2, 2), mean=0.5, std=0.25)
    assert built.input == InputSpec(FLOAT32_NCHW, (3, 2, 2), (0.5,) * 3, (0.25,) * 3)
    assert network.training
    with pytest.raises(InputError, match="example"):
        hce.build({"o": network}, np.zeros((2, 3, 2, 2)))


def test_members_and_references_must_exist() -> None:
    spec = InputSpec(UINT8_NHWC, (3, 2, 2), (0.0,) * 3, (1.0,) * 3)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(InputError, match="at least one member"):
        hce.build({}, spec)
    with pytest.raises(InputError, match="reference"):
        hce.build({"s": network}, spec, reference="o")
    with pytest.raises(GraphError):
        hce.build({"o": network}, spec, reference="o")


@pytest.mark.parametrize(("members", "keys", "reason"), [
    (nn.Flatten(), {}, "got Sequential"), ({"o": 3}, {}, "'o': int"), ({1: nn.Flatten()}, {}, "1: Flatten"),
    ({"o": nn.Flatten()}, {"path": ""}, "name a file"), ({"o": nn.Flatten()}, {"mean": "x"}, "one per channel"),
])
def test_arguments_of_another_kind_are_typed_errors(members: object, keys: dict, reason: str) -> None:
    if isinstance(members, nn.Module):
        members = nn.Sequential(members)
    with pytest.raises(InputError, match=reason):
        hce.build(members, np.zeros((2, 4, 4, 3), np.uint8), **keys)  # type: ignore[arg-type]


class _InAList(nn.Flatten):
    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:  # type: ignore[override]
        return [super().forward(x)]


def test_a_module_that_returns_a_list_is_refused() -> None:
    spec = InputSpec(UINT8_NHWC, (3, 1, 1), (0.0,) * 3, (1.0,) * 3)
    module = nn.Sequential(nn.Flatten(), nn.Linear(3, 3), _InAList())
    with pytest.raises(InputError, match="one tensor of logits, got list"):
        hce.build({"o": module}, spec)


@pytest.mark.parametrize("kind", [UINT8_NHWC, FLOAT32_NCHW])
def test_the_seeded_sample_fits_and_repeats(kind: str) -> None:
    spec = InputSpec(kind, (3, 5, 7), (0.0,) * 3, (1.0,) * 3)
    sample = builder.verification_images(spec, None)
    assert sample.shape == (builder.SAMPLES, *spec.array_shape)
    assert sample.dtype == spec.numpy_dtype
    assert np.array_equal(sample, builder.verification_images(spec, None))
    given = builder.verification_images(spec, sample[:100])
    assert len(given) == builder.SAMPLES
    assert np.array_equal(given[:100], sample[:100])
