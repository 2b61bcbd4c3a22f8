"""Names, own models, and checkpoints: what loads, and what is refused with which reason."""

from __future__ import annotations

import os
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hce_engine.errors import CheckpointError, InputError
from hce_engine.training.models import MODELS, load_checkpoint, resolve

# Keys of public checkpoints: akamaster/pytorch_resnet_cifar10, torchvision, xternalz/WideResNet-pytorch, chenyaofo.
PUBLIC_KEYS = {
    "resnet20": ("conv1.weight", "bn1.running_mean", "layer2.0.conv1.weight", "layer3.2.bn2.bias", "linear.bias"),
    "resnet18": ("conv1.weight", "layer2.0.downsample.0.weight", "layer2.0.downsample.1.bias", "fc.weight"),
    "resnet50": ("layer1.0.conv3.weight", "layer4.2.bn3.running_var", "layer1.0.downsample.1.weight", "fc.bias"),
    "mobilenetv2": ("features.0.0.weight", "features.1.conv.0.0.weight", "features.1.conv.2.bias",
                    "features.2.conv.3.running_mean", "features.18.1.weight", "classifier.1.weight"),
    "wrn16-8": ("conv1.weight", "block1.layer.0.convShortcut.weight", "block3.layer.1.bn2.weight", "bn1.bias", "fc.bias"),
    "vgg16-bn": ("features.0.bias", "features.41.running_var", "classifier.0.weight", "classifier.6.bias"),
}


def small() -> nn.Module:
    torch.manual_seed(0)
    return resolve("resnet20")[0]


def state() -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in small().state_dict().items()}


@pytest.mark.parametrize("name", PUBLIC_KEYS)
def test_public_state_dict_names(name: str) -> None:
    with torch.device("meta"):
        keys = resolve(name)[0].state_dict().keys()
    assert set(PUBLIC_KEYS[name]) <= set(keys)


@pytest.mark.parametrize("name", ["resnet20", "wrn16-8", "vgg16-bn", "mobilenetv2"])
def test_number_of_classes(name: str) -> None:
    module, arch = resolve(name, num_classes=7)
    assert arch.classes == 7
    module.eval()
    with torch.no_grad():
        assert module(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


def test_defaults_of_the_public_checkpoints() -> None:
    assert MODELS["resnet20"].input.mean == (0.485, 0.456, 0.406)
    assert MODELS["resnet50"].input.shape == (3, 224, 224)
    assert MODELS["resnet50"].classes == 1000
    assert MODELS["resnet56-b"].input.mean == (0.4914, 0.4822, 0.4465)


def test_fresh_networks_keep_the_scale_of_activations() -> None:
    torch.manual_seed(0)
    module = resolve("resnet20")[0].train()
    logits = module(torch.randn(16, 3, 32, 32))
    assert 0.1 < float(logits.detach().std()) < 10
    logits.square().mean().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in module.parameters())


OWN = """
from torch import nn
from hce_engine.preprocess import InputSpec

class Net(nn.Sequential):
    input_spec = InputSpec("uint8_nhwc", (1, 12, 12), (0.5,), (0.25,))
    def __init__(self, num_classes=3):
        super().__init__(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, num_classes))

def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))

def broken(width):
    return None

def number():
    return 3
"""


def test_own_model_outside_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "someones_nets.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    module, arch = resolve("someones_nets:Net", num_classes=5)
    assert (arch.classes, arch.input.shape, module[3].out_features) == (5, (1, 12, 12), 5)
    assert resolve("someones_nets:Net")[1].classes == 3
    _, arch = resolve("someones_nets:plain")
    assert (arch.classes, arch.input.mean) == (10, (0.0, 0.0, 0.0))
    for name, reason in (("broken", "runs with no arguments"), ("number", "torch.nn.Module"), ("absent", "imported")):
        with pytest.raises(InputError, match=reason):
            resolve(f"someones_nets:{name}")
    sys.modules.pop("someones_nets")


