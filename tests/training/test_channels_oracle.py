"""Groups and removal against Torch-Pruning's dependency graph, an independent implementation that traces gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hce_engine.errors import InputError
from hce_engine.graph import Graph
from hce_engine.training.channels import ChannelGroup, Identities, channel_groups
from hce_engine.training.graph_module import GraphModule
from hce_engine.training.prune import prune

from .captured_networks import captured, network, random_halves

tp = pytest.importorskip("torch_pruning")

NETWORKS = [("resnet20-b", 32), ("vgg16-bn", 32), ("resnet18", 64), ("mobilenetv2", 64), ("wrn16-8", 32)]
Touched = set[tuple[str, str, int]]  # (layer, "out" or "in", index along weight axis 0 or 1)


def dependencies(module: nn.Module, size: int) -> object:
    return tp.DependencyGraph().build_dependency(module, torch.zeros(1, 3, size, size))


def their_group(graph: object, module: nn.Module, layer: str, channels: list[int]) -> object:
    root = module.get_submodule(layer)
    return graph.get_pruning_group(root, graph.get_pruner_of_module(root).prune_out_channels, idxs=channels)


def theirs(graph: object, module: nn.Module, layer: str, channel: int) -> Touched:
    """What Torch-Pruning would remove together with an output channel of a layer."""
    names = {m: name for name, m in module.named_modules()}
    side = {"prune_out_channels": "out", "prune_in_channels": "in"}
    return {
        (names[dep.target.module], side[dep.handler.__name__], int(i))
        for dep, indices in their_group(graph, module, layer, [channel]) if dep.target.module in names for i in indices
    }


def ours(graph: Graph, group: ChannelGroup, channel: int) -> Touched:
    """What we remove together with a channel of a group."""
    identities = Identities(graph)
    root = identities.roots(group.producers[0])[group.slots[group.producers[0]] == channel][0]
    made = {(n, "out", int(i)) for n in (*group.producers, *group.norms) for i in np.flatnonzero(identities.roots(n) == root)}
    read = {(n, "in", int(i)) for n in group.consumers for i in np.flatnonzero(identities.roots(graph[n].inputs[0]) == root)}
    return made | read


@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_groups_are_those_of_torch_pruning(name: str, size: int) -> None:
    module, graph = network(name), captured(name, size)
    dependency = dependencies(module, size)
    groups = channel_groups(graph)
    for group in groups:
        for channel in (0, group.channels - 1):
            assert ours(graph, group, channel) == theirs(dependency, module, group.name, channel), group.name
    convolutions = {n for n, m in module.named_modules() if isinstance(m, nn.Conv2d)}
    assert convolutions <= {p for g in groups for p in g.producers}


@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_half_of_all_channels_removed_by_both(name: str, size: int) -> None:
    module, graph = network(name), captured(name, size)
    dependency = dependencies(module, size)
    kept, gone = random_halves(graph)
    for group_name, indices in gone.items():
        their_group(dependency, module, group_name, indices.tolist()).prune()
    pruned = prune(graph, kept)
    weights = sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert weights == sum(n.params["weight"].size for n in pruned.nodes if n.op in ("conv2d", "linear"))
    normalize = graph.nodes[1]
    x = torch.rand(2, 3, size, size) * 255
    scale, offset = (torch.from_numpy(normalize.params[k]).reshape(1, 3, 1, 1) for k in ("scale", "offset"))
    with torch.no_grad():
        want, got = module(x * scale + offset), GraphModule(pruned).eval()(x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


def test_option_a_is_pruned_inside_blocks_alone() -> None:
    """Where zero maps are added, Torch-Pruning removes channels of the stream and breaks the network; we refuse."""
    module, graph = network("resnet20"), captured("resnet20")
    dependency = dependencies(module, 32)
    for group in channel_groups(graph):
        assert group.internal
        assert ours(graph, group, 3) == theirs(dependency, module, group.name, 3)
    for layer in ("conv1", "layer1.2.conv2", "layer2.0.conv2", "layer3.2.conv2"):
        with pytest.raises(InputError, match="zero maps"):
            prune(graph, {layer: [0, 1]})
