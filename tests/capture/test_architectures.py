"""Every named architecture: captured and lowered, it computes what PyTorch computes, and has the published size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hce_engine.backends import reference
from hce_engine.capture import capture
from hce_engine.graph import Graph
from hce_engine.graph.passes import lower
from hce_engine.preprocess import InputSpec
from hce_engine.training.models import MODELS, resolve

# name: (parameters, multiply-accumulates per image). Sources: He et al. and akamaster (option A), torchvision's model
# table (ImageNet), chenyaofo (VGG), Zagoruyko and Komodakis (11.0 M, 36.5 M). Others follow from the architecture.
PUBLISHED = {
    "resnet20": (269_722, 40_551_040),
    "resnet32": (464_154, 68_862_592),
    "resnet44": (658_586, 97_174_144),
    "resnet56": (853_018, 125_485_696),
    "resnet110": (1_727_962, 252_887_680),
    "resnet20-b": (272_474, 40_813_184),
    "resnet56-b": (855_770, 125_747_840),
    "wrn16-8": (10_961_370, 1_548_145_664),
    "wrn28-10": (36_479_194, 5_243_328_768),
    "vgg16-bn": (15_253_578, 313_725_952),
    "resnet18": (11_689_512, 1_814_073_344),
    "resnet34": (21_797_672, 3_663_761_408),
    "resnet50": (25_557_032, 4_089_184_256),
    "mobilenetv2": (3_504_872, 300_774_272),
}


def trained_like(module: torch.nn.Module, shape: tuple[int, int, int]) -> torch.nn.Module:
    """Random scales, and running statistics of random images: activations as large as in a trained network."""
    norms = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for m in norms:
        torch.nn.init.uniform_(m.weight, 0.5, 1.0)
        torch.nn.init.normal_(m.bias, 0.0, 0.2)
        m.momentum = None
    for linear in (m for m in module.modules() if isinstance(m, torch.nn.Linear)):
        torch.nn.init.normal_(linear.weight, 0.0, linear.in_features**-0.5)
    with torch.no_grad():
        module.train()(torch.randn(4, *shape))
    return module.eval()


def small_network(name: str, seed: int) -> tuple[torch.nn.Module, InputSpec]:
    """A named architecture with values like a trained one, at 32x32, or 64x64 where its own size is slow to test."""
    torch.manual_seed(seed)
    module, arch = resolve(name)
    spec = arch.input if arch.input.shape[1] == 32 else replace(arch.input, shape=(3, 64, 64))
    return trained_like(module, spec.shape), spec


def random_pixels(spec: InputSpec, count: int, seed: int = 0) -> np.ndarray:
    """Blotches and edges rather than white noise: neighbouring pixels of real images are alike. (N, C, H, W) uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, spec.shape[0], 8, 8)).repeat(spec.shape[1] // 8, 2).repeat(spec.shape[2] // 8, 3)
    return np.clip(coarse + rng.normal(0, 12, coarse.shape), 0, 255).astype(np.uint8)


def torch_logits(module: torch.nn.Module, spec: InputSpec, pixels: np.ndarray) -> np.ndarray:
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
    with torch.no_grad():
        return module((torch.from_numpy(pixels) / 255 - mean) / std).numpy()


def macs(graph: Graph) -> int:
    return sum(n.params["weight"].size * int(np.prod(n.spec.shape[1:])) for n in graph.nodes if n.op in ("conv2d", "linear"))


@pytest.mark.parametrize("name", ["resnet20", "resnet56", "resnet20-b", "resnet56-b", "vgg16-bn", "wrn16-8", "resnet18",
                                  "resnet50", "mobilenetv2"])
def test_equals_pytorch(name: str) -> None:
    module, spec = small_network(name, seed=7)
    graph = capture(module, spec)
    pixels = random_pixels(spec, 2)
    want = torch_logits(module, spec, pixels)
    got = reference.run(graph, pixels)["o"]
    lowered = lower(graph)
    got_lowered = reference.run(lowered, pixels)["o"]
    assert np.abs(want).max() > 0.05  # a network that says nothing would agree with anything
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got_lowered, want, rtol=1e-4, atol=1e-4)
    assert not {n.op for n in lowered.nodes} & {"batch_norm", "clamp", "add"}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_parameters(name: str) -> None:
    with torch.device("meta"):
        module, _ = resolve(name)
    assert sum(p.numel() for p in module.parameters()) == PUBLISHED[name][0]


@pytest.mark.parametrize("name", ["resnet20", "resnet20-b", "wrn16-8", "vgg16-bn", "resnet50", "mobilenetv2"])
def test_published_macs(name: str) -> None:
    module, arch = resolve(name)
    assert macs(capture(module, arch.input)) == PUBLISHED[name][1]


def test_node_names_are_state_dict_names_and_sources_are_lines() -> None:
    module, arch = resolve("resnet20")
    graph = capture(module, arch.input)
    owners = {key.rpartition(".")[0] for key in module.state_dict()}
    assert owners <= {n.name for n in graph.nodes}
    assert graph["layer2.0.conv1"].source is not None
    assert graph["layer2.0.conv1"].source.startswith("models/resnet_cifar.py:")
    assert sum(n.op == "strided_slice" for n in graph.nodes) == 2


def test_every_name_resolves() -> None:
    assert set(PUBLISHED) | {"resnet32-b", "resnet44-b", "resnet110-b"} == set(MODELS)
