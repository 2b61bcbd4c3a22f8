"""Forms in which people write networks, each captured and equal to PyTorch; and what cannot be captured says so."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hce_engine.backends import reference
from hce_engine.capture import capture
from hce_engine.errors import HceError, InputError, UnsupportedError
from hce_engine.graph import Graph
from hce_engine.graph.passes import lower
from hce_engine.preprocess import FLOAT32_NCHW, InputSpec

SPEC = InputSpec(FLOAT32_NCHW, (3, 8, 8), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def check(module: nn.Module, spec: InputSpec = SPEC) -> Graph:
    """Captures ``module``, compares graph and lowered graph with it on random images, returns the lowered graph."""
    module.eval()
    images = np.random.default_rng(3).uniform(0, 1, (3, *spec.shape)).astype(np.float32)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
    with torch.no_grad():
        want = module((torch.from_numpy(images) - mean) / std).numpy()
    graph = capture(module, spec)
    lowered = lower(graph)
    for candidate in (graph, lowered):
        np.testing.assert_allclose(reference.run(candidate, images)["o"], want, rtol=1e-4, atol=1e-4)
    return lowered


class Body(nn.Module):
    """A head around ``function``, which gets 4 maps of 8x8 and returns any number of maps."""

    def __init__(self, function: Callable[[Tensor], Tensor], features: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.function = function
        self.head = nn.Linear(features, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.function(self.stem(x)), 1))


class HandWritten(nn.Module):
    """Concat, in-place additions and activations, a lambda shortcut, a module used twice, dropout, old-style pooling."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.c = nn.Conv2d(12, 10, 3, 2, padding=2, dilation=2)
        self.relu = nn.ReLU(inplace=True)
        self.relu6 = nn.ReLU6(inplace=True)
        self.shortcut = lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 3))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(10, 4)
        nn.init.uniform_(self.norm.running_mean, -1, 1)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm(self.a(x)))
        z = self.b(y)
        z += y
        z = torch.cat([self.relu(z), y], 1)
        out = self.c(z)
        out += self.shortcut(y)
        out = self.relu6(out)
        out = F.avg_pool2d(out, out.size()[3])
        return self.head(self.drop(out.view(out.size(0), -1)))


def test_hand_written_model() -> None:
    lowered = check(HandWritten())
    assert [n.op for n in lowered.nodes].count("concat") == 1
    assert "channel_pad" in {n.op for n in lowered.nodes}


def test_public_resnet_with_lambda_shortcut_and_padding_by_expression() -> None:
    class LambdaLayer(nn.Module):
        def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.function = function

        def forward(self, x: Tensor) -> Tensor:
            return self.function(x)

    planes = 8
    layer = LambdaLayer(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, planes // 4, planes // 4), "constant", 0))
    lowered = check(Body(layer, 8 * 16))
    assert [n.op for n in lowered.nodes if n.name.startswith("function")] == ["strided_slice", "channel_pad"]


def _mutate_after_view(x: Tensor) -> Tensor:
    """The slice is a view, so it must see the addition that comes after it."""
    y = x.relu()
    view = y[:, :, ::2, ::2]
    y += x
    return view


FORMS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "relu method": (lambda x: x.relu(), 256),
    "hardtanh": (lambda x: F.hardtanh(x, -0.5, 0.7), 256),
    "clamp with two bounds": (lambda x: x.clamp(-0.1, 0.4), 256),
    "clamp from below": (lambda x: torch.clamp_min(x, 0.1), 256),
    "clamp from above": (lambda x: torch.clamp(x, max=0.1), 256),
    "two clamps": (lambda x: F.relu6(x).clamp(0.2, 9.0), 256),
    "mean over pixels": (lambda x: x.mean([2, 3]), 4),
    "mean, kept axes, negative": (lambda x: x.mean((-1, -2), keepdim=True), 4),
    "adaptive pool to 1": (lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1), 4),
    "adaptive pool to 4": (lambda x: F.adaptive_avg_pool2d(x, (4, 4)), 64),
    "adaptive pool to its own size": (lambda x: F.adaptive_avg_pool2d(x, (None, 8)), 256),
    "max pool": (lambda x: F.max_pool2d(x, 3, 2, 1), 64),
    "average pool, counting pad": (lambda x: F.avg_pool2d(x, 3, 2, 1), 64),
    "average pool, not counting pad": (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), 64),
    "ceil mode that changes nothing": (lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True), 64),
    "slice with bounds": (lambda x: x[:, :, 1:-1, 2:7:3], 48),
    "slice read twice": (lambda x: torch.cat([x[:, :, ::2], F.max_pool2d(x, (2, 1))], 1), 256),
    "view mutated later": (_mutate_after_view, 64),
    "reshape": (lambda x: x.reshape(x.shape[0], -1), 256),
    "contiguous and detach": (lambda x: x.contiguous().detach().float(), 256),
    "same tensor added": (lambda x: x + x, 256),
    "dropout call": (lambda x: F.dropout(x, 0.5, training=False), 256),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    check(Body(*FORMS[form]))


