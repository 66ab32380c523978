"""All holds of an optimizer are applied together: the same bits as one after the other, whatever happens in between."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch isn't installed")

from torch import nn  # noqa: E402

import xweights as xw  # noqa: E402
from xweights.training import held_groups  # noqa: E402


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 2), nn.Linear(5, 5), nn.Linear(5, 5, bias=False), nn.Linear(5, 5).double())


def masks(model: nn.Module) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {p.name: rng.random(p.shape) < 0.5 for p in xw.parameters(model, where="*/kernel")}


def other_memory(model: nn.Module) -> None:
    model[1].weight.data = model[1].weight.data.clone()


def transposed(model: nn.Module) -> None:
    model[1].weight.data = model[1].weight.data.t().contiguous().t()


def replaced(model: nn.Module) -> None:
    model[1].weight = nn.Parameter(torch.ones_like(model[1].weight))


def another_layer(model: nn.Module) -> None:
    model[1] = nn.Linear(5, 5)


def swapped(model: nn.Module) -> None:
    model[1].weight.data, model[2].weight.data = model[2].weight.data, model[1].weight.data


def there_and_back(model: nn.Module) -> None:
    model[1].to(torch.float64).to(torch.float32)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "nothing": lambda model: None,
    "double": lambda model: model.double(),
    "other memory": other_memory,
    "other strides": transposed,
    "replaced": replaced,
    "another layer": another_layer,
    "swapped memory": swapped,
    "there and back": there_and_back,
    "another hold": lambda model: xw.hold(model, xw.NonNegative(), where="1/kernel"),
    "a function": lambda model: xw.hold(model, lambda w: w.clamp(-0.2, 0.2), where="1/kernel"),
    "a norm": lambda model: xw.hold(model, xw.MaxNorm(0.1, "out"), where="2/kernel"),
}


def train(model: nn.Module, change: Callable[[nn.Module], object]) -> list[np.ndarray]:
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    clip = xw.hold(model, xw.Clip(-0.3, 0.3), where=...)
    xw.hold(model, xw.Mask(masks(model)), where="*/kernel")
    kept = xw.hold(model, xw.Keep((0,)), where="*/bias")
    generator = torch.Generator().manual_seed(1)
    for step in range(6):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()
        if step == 1:
            change(model)
        if step == 3:
            kept.release()
        if step == 4:
            clip.let_go([p for p in clip.parameters if p.name == "1/kernel"])
    return [p.detach().numpy(force=True).copy() for p in parameters]


@pytest.mark.parametrize("change", CHANGES)
def test_together_they_have_the_bits_of_one_after_the_other(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    together = train(make(), CHANGES[change])
    monkeypatch.setattr(held_groups, "group_key", lambda p: None)
    one_by_one = train(make(), CHANGES[change])
    for a, b in zip(together, one_by_one, strict=True):
        assert a.tobytes() == b.tobytes()


def test_each_step_counts_in_the_version_of_each_tensor() -> None:
    model = make()
    xw.hold(model, xw.Clip(-0.1, 0.1), where=...)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    before = [p._version for p in model.parameters()]
    optimizer.step()
    assert all(p._version > version for p, version in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("rule", [xw.Clip(-0.1, 0.1), xw.Keep(), xw.Fill(0.1)], ids=repr)
@pytest.mark.parametrize(("before", "after"), [("float32", "float16"), ("bfloat16", "float16")])
def test_weights_of_a_dtype_that_the_rule_cannot_hold_are_named(rule: xw.Rule, before: str, after: str) -> None:
    # Of the second pair torch would take the bits of one for the other's: the clip let 1.6 through.
    model = nn.Sequential(nn.Linear(3, 2)).to(getattr(torch, before))
    held = xw.hold(model, rule, where="0/kernel")
    model.to(getattr(torch, after))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(xw.HoldError, match=f"(?s)'0/kernel'.*got: +{after}.*expected: {before}.*Fix: release"):
        optimizer.step()
    held.release()
    xw.hold(model, rule, where="0/kernel")
    optimizer.step()


def test_a_parameter_that_is_replaced_in_the_optimizer_and_put_back_is_held_again() -> None:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    xw.hold(model, xw.Clip(-0.1, 0.1), where=..., optimizer=optimizer)
    own = optimizer.param_groups[0]["params"]
    first, stranger = own[0], nn.Parameter(torch.ones(2))

    def step() -> None:
        for p in own:
            p.grad = torch.full_like(p, -1.0)
        optimizer.step()

    own[0] = stranger
    with torch.no_grad():
        first.fill_(3.0)
    step()
    assert float(stranger.detach().min()) > 1
    assert float(first.detach().min()) == 3.0  # not stepped, so not held either
    own[0] = first
    step()
    assert float(first.detach().abs().max()) <= 0.1 + 1e-7


def test_optimizers_of_the_parts_of_a_model_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.5) for part in (model[:2], model[2:])]
    xw.hold(model, xw.Clip(-0.1, 0.1), where=...)

    def step() -> None:
        for optimizer, part in zip(optimizers, (model[:2], model[2:]), strict=True):
            for p in part.parameters():
                p.grad = torch.full_like(p, -1.0)
            optimizer.step()

    step()
    arranged = []
    monkeypatch.setattr(held_groups.HeldGroups, "_arrange", arranged.append)
    step()
    assert not arranged
    assert all(float(p.detach().abs().max()) <= 0.1 + 1e-7 for p in model.parameters())


def test_memory_of_another_shape_is_an_error_and_is_not_written() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    xw.hold(model, xw.Mask({"0/kernel": np.eye(3, 2) > 0}), where="0/kernel")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    model[0].weight.grad = torch.zeros(2, 3)
    optimizer.step()
    other = torch.ones(5, 7)
    model[0].weight.data = other
    model[0].weight.grad = torch.zeros(5, 7)
    with pytest.raises(Exception, match=r"shape|broadcast"):
        optimizer.step()
    assert bool((other == 1).all())


def test_memory_that_has_the_negative_of_the_weights_is_an_error_and_is_not_written() -> None:
    # At the same address, of the same shape and dtype: only a flag tells.
    model = nn.Sequential(nn.Linear(3, 2))
    xw.hold(model, xw.Mask({"0/kernel": np.eye(3, 2) > 0}), where="0/kernel")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    model[0].weight.grad = torch.zeros(2, 3)
    optimizer.step()
    memory = model[0].weight.data
    memory.fill_(1.0)
    model[0].weight.data = torch._neg_view(memory)
    with pytest.raises(RuntimeError, match="negative bit"):
        optimizer.step()
    assert bool((memory == 1).all())
