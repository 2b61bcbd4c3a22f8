"""A small model that lives outside the repository, its checkpoint, and a way to run ``hce`` in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hce_engine as hce
from hce_engine import artifact
from hce_engine.cli import main
from hce_engine.preprocess import UINT8_NHWC, InputSpec

SOURCE = '''
from torch import nn

def factory(num_classes=4):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 5, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(5, num_classes),
    )
'''


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def run_hce(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """``run_hce("info", path)`` -> exit code, stdout and stderr."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert isinstance(stopped.value.code, int)
        return Result(stopped.value.code, out, err)

    return run


@pytest.fixture(scope="session")
def own_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``small_net_for_tests.py``, a model that this project knows nothing of."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "small_net_for_tests.py").write_text(SOURCE)
    return folder


def _network(own_module: Path, seed: int) -> nn.Module:
    space: dict[str, Callable[[], nn.Module]] = {}
    exec((own_module / "small_net_for_tests.py").read_text(), space)
    torch.manual_seed(seed)
    network = space["factory"]()
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.uniform_(-1, 1)
                layer.running_var.uniform_(0.5, 2)
    return network.eval()


@pytest.fixture
def checkpoint(own_module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(own_module))
    path = tmp_path / "small.pt"
    torch.save(_network(own_module, 0).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def model(own_module: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble of two voting members and a reference on 3x8x8 pixels."""
    path = tmp_path_factory.mktemp("model") / "model.hce"
    spec = InputSpec(UINT8_NHWC, (3, 8, 8), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    members = {name: _network(own_module, seed) for seed, name in enumerate(("q", "s", "o"))}
    hce.build(members, spec, path=path, reference="o", classes=("ant", "bee", "cat", "dog"))
    return path


@pytest.fixture(scope="session")
def labelled(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """37 images, labelled by the ensemble itself except for the first five."""
    images = np.random.default_rng(5).integers(0, 256, (37, 8, 8, 3), dtype=np.uint8)
    labels = hce.Engine(artifact.load(model), device="reference")(images).argmax(axis=1)
    labels[:5] = (labels[:5] + 1) % 4
    path = tmp_path_factory.mktemp("data") / "test.npz"
    np.savez(path, images=images, labels=labels)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ninety-six 10x10 images of four classes that differ in brightness and colour."""
    rng = np.random.default_rng(0)
    labels = np.arange(96) % 4
    images = rng.integers(0, 64, (96, 10, 10, 3), dtype=np.uint8)
    for i, label in enumerate(labels):
        images[i, :, :, label % 3] += np.uint8(60 * (1 + label // 3))
    path = tmp_path / "data.npz"
    np.savez(path, x_train=images[:64], y_train=labels[:64], x_test=images[64:], y_test=labels[64:])
    return path
