"""Whole architectures on the CPU back end equal PyTorch, on photographs and on random images."""

from __future__ import annotations

import numpy as np
import pytest

from hce_engine import _native
from hce_engine.backends.cpu import CpuBackend
from hce_engine.capture import capture
from hce_engine.graph.passes import lower
from hce_engine.preprocess import InputSpec
from tests.capture.test_architectures import macs, random_pixels, small_network, torch_logits

datasets = pytest.importorskip("sklearn.datasets")
PORTABLE_LIMIT = 150_000_000  # multiply-accumulates per image that portable C++ computes in about a second per tile


def photographs(spec: InputSpec, count: int) -> np.ndarray:
    """Crops of the two photographs that scikit-learn ships, (N, C, H, W) uint8."""
    _, h, w = spec.shape
    pictures = datasets.load_sample_images().images
    crops = []
    for i in range(count):
        picture = pictures[i % len(pictures)]
        top, left = 37 * i % (picture.shape[0] - h), 91 * i % (picture.shape[1] - w)
        crops.append(picture[top : top + h, left : left + w].transpose(2, 0, 1))
    return np.stack(crops)


@pytest.mark.parametrize("name", ["resnet20", "resnet56", "resnet20-b", "resnet56-b", "vgg16-bn", "wrn16-8", "resnet18",
                                  "resnet50", "mobilenetv2"])
def test_equals_pytorch(name: str) -> None:
    module, spec = small_network(name, seed=11)
    graph = lower(capture(module, spec))
    images = np.concatenate([photographs(spec, 14), random_pixels(spec, 3)])
    want = torch_logits(module, spec, images)
    assert np.abs(want).max() > 0.05  # a network that says nothing would agree with anything
    assert want[:14].std(axis=0).max() > 1e-3  # and one that says the same of every photograph, too
    # Random weights answer photographs with logits up to 80, and a binary32 sum is as good as its largest term.
    tolerance = 1e-4 * max(1.0, np.abs(want).max() / 10)
    pixels = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    for isa in _native.supported_isas():
        if isa == "portable" and macs(graph) > PORTABLE_LIMIT:
            continue
        got = CpuBackend(graph, isa=isa, threads=2, poison=True).run(pixels)["o"]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=tolerance, err_msg=isa)