@pytest.mark.parametrize("name", ["resnet21", "no.such.package:f", "nothing:", ":f"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(InputError, match=re.escape(repr(name))):
        resolve(name)


@pytest.mark.parametrize("wrap", [
    lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}, lambda s: {f"module.{k}": v for k, v in s.items()},
    lambda s: {"state_dict": {f"_orig_mod.module.{k}": v for k, v in s.items()}},
    lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    lambda s: {k: v.half().float() if v.is_floating_point() else v for k, v in s.items()},
])
def test_wrappings_that_load(tmp_path: Path, wrap: object) -> None:
    path = tmp_path / "w.th"
    torch.save(wrap(state()), path)  # type: ignore[operator]
    torch.manual_seed(1)
    module = resolve("resnet20")[0]
    load_checkpoint(module, path)
    torch.testing.assert_close(module.state_dict()["layer3.1.conv2.weight"], state()["layer3.1.conv2.weight"],
                               rtol=1e-3, atol=1e-3)


def test_safetensors_and_renamed_keys(tmp_path: Path) -> None:
    source, arch = resolve("resnet20-b")
    renamed = {k.replace("shortcut.", "downsample.").replace("linear.", "fc."): v for k, v in source.state_dict().items()}
    save_file(renamed, tmp_path / "w.safetensors")
    module, _ = resolve("resnet20-b")
    load_checkpoint(module, tmp_path / "w.safetensors", arch.renames)
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in module.state_dict().items())


def _without(s: dict, key: str) -> dict:
    return {k: v for k, v in s.items() if k != key}


class Payload:
    """Unpickled without care, it would run a command."""

    def __reduce__(self) -> tuple:
        return os.abort, ()


BAD = {
    "missing": (lambda s: _without(s, "linear.bias"), r"1 missing \(linear\.bias\)"),
    "extra": (lambda s: {**s, "fc.bias": torch.zeros(1)}, r"1 extra \(fc\.bias\)"),
    "other network": (lambda s: {"a": torch.zeros(1)}, r"missing \(.*\.\.\.\) and 1 extra"),
    "shape": (lambda s: {**s, "linear.bias": torch.zeros(100)}, r"linear\.bias: expected shape \(10,\), got \(100,\)"),
    "type": (lambda s: {**s, "linear.bias": torch.zeros(10, dtype=torch.int32)}, r"float32, got torch\.int32"),
    "nan": (lambda s: {**s, "linear.bias": torch.full((10,), float("nan"))}, "NaN or Inf"),
    "sparse": (lambda s: {**s, "linear.bias": torch.zeros(10).to_sparse()}, "a dense tensor with values, got torch.sparse_coo"),
    "no values": (lambda s: {**s, "linear.bias": torch.zeros(10, device="meta")}, "got one without values"),
    "not a tensor": (lambda s: {**s, "linear.bias": [1.0]}, "names and tensors only"),
    "a list": (lambda s: [torch.zeros(1)], "a state dict"),
    "code to run": (lambda s: {"a": Payload()}, "a file of tensors"),
    "a module": (lambda s: nn.Linear(1, 1), "a file of tensors"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_checkpoints(tmp_path: Path, case: str) -> None:
    change, reason = BAD[case]
    path = tmp_path / "w.th"
    torch.save(change(state()), path)
    module = small()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(CheckpointError, match=reason):
        load_checkpoint(module, path)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_damaged_files(tmp_path: Path) -> None:
    whole = tmp_path / "w.th"
    torch.save(state(), whole)
    content = whole.read_bytes()
    (tmp_path / "cut.th").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.th").write_bytes(b"")
    (tmp_path / "text.th").write_text("weights")
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 20)
    (tmp_path / "folder.th").mkdir()
    with zipfile.ZipFile(tmp_path / "zip.th", "w") as archive:
        archive.writestr("a", "b")
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in ("cut.th", "empty.th", "text.th", "cut.safetensors", "folder.th", "zip.th", "array.npy", "absent.th"):
        with pytest.raises(CheckpointError, match=re.escape(name)):
            load_checkpoint(small(), tmp_path / name)
