"""Progressive lowering: what a narrower network takes over from a wider one, and what it searches anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from hce_engine.backends import reference
from hce_engine.errors import InputError
from hce_engine.training.freeze import freeze
from hce_engine.training.quantize import METHODS, QuantModule, calibrate, lowered
from hce_engine.training.quantize.steps import ConvStep

from .float_graphs import GRAPHS, mobile, pictures, residual


def images(count: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(pictures(count, seed=seed))


def trained(name: str = "residual", bits: int = 8, method: str = "lsq", **keys: int) -> QuantModule:
    """A module that has left its float graph behind, in every weight, norm and step."""
    module = QuantModule(GRAPHS[name](), bits, bits, method=method, **keys)
    calibrate(module, images())
    optimizer = torch.optim.SGD(module.train().parameters(), 0.05)
    for _ in range(5):
        optimizer.zero_grad()
        cross_entropy(module(images()), torch.arange(64) % 5).backward()
        optimizer.step()
    return module.eval()


def distance(a: QuantModule, b: QuantModule) -> float:
    """Root mean square of the difference of logits over the spread of ``b``'s."""
    with torch.no_grad():
        want = b.eval()(images(seed=3))
        return ((a.eval()(images(seed=3)) - want).square().mean().sqrt() / want.std()).item()


@pytest.mark.parametrize("method", METHODS)
def test_weights_and_grids_of_the_same_width_are_taken_over(method: str) -> None:
    module = trained(method=method)
    lower = lowered(module, 4, 4, images())
    old, new = module.state_dict(), lower.state_dict()
    kept = [k for k in new if k.endswith((".weight", ".bias", ".weight_range")) or k.startswith(("stem.conv.weight_step", "fc."))]
    assert {"l1.0.1.conv.weight", "l1.0.1.conv.norm.bias", "fc.weight"} <= set(kept)
    kept += [f"{name}.quantizer.{'clip' if method == 'pact' else 'step'}" for name in ("stem.conv", "l1.0.2.conv", "pool")]  # u8 in both
    assert all(torch.equal(old[k], new[k]) for k in kept)
    assert any("recode" in k for k in new)
    assert not any("recode" in k for k in old)
    assert (lower.method, lower.w_bits, lower.a_bits, lower.edge_bits) == (method, 4, 4, 8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["residual", "mobile", "plain"])
def test_the_function_follows_the_trained_network(name: str, method: str) -> None:
    module, start = trained(name, method=method), QuantModule(GRAPHS[name](), 4, 4, method=method)
    calibrate(start, images())
    lower = lowered(module, 4, 4, images())
    assert distance(lower, module) < 0.5 * distance(start, module)
    lowest = lowered(lower, 3, 3, images())
    assert distance(lower, module) < distance(lowest, module)


def test_statistics_are_those_of_the_wider_network() -> None:
    module = trained()
    lower = lowered(module, 2, 2, images())
    means: dict[str, list[torch.Tensor]] = {}

    def note(step, part, inputs) -> None:
        if isinstance(part, ConvStep):
            out = part.norm.eval()(part.before_norm(*inputs[0]))
            means.setdefault(step.name, []).append(torch.cat([out.mean((0, 2, 3)), out.std((0, 2, 3))]).detach())

    for m in (module, lower):
        m.eval().walk(images(), note)
    assert len(means) == 8
    for wide, narrow in means.values():
        torch.testing.assert_close(wide, narrow, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("method", ["lsq", "pact"])
def test_a_grid_of_the_same_width_stays_and_a_narrower_one_is_searched(method: str) -> None:
    module = trained(bits=4, method=method)
    with torch.no_grad():
        for grid in module.quantizers().values():
            grid.set_scale(grid.scale() * 0.3)  # what no search would find
    name = "l1.0.1.conv"
    tops = [grid.scale() * grid.hi for grid in (lowered(module, 4, a, images()).quantizers()[name] for a in (4, 3, 2))]
    was = module.quantizers()[name]
    torch.testing.assert_close(tops[0], was.scale() * was.hi)
    assert all(abs(top / tops[0] - 1) > 0.02 for top in tops[1:])


def test_the_wider_network_is_left_as_it_was() -> None:
    module = trained().train()
    module.freeze_bn()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    lower = lowered(module, 3, 3, images())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert module.training
    assert module.bn_frozen
    assert lower.training
    assert not lower.bn_frozen
    assert lower.of(next(s for s in lower.layout.steps if s.norm is not None), ConvStep).norm.training
    lower.freeze_bn()
    lower(images()).sum().backward()
    assert not lowered(module.eval(), 3, 3, images()).training


def test_widths_that_stay_change_nothing() -> None:
    module = trained(bits=4, edge_bits=6)
    again = lowered(module, 4, 4, images())
    assert again.edge_bits == 6
    assert distance(again, module) < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_lowered_networks_train_and_freeze(method: str) -> None:
    module = lowered(trained(method=method), 4, 4, images())
    optimizer = torch.optim.SGD(module.train().parameters(), 0.02)
    for _ in range(4):
        optimizer.zero_grad()
        cross_entropy(module(images()), torch.arange(64) % 5).backward()
        optimizer.step()
    module = lowered(module, 3, 2, images()).eval()
    test, graph = pictures(32, seed=9), freeze(module)
    values, mine = reference.evaluate(graph, test), module.codes(torch.from_numpy(test))
    assert min(float((mine[name] == values[name]).mean()) for name in mine) >= 0.99
    assert graph["l1.0.1.conv"].attrs["bits"] == [3, 2]


def test_float_images_keep_their_range() -> None:
    graph = residual(kind="float32_nchw")
    x = images().float() / 127.5 - 1
    module = QuantModule(graph, 8, 8, input_range=(-1.0, 1.0))
    calibrate(module, x)
    lower = lowered(module, 5, 5, x)
    assert (lower.layout.low, lower.layout.high) == (-1, 1)
    assert np.isfinite(lower.eval()(x).detach().numpy()).all()


def test_refusals() -> None:
    module = QuantModule(mobile(), 4, 4)
    with pytest.raises(InputError, match="at most the 4 weight bits"):
        lowered(module, 5, 4, images())
    with pytest.raises(InputError, match="at most the 4 activation bits"):
        lowered(module, 4, 8, images())
    with pytest.raises(InputError, match="2 to 8"):
        lowered(module, 1, 4, images())
    with pytest.raises(InputError, match="at least 2 images"):
        lowered(module, 3, 3, images(1))
