"""The ledger against published totals, hand sums, and the sizes of real artifacts."""

import dataclasses
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hce_engine.capture import capture
from hce_engine.errors import GraphError
from hce_engine.graph import Graph, Member, Node, TensorSpec, merge, passes
from hce_engine.ledger import Cost, ensemble_cost, ledger, member_costs, node_cost, node_macs, stored_bytes, total_cost
from hce_engine.training.freeze import freeze
from hce_engine.training.models import resolve
from hce_engine.training.quantize import QuantModule, calibrate

from .training.float_graphs import pictures


class Net:
    """Writes a CIFAR ResNet down node by node; ``bits`` makes it quantized, first and last layer at 8 bits."""

    def __init__(self, *, folded: bool, bits: int = 0) -> None:
        self.nodes = [Node("image", "input", (), TensorSpec((3, 32, 32), "u8"))]
        self.folded, self.bits = folded, bits

    def add(self, node: Node) -> str:
        self.nodes.append(node)
        return node.name

    def conv(self, name: str, x: str, c: int, oc: int, size: int, k: int = 3) -> str:
        spec = TensorSpec((oc, size, size), "u8", 0.1) if self.bits else TensorSpec((oc, size, size))
        attrs = {"groups": 1, "folded_norm": int(self.folded)}
        params = {"weight": np.zeros((oc, c, k, k), np.float32), "bias": np.zeros(oc, np.float32)}
        if self.bits:
            b = 8 if name == "stem" else self.bits
            attrs |= {"weight_dtype": {3: "s3", 4: "s4", 8: "s8"}[b], "bits": [b, b]}
            params = {"weight": np.zeros((oc, c, k, k), np.int8), "bias": np.zeros(oc, np.int32),
                      "multiplier": np.zeros(oc, np.float32)}
        y = self.add(Node(name, "qconv2d" if self.bits else "conv2d", (x,), spec, attrs, params))
        if self.folded:
            return y
        norm = {k: np.zeros(oc, np.float32) for k in ("gamma", "beta", "mean", "var")}
        return self.add(Node(f"{name}.bn", "batch_norm", (y,), spec, {"eps": 1e-5}, norm))

    def head(self, x: str) -> Graph:
        params = {"weight": np.zeros((10, 64), np.float32), "bias": np.zeros(10, np.float32)}
        attrs = {"weight_dtype": "s8", "bits": [8, 8]} if self.bits else {}
        self.add(Node("fc", "qlinear" if self.bits else "linear", (x,), TensorSpec((10,)), attrs, params))
        return Graph(tuple(self.nodes), (Member("o", "fc"),))


