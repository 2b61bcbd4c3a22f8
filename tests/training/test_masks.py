"""Weights at zero: which ones, what they save, and that nothing brings them back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hce_engine.errors import InputError
from hce_engine.graph import Graph
from hce_engine.graph.passes import lower
from hce_engine.training.data import Augmentation, Batch, Batches, mean_codes, to_split
from hce_engine.training.graph_module import GraphModule
from hce_engine.training.loop import Phase, fit
from hce_engine.training.masks import hold_zeros, magnitudes, mask_to_ratio, scores_of, snip_scores, sparse_flops
from hce_engine.training.progress import MetricsLog, TrainingProgress
from hce_engine.training.recipe import FitSection

from .captured_networks import captured, flops
from .float_graphs import CLASSES, GRAPHS, Builder, pictures, plain, residual

NONE = torch.zeros(0)


def weights(graph: Graph) -> dict[str, np.ndarray]:
    return {n.name: n.params["weight"] for n in graph.nodes if n.op in ("conv2d", "linear")}


def pruned(graph: Graph, ratio: float) -> Graph:
    return mask_to_ratio(graph, magnitudes(graph), ratio * sparse_flops(graph))


def zeros(graph: Graph) -> dict[str, np.ndarray]:
    return {name: w == 0 for name, w in weights(graph).items()}


def data() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(pictures(24)), torch.arange(24) % CLASSES


@pytest.mark.parametrize("name", GRAPHS)
def test_sparse_flops_of_a_dense_graph_are_the_ledgers(name: str) -> None:
    graph = GRAPHS[name]()
    assert sparse_flops(graph) == flops(graph)


def test_sparse_flops_count_multiplications_that_are_left() -> None:
    """Pixel by pixel: a weight of a map of h x w pixels is used h * w times, one of a linear layer once."""
    graph = pruned(residual(), 0.4)
    left = 0
    for node in graph.nodes:
        if node.op == "conv2d":
            left += int((node.params["weight"] != 0).sum()) * node.spec.shape[1] * node.spec.shape[2]
        elif node.op == "linear":
            left += int((node.params["weight"] != 0).sum())
        elif node.op == "batch_norm":
            left += 2 * node.spec.elements
    assert sparse_flops(graph) == left


@pytest.mark.parametrize("ratio", [0.9, 0.5, 0.25])
def test_ratio_is_met_from_below_and_closely(ratio: float) -> None:
    graph = captured("resnet20")
    sparse = pruned(graph, ratio)
    assert ratio - 1024 / flops(graph) < sparse_flops(sparse) / flops(graph) <= ratio  # one weight of a 32 x 32 map
    assert flops(sparse) == flops(graph)


def test_the_smallest_weights_of_the_whole_network_go() -> None:
    graph = captured("resnet20")
    sparse = pruned(graph, 0.5)
    before = np.concatenate([np.abs(w).ravel() for w in weights(graph).values()])
    dead = np.concatenate([z.ravel() for z in zeros(sparse).values()])
    assert before[dead].max() <= before[~dead].min()
    for name, weight in weights(sparse).items():
        np.testing.assert_array_equal(weight[weight != 0], weights(graph)[name][weight != 0])
    shares = {name: z.mean() for name, z in zeros(sparse).items()}
    assert max(shares.values()) - min(shares.values()) > 0.2  # one ranking over all layers, not one each


def test_zeros_stay_zero_in_later_rounds() -> None:
    graph = captured("resnet20")
    first = pruned(graph, 0.6)
    scores = {name: np.random.default_rng(1).uniform(1, 2, w.shape) for name, w in weights(graph).items()}
    second = mask_to_ratio(first, scores, 0.4 * flops(graph))
    for name, dead in zeros(first).items():
        assert zeros(second)[name][dead].all()
    assert 0.399 < sparse_flops(second) / flops(graph) <= 0.4


def test_no_layer_is_emptied() -> None:
    graph = plain()
    loud = {name: np.abs(w) + (100 if name != "c2" else 0) for name, w in weights(graph).items()}
    sparse = mask_to_ratio(graph, loud, 0.3 * flops(graph))
    assert int((weights(sparse)["c2"] != 0).sum()) == 1
    with pytest.raises(InputError, match="one weight per layer"):
        mask_to_ratio(graph, loud, 0.001 * flops(graph))


def test_snip_is_weight_times_gradient() -> None:
    graph = residual()
    images, labels = data()
    module = GraphModule(graph).eval()
    F.cross_entropy(module(images), labels).backward()
    for name, scores in snip_scores(graph, images, labels).items():
        want = (module.of(name).weight * module.of(name).weight.grad).abs().detach().numpy()
        np.testing.assert_allclose(scores, want, rtol=1e-4, atol=1e-9)
    with pytest.raises(InputError, match="l1, snip"):
        scores_of("taylor", graph, images, labels)


def test_snip_takes_the_gradient_of_all_images_together() -> None:
    graph = residual()
    images, labels = torch.from_numpy(pictures(200)), torch.arange(200) % CLASSES
    module = GraphModule(graph).eval()
    F.cross_entropy(module(images), labels).backward()
    layer = module.of("fc")
    want = (layer.weight * layer.weight.grad).abs().detach().numpy()
    np.testing.assert_allclose(snip_scores(graph, images, labels)["fc"], want, rtol=1e-3, atol=1e-8)


def phase(out: Path, loss: object = None, **options: object) -> Phase:
    labels = torch.arange(24) % CLASSES
    split = to_split(pictures(24).transpose(0, 2, 3, 1), labels.numpy(), [str(c) for c in range(CLASSES)])
    fits = FitSection(epochs=2, lr=0.05, batch_size=8, weight_decay=1e-2, **options)
    return Phase(
        "s", fits, Batches(split, 8, Augmentation(2, True), mean_codes(Builder().input)),
        loss or (lambda z, batch: F.cross_entropy(z, batch.labels)), 3, out / "state.pt", MetricsLog(out / "metrics.jsonl"),
        TrainingProgress(False), save_seconds=0.0,
    )


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_held_weights_stay_zero_in_training(tmp_path: Path, ema: float) -> None:
    sparse = pruned(residual(), 0.5)
    held = fit(hold_zeros(GraphModule(sparse)), phase(tmp_path / "held", ema=ema)).to_graph()
    for name, dead in zeros(sparse).items():
        np.testing.assert_array_equal(zeros(held)[name], dead)
        assert (weights(held)[name][~dead] != weights(sparse)[name][~dead]).mean() > 0.9
    assert sparse_flops(held) == sparse_flops(sparse)
    free = fit(GraphModule(sparse), phase(tmp_path / "free", ema=ema)).to_graph()
    assert sparse_flops(free) > 0.9 * flops(sparse)


class Killed(Exception):
    pass


def test_a_kill_leaves_no_trace(tmp_path: Path) -> None:
    sparse = pruned(residual(), 0.5)
    calls = iter(range(4))

    def dies(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        if next(calls, None) is None:
            raise Killed
        return F.cross_entropy(logits, batch.labels)

    whole = fit(hold_zeros(GraphModule(sparse)), phase(tmp_path / "whole"))
    with pytest.raises(Killed):
        fit(hold_zeros(GraphModule(sparse)), phase(tmp_path / "cut", dies))
    resumed = fit(hold_zeros(GraphModule(sparse)), phase(tmp_path / "cut"))
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True))


def test_a_held_module_compiles_whole() -> None:
    module = hold_zeros(GraphModule(pruned(residual(), 0.5)))
    images, labels = data()
    F.cross_entropy(module(images), labels).backward()
    eager = {k: p.grad.clone() for k, p in module.named_parameters()}
    module.zero_grad()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=False)
    F.cross_entropy(compiled(images), labels).backward()
    for key, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, eager[key], rtol=1e-4, atol=1e-5)
    name = "l1.0.1.conv"
    parametrized = module.of(name).parametrizations.weight
    assert not parametrized.original.grad[~parametrized[0].mask.bool()].any()


def test_zeros_are_exported_as_zeros() -> None:
    sparse = pruned(residual(), 0.5)
    lowered = lower(hold_zeros(GraphModule(sparse)).to_graph())
    for name, weight in weights(lowered).items():
        np.testing.assert_array_equal(weight == 0, zeros(sparse)[name])


def test_a_dense_graph_is_left_alone() -> None:
    module = GraphModule(residual())
    keys = list(module.state_dict())
    assert list(hold_zeros(module).state_dict()) == keys