def test_layers_with_unusual_options() -> None:
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Conv2d(3, 8, (3, 1), (2, 1), (1, 0)), nn.BatchNorm2d(8, affine=False), nn.Conv2d(8, 16, 5, padding="same", groups=8),
        nn.Conv2d(16, 4, 3, padding="valid", bias=False), nn.Flatten(), nn.Linear(4 * 2 * 6, 6, bias=False),
        nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3),
    )
    lowered = check(net)
    assert lowered["m.0"].op == "conv2d"  # a name may not start with a digit
    assert lowered["m.5"].attrs["min"] == 0


def test_weight_computed_from_parameters_is_a_constant() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3))
    torch.nn.utils.parametrizations.weight_norm(net[0])
    check(net)


def test_several_outputs_become_members() -> None:
    class Exits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.deep = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
            self.early, self.late = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.trunk(x).relu()
            return self.early(x.mean((2, 3))), self.late(self.deep(x).mean((2, 3)))

    module = Exits().eval()
    graph = capture(module, SPEC, member=("early", "late"))
    assert [m.name for m in graph.members] == ["early", "late"]
    assert sum(n.name == "trunk" for n in graph.nodes) == 1
    images = np.zeros((1, 3, 8, 8), np.float32)
    assert set(reference.run(lower(graph), images)) == {"early", "late"}
    with pytest.raises(InputError, match="one output per member name"):
        capture(module, SPEC)


def test_module_is_left_as_it_was() -> None:
    module = HandWritten()
    module.train()
    module.norm.eval()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    capture(module, SPEC)
    assert module.training and module.a.training and not module.norm.training
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


UNSUPPORTED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "silu": (lambda x: F.silu(x), "silu"),
    "multiplication": (lambda x: x * x, "mul"),
    "added number": (lambda x: x + 1.0, "add.*constant 1.0"),
    "scaled addition": (lambda x: torch.add(x, x, alpha=2), "alpha = 2"),
    "broadcast addition": (lambda x: x + x.mean((2, 3), keepdim=True), "add"),
    "reflected padding": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "reflect"),
    "padded pixels": (lambda x: F.pad(x, (1, 1, 1, 1)), "padding of pixels"),
    "padding with ones": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 1), value=1.0), "value 1.0"),
    "channel slice": (lambda x: x[:, :2], "slice of axis 1"),
    "uneven adaptive pool": (lambda x: F.adaptive_avg_pool2d(x, 3), "adaptive pooling"),
    "ceil mode": (lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True), "ceil_mode"),
    "dilated pool": (lambda x: F.max_pool2d(x, 2, 1, dilation=2), "dilation"),
    "divisor": (lambda x: F.avg_pool2d(x, 2, divisor_override=3), "divisor_override"),
    "mean over channels": (lambda x: x.mean(1, keepdim=True), "mean over axes"),
    "transposed": (lambda x: x.transpose(2, 3), "transpose"),
    "concat of rows": (lambda x: torch.cat([x, x], 2), "dim = 2"),
    "dropout in eval": (lambda x: F.dropout(x, 0.5, training=True), "dropout"),
    "batch mixed": (lambda x: x.reshape(1, -1), "batch axis"),
}


@pytest.mark.parametrize("form", UNSUPPORTED)
def test_unsupported_names_operation_line_and_what_is_supported(form: str) -> None:
    function, pattern = UNSUPPORTED[form]
    module = Body(function, 1)
    module.head = nn.Flatten()  # the shape of the result does not matter here
    with pytest.raises(UnsupportedError, match=pattern) as caught:
        capture(module, SPEC)
    message = str(caught.value)
    line = inspect.getsourcelines(Body.forward)[1] + 1  # torch.export keeps the frames of forward methods
    assert f"{__file__}:{line}" in message
    assert "conv2d, linear, batch norm" in message


def test_statistics_of_the_batch_are_unsupported() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    with pytest.raises(UnsupportedError, match=r"norm.*module '1'"):
        capture(net, SPEC)


def test_transposed_convolution_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="transpose"):
        capture(nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.Flatten()), SPEC)


def test_branch_on_values_is_unsupported() -> None:
    module = Body(lambda x: x if x.sum() > 0 else -x, 256)
    with pytest.raises(UnsupportedError, match=r"torch\.export can trace"):
        capture(module, SPEC)


def test_module_that_does_not_run_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"runs on float32 images \(2, 3, 8, 8\)"):
        capture(Body(lambda x: x, 7), SPEC)


def test_output_that_is_no_vector() -> None:
    with pytest.raises(UnsupportedError, match="logits"):
        capture(nn.Conv2d(3, 4, 3), SPEC)


def test_nan_weights_are_refused() -> None:
    module = HandWritten()
    nn.init.constant_(module.a.weight, float("nan"))
    with pytest.raises(HceError, match="finite values in weight"):
        capture(module, SPEC)