def resnet(depth: int, shortcut: str, *, folded: bool = True, bits: int = 0) -> Graph:
    net = Net(folded=folded, bits=bits)
    x, width = net.conv("stem", "image", 3, 16, 32), 16
    for stage, (oc, size) in enumerate([(16, 32), (32, 16), (64, 8)]):
        for block in range((depth - 2) // 6):
            name = f"layer{stage}.{block}"
            y = net.conv(f"{name}.conv2", net.conv(f"{name}.conv1", x, width, oc, size), oc, oc, size)
            if width != oc and shortcut == "b":
                x = net.conv(f"{name}.shortcut", x, width, oc, size, 1)
            x, width = net.add(Node(f"{name}.add", "add", (y, x), TensorSpec((oc, size, size)))), oc
    return net.head(x)


@pytest.mark.parametrize(
    ("depth", "shortcut", "millions", "digits"), [(20, "a", 40.93, 2), (20, "b", 41.215, 3), (56, "b", 126.837, 3), (56, "a", 126.55, 2)]
)
@pytest.mark.parametrize("folded", [True, False])
def test_paper_baselines(depth: int, shortcut: str, millions: float, digits: int, folded: bool) -> None:
    cost = member_costs(resnet(depth, shortcut, folded=folded))["o"]
    assert round(cost.flops_paper / 1e6, digits) == millions


@pytest.mark.parametrize(("bits", "share"), [(3, 0.133), (4, 0.176)])
def test_quantized_resnet20_costs_what_the_targets_assume(bits: int, share: float) -> None:
    full = member_costs(resnet(20, "b"))["o"]
    low = member_costs(resnet(20, "b", bits=bits))["o"]
    assert low.macs == full.macs
    assert round(low.flops_paper / full.flops_paper, 3) == share


def test_terms_of_one_layer() -> None:
    weight = np.zeros((6, 2, 3, 5), np.int8)
    params = {"weight": weight, "bias": np.zeros(6, np.int32), "multiplier": np.zeros(6, np.float32)}
    attrs = {"weight_dtype": "s3", "bits": [2, 3], "folded_norm": 1}
    node = Node("c", "qconv2d", ("x",), TensorSpec((6, 4, 7), "u8", 1.0), attrs, params)
    macs = 6 * 4 * 7 * 2 * 3 * 5
    row = 8 + 4  # 30 codes: 30 pairs of bits and 30 high bits, each plane in whole bytes
    want = Cost(macs, 6 * 30 + 6, 6 * row + 6 * 4 + 6 * 4, (macs + 2 * 6 * 4 * 7) * 3 / 23, macs * 6, macs * 3 / 23,
                macs * 6 / 23, macs * 6 / 529)
    assert node_cost(node) == want


def test_what_is_not_counted_costs_nothing() -> None:
    for op in ("add", "clamp", "max_pool2d", "global_avg_pool", "flatten", "concat", "mean", "qrecode", "qadd"):
        assert node_cost(Node("n", op, ("x",), TensorSpec((4, 8, 8)))) == Cost()


def test_ensemble_leaves_the_reference_out() -> None:
    graph = merge({"q": resnet(20, "a", bits=4), "o": resnet(20, "a")}, {"o": "reference"})
    book = ledger(graph)
    q, o = book["members"]["q"], book["members"]["o"]
    assert book["reference"] == {"member": "o", "flops_paper": o["flops_paper"]}
    assert book["ensemble"] == {k: v for k, v in q.items() if k != "role"}
    assert book["flops_ratio"] == book["flops_ratios"]["q"] == q["flops_paper"] / o["flops_paper"]
    assert book["flops_ratios"]["o"] == 1.0
    assert book["bytes"] == {"q": q["bytes"], "o": o["bytes"], "ensemble": q["bytes"]}


def test_a_shared_trunk_counts_once_in_the_ensemble() -> None:
    graph = resnet(20, "a")
    early = Node("exit", "linear", ("layer0.2.add",), TensorSpec((10,)), {},
                 {"weight": np.zeros((10, 16), np.float32), "bias": np.zeros(10, np.float32)})
    both = Graph((*graph.nodes, early), (Member("late", "fc"), Member("early", "exit")))
    costs, together = member_costs(both), ensemble_cost(both)
    assert together == costs["late"] + node_cost(early)
    assert together.macs < costs["late"].macs + costs["early"].macs
    assert together == total_cost(both.nodes)


def test_ratio_without_a_reference() -> None:
    graph = resnet(20, "a")
    assert ledger(graph)["flops_ratio"] is None
    assert ledger(graph, reference_flops=2 * 40_930_000)["flops_ratio"] == pytest.approx(0.5, rel=1e-3)
    with pytest.raises(GraphError, match="above 0"):
        ledger(graph, reference_flops=0.0)


def test_several_references_need_a_choice() -> None:
    graph = merge({m: resnet(20, "a") for m in ("o", "p", "s")}, {"o": "reference", "p": "reference"})
    with pytest.raises(GraphError, match="one reference"):
        ledger(graph)
    assert ledger(graph, reference_flops=4.0e7)["reference"]["member"] is None


def test_bytes_follow_the_width() -> None:
    sizes = {b: sum(map(stored_bytes, resnet(20, "a", bits=b).nodes)) for b in (3, 4, 8)}
    codes = sum(n.params["weight"].size for n in resnet(20, "a").nodes if n.op == "conv2d" and n.name != "stem")
    assert sizes[8] - sizes[4] == codes // 2
    assert sizes[8] - sizes[3] == codes * 5 // 8


def test_costs_add() -> None:
    one = Cost(1, 2, 3, 4.0, 5, 6.0, 7.0, 8.0)
    assert dataclasses.astuple(one + one) == (2, 4, 6, 8.0, 10, 12.0, 14.0, 16.0)


# (network, paper's FLOPs in millions to that many digits). The paper prints 41.2 M and 126.8 M (option B), ResNet-50 4.1 G, and
# 0.32 G for MobileNetV2, which is 0.314 in its own convention (0.301 without batch norms).
NETWORKS = [("resnet20", 40.93, 2), ("resnet20-b", 41.2, 1), ("resnet56-b", 126.8, 1), ("wrn16-8", 1550.01, 2), ("vgg16-bn", 314.28, 2),
            ("resnet50", 4111.4, 1), ("mobilenetv2", 314, 0)]


@lru_cache
def counted(name: str) -> tuple[Graph, dict[str, int], dict[str, int]]:
    """A network's graph; and from PyTorch: MACs of each layer, and elements that each batch norm yields, for one image."""
    module, arch = resolve(name)
    graph = capture(module.eval(), arch.input)
    module.to("meta")
    norms: dict[str, int] = {}
    for key, part in module.named_modules():
        if isinstance(part, nn.BatchNorm2d):
            part.register_forward_hook(lambda m, x, y, key=key: norms.update({key: y.numel()}))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, *arch.input.shape, device="meta"))
    root = type(module).__name__
    flops = {key.removeprefix(f"{root}."): sum(ops.values()) for key, ops in counter.get_flop_counts().items()}
    layers = {key: flops[key] // 2 for key, part in module.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)}
    assert sum(layers.values()) == counter.get_total_flops() // 2
    return graph, layers, norms


@pytest.mark.parametrize(("name", "millions", "digits"), NETWORKS)
def test_whole_networks_in_all_conventions(name: str, millions: float, digits: int) -> None:
    """Against torch.utils.flop_counter, which counts two operations per multiply-accumulate and no batch norms."""
    graph, layers, norms = counted(name)
    assert {n.name: node_macs(n) for n in graph.nodes if node_macs(n)} == layers
    macs = sum(layers.values())
    assert round(member_costs(graph)["o"].flops_paper / 1e6, digits) == millions
    lowered = passes.lower(graph)
    alone = sum(n.spec.elements for n in lowered.nodes if n.op == "conv2d" and graph[n.name].op == "batch_norm")
    assert bool(alone) == name.startswith("wrn")  # norms before their convolution, which become convolutions themselves
    for stage, more in ((graph, 0), (lowered, alone)):
        cost, all_macs = member_costs(stage)["o"], macs + more
        assert cost.flops_paper == all_macs + 2 * sum(norms.values())
        assert (cost.macs, cost.bops) == (all_macs, 1024 * all_macs)
        assert (cost.b23, cost.bb23, cost.bb529) == (all_macs, all_macs, all_macs)


@pytest.mark.parametrize("name", ["resnet20-b", "resnet20"])
def test_a_quantized_network_in_all_conventions(name: str) -> None:
    """3-bit weights, 4-bit activations, first and last layer 8 bits: each formula written out over PyTorch's counts."""
    graph, layers, norms = counted(name)
    module = QuantModule(graph, 3, 4)
    calibrate(module, torch.from_numpy(pictures(2, (3, 32, 32))), method="min-max", reestimate=False)
    cost = member_costs(freeze(module))["o"]
    edge = layers["conv1"] + layers["linear"]
    inner = sum(layers.values()) - edge
    norm = 2 * sum(norms.values())
    edge_norm = 2 * norms["bn1"]
    assert cost.macs == edge + inner
    assert cost.flops_paper == pytest.approx(((inner + norm - edge_norm) * 4 + (edge + edge_norm) * 8) / 23)
    assert cost.b23 == pytest.approx((inner * 4 + edge * 8) / 23)
    assert cost.bb23 == pytest.approx((inner * 12 + edge * 64) / 23)
    assert cost.bb529 == pytest.approx((inner * 12 + edge * 64) / 529)
    assert cost.bops == inner * 12 + edge * 64
