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


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "nothing": lambda model: None,
    "double": lambda model: model.double(),
    "other memory": other_memory,
    "other strides": transposed,
    "another hold": lambda model: xw.hold(model, xw.NonNegative(), where="1/kernel"),
    "a function": lambda model: xw.hold(model, lambda w: w.clamp(-0.2, 0.2), where="1/kernel"),
    "a norm": lambda model: xw.hold(model, xw.MaxNorm(0.1, "out"), where="2/kernel"),
}


def train(model: nn.Module, change: Callable[[nn.Module], object]) -> list[np.ndarray]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    clip = xw.hold(model, xw.Clip(-0.3, 0.3), where=...)
    xw.hold(model, xw.Mask(masks(model)), where="*/kernel")
    kept = xw.hold(model, xw.Keep((0,)), where="*/bias")
    generator = torch.Generator().manual_seed(1)
    for step in range(6):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()
        if step == 1:
            change(model)
        if step == 3:
            kept.release()
        if step == 4:
            clip.let_go(xw.parameters(model, where="1/kernel"))
    return [p.detach().numpy().copy() for p in model.parameters()]


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
