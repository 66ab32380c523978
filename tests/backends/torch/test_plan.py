"""Plans of PyTorch modules: what is kept from call to call is never stale, and keeps nothing alive."""

from __future__ import annotations

import copy
import gc
import os
import threading
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import xweights as xw
from xweights.core.plan import KeepsPlans
from xweights.errors import XweightsError
from xweights_torch import backend


class Net(nn.Module):
    """A model with what a plan has to look at: nested modules, settings, buffers, a tie, a layer without a bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6, bias=False))
        self.head = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.head.weight
        self.register_buffer("scale", torch.ones(6))


class Double(nn.Module):
    """A parametrization with an inverse."""

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return 2 * w

    def right_inverse(self, w: torch.Tensor) -> torch.Tensor:
        return w / 2


class Renamed(nn.Linear):
    """A layer of the same shape and of another class."""


def set_data(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Net], None]:
    def apply(net: Net) -> None:
        net.body[0].weight.data = change(net.body[0].weight.data)

    return apply


def swap_class(net: Net) -> None:
    net.body[0].__class__ = Renamed


def replace_at_the_same_address(net: Net) -> None:
    for _ in range(20):
        net.body[0].weight = nn.Parameter(net.body[0].weight.detach().clone())


def move(net: Net) -> None:
    net.tail = net.body
    del net.body


def give_memory_back(net: Net) -> None:
    net.body[0].weight.data = net.body[0].weight.data.clone()
    net.body[0].weight.untyped_storage().resize_(0)


def adapt(net: Net) -> None:
    peft = pytest.importorskip("peft", reason="PEFT isn't installed")
    peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["body.0"]))


CHANGES: dict[str, Callable[[Net], object]] = {
    "nothing": lambda net: None,
    "a parameter is replaced": lambda net: setattr(net.body[0], "weight", nn.Parameter(torch.ones(6, 6))),
    "a parameter is replaced again and again": replace_at_the_same_address,
    "a parameter is replaced by one of another shape": lambda net: setattr(
        net.head, "bias", nn.Parameter(torch.ones(3))
    ),
    "a parameter is deleted": lambda net: setattr(net.head, "bias", None),
    "a parameter is added": lambda net: net.register_parameter("extra", nn.Parameter(torch.ones(2))),
    "a buffer is added": lambda net: net.register_buffer("extra", torch.ones(2)),
    "a buffer is replaced": lambda net: setattr(net, "scale", torch.full((6,), 3.0)),
    "a buffer becomes transient": lambda net: net.register_buffer("scale", net.scale, persistent=False),
    "a module is added": lambda net: net.add_module("extra", nn.Linear(2, 2)),
    "a module is added deep inside": lambda net: net.body[1].add_module("extra", nn.Linear(2, 2)),
    "a module is removed": lambda net: delattr(net, "head"),
    "a module is replaced": lambda net: setattr(net, "head", nn.Linear(6, 6)),
    "a module is replaced by None": lambda net: setattr(net, "head", None),
    "a module moves": move,
    "a module of another class": lambda net: setattr(net, "norm", nn.GroupNorm(2, 8)),
    "a module's class is swapped": swap_class,
    "a setting changes": lambda net: setattr(net.conv, "groups", 2),
    "half": lambda net: net.half(),
    "bfloat16": lambda net: net.bfloat16(),
    "double": lambda net: net.double(),
    "to(meta)": lambda net: net.to("meta"),
    "other memory": set_data(torch.clone),
    "a transposed view of the same memory": set_data(lambda w: w.t()),
    "another shape of the same memory": set_data(lambda w: w.view(4, 9)),
    "a part of the same memory": set_data(lambda w: w[:3]),
    "a negated view of the same memory": set_data(torch._neg_view),
    "entries that overlap": set_data(lambda w: w[:1].expand(6, 6)),
    "no memory": give_memory_back,
    "frozen by requires_grad": lambda net: net.body.requires_grad_(False),
    "frozen": lambda net: xw.freeze(net, where="body/*"),
    "parametrized": lambda net: parametrize.register_parametrization(net.body[0], "weight", Double()),
    "weight_norm": lambda net: nn.utils.parametrizations.weight_norm(net.body[0]),
    "old weight_norm": lambda net: torch.nn.utils.weight_norm(net.body[0]),
    "old spectral_norm": lambda net: torch.nn.utils.spectral_norm(net.body[0]),
    "pruned by torch": lambda net: prune.random_unstructured(net.body[0], "weight", amount=0.5),
    "LoRA": adapt,
    "tied": lambda net: setattr(net.body[2], "weight", net.body[0].weight),
    "tied by memory": lambda net: setattr(net.body[2].weight, "data", net.body[0].weight.data),
    "untied": lambda net: setattr(net.tied, "weight", nn.Parameter(net.head.weight.detach().clone())),
    "a hook": lambda net: net.body[0].register_forward_pre_hook(lambda module, args: None),
    "held": lambda net: xw.hold(net, xw.Clip(-0.1, 0.1), where="body/*"),
}


def describe(net: Net) -> list[object]:
    return [(repr(p), p.native_name, p.native_aliases, p.hidden, p.trainable) for p in xw.parameters(net)]


def outcome(call: Callable[[], object]) -> object:
    try:
        return call()
    except (XweightsError, RuntimeError) as refused:
        return type(refused).__name__, str(refused)


def values(net: Net) -> dict[str, object]:
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    tensors |= {"view": net.body[0].weight} if hasattr(net, "body") else {}
    return {
        name: (t.dtype, t.shape, None if t.is_meta or not t.untyped_storage().nbytes() else t.float().tolist())
        for name, t in tensors.items()
    }


def keep_every_second(net: Net) -> None:
    kernels = xw.parameters(net, where=xw.role("kernel"))
    xw.mask(net, {p.name: np.arange(p.size).reshape(p.shape) % 2 == 0 for p in kernels})


CALLS: dict[str, Callable[[Net], object]] = {
    "clip": lambda net: xw.clip(net, -0.2, 0.2),
    "mask": keep_every_second,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("call", CALLS)
def test_a_change_of_the_model_between_two_calls_is_never_missed(call: str, change: str) -> None:
    net, fresh = Net(), Net()
    before = copy.deepcopy(net.state_dict())
    CALLS[call](net)
    CALLS[call](net)
    net.load_state_dict(before)
    assert plan_of(net).outline is plan_of(net).outline is not None
    for model in (net, fresh):  # nothing is kept of the second
        torch.manual_seed(1)
        CHANGES[change](model)
    assert describe(net) == describe(fresh)
    for _ in range(2):
        assert outcome(lambda: CALLS[call](net)) == outcome(lambda: CALLS[call](fresh))
        assert values(net) == values(fresh)
    assert describe(net) == describe(fresh)


def plan_of(net: nn.Module):
    adapter = backend.adapter(net)
    assert isinstance(adapter, KeepsPlans)
    return adapter.plan(net)


def test_a_plan_is_kept_from_call_to_call_and_its_selections_with_it() -> None:
    net = Net()
    first = plan_of(net)
    first.select("body/*")
    second = plan_of(net)
    assert second.outline is first.outline is not None
    assert second.select("body/*").choice is first.select("body/*").choice
    assert [p.name for p in second.select(["head/kernel", "head/bias"]).parameters] == ["head/kernel", "head/bias"]


def test_a_function_in_where_is_asked_at_each_call() -> None:
    net, wanted = Net(), {"head/bias"}
    for _ in range(2):
        xw.fill(net, 1.0, where=lambda p: p.name in wanted)
    wanted = {"tied/bias"}
    xw.fill(net, 2.0, where=lambda p: p.name in wanted)
    assert net.head.bias.tolist() == [1.0] * 6
    assert net.tied.bias.tolist() == [2.0] * 6


def test_a_plan_keeps_neither_the_model_nor_a_layer_that_was_removed() -> None:
    net = Net()
    xw.scale(net, 1.0)
    head, weight = weakref.ref(net.body), weakref.ref(net.body[0].weight)
    gc.collect()
    gc.disable()
    try:
        del net.body
        assert head() is None
        assert weight() is None
        gone = weakref.ref(net)
        del net
        assert gone() is None
    finally:
        gc.enable()


def test_a_parameter_outlives_its_model() -> None:
    net = Net()
    xw.scale(net, 1.0)
    kernel = xw.parameters(net, where="body/0/kernel")[0]
    expected = net.body[0].weight.detach().numpy().T.copy()
    del net
    assert np.array_equal(kernel.numpy(), expected)


@pytest.mark.filterwarnings("ignore:os.fork")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_plan_works_in_a_forked_process() -> None:
    net = Net()
    xw.fill(net, 1.0)
    child = os.fork()
    if not child:
        xw.fill(net, 2.0)
        net.head.bias = nn.Parameter(torch.zeros(6))
        xw.scale(net, 3.0)
        good = net.body[0].weight.unique().tolist() == [6.0] and net.head.bias.unique().tolist() == [0.0]
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert net.body[0].weight.unique().tolist() == [1.0]


def test_a_plan_works_in_another_thread() -> None:
    net = Net()
    xw.fill(net, 1.0)
    thread = threading.Thread(target=lambda: xw.scale(net, 2.0))
    thread.start()
    thread.join()
    assert net.body[0].weight.unique().tolist() == [2.0]


def test_two_threads_on_one_model_take_turns() -> None:
    net = nn.Linear(300, 300)
    rounds = 20

    def work(delta: float) -> None:
        for _ in range(rounds):
            xw.add(net, delta)
            xw.apply(net, lambda w: w + delta, where=...)

    xw.fill(net, 0.0)
    threads = [threading.Thread(target=work, args=(delta,)) for delta in (1.0, 2.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert net.weight.unique().tolist() == [2 * rounds * 3.0]


def test_an_edit_inside_of_an_edit_does_not_wait_for_another_thread() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    inside, refused = threading.Barrier(2, timeout=30), []

    def nest(outer: nn.Module, inner: nn.Module) -> None:
        def function(w: torch.Tensor) -> torch.Tensor:
            inside.wait()
            try:
                xw.scale(inner, 2.0)
            except xw.WriteError as error:
                refused.append(str(error))
            inside.wait()
            return w

        xw.apply(outer, function, where="kernel")

    threads = [threading.Thread(target=nest, args=pair) for pair in ((first, second), (second, first))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert len(refused) == 2
    assert "another thread" in refused[0]


def test_a_grouped_edit_counts_in_the_version_of_each_tensor_and_keeps_the_objects() -> None:
    net = Net()
    for _ in range(2):
        before = {name: (id(p), p.data_ptr(), p._version, p.requires_grad) for name, p in net.named_parameters()}
        xw.clip(net, -0.1, 0.1)
        for name, p in net.named_parameters():
            identity, address, version, requires_grad = before[name]
            assert (id(p), p.data_ptr(), p.requires_grad) == (identity, address, requires_grad)
            assert p._version == version + 1
    loss = net.body(torch.ones(1, 6)).sum()
    xw.scale(net, 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


RULES = {"clip": xw.Clip(-0.1, 0.1), "mask": xw.Mask(np.eye(6, dtype=bool)), "add": xw.Add(np.ones((6, 6), np.float32))}


@pytest.mark.parametrize("rule", RULES)
def test_a_bound_step_goes_on_in_other_memory_of_the_same_kind(rule: str) -> None:
    net = Net()
    step = xw.bind(net, RULES[rule], where=["body/0/kernel", "body/2/kernel"])
    step()
    net.body[0].weight.data = net.body[0].weight.data.clone() + 1
    expected = copy.deepcopy(net)
    xw.apply(expected, RULES[rule], where=["body/0/kernel", "body/2/kernel"])
    step()
    assert torch.equal(net.body[0].weight, expected.body[0].weight)
    assert torch.equal(net.body[2].weight, expected.body[2].weight)


@pytest.mark.parametrize("change", ["a parameter is replaced", "half", "another shape of the same memory", "to(meta)"])
@pytest.mark.parametrize("rule", ["clip", "mask"])
def test_a_bound_step_refuses_parameters_that_are_others_by_now(rule: str, change: str) -> None:
    net = Net()
    step = xw.bind(net, RULES[rule], where=["body/0/kernel", "body/2/kernel"])
    step()
    former = net.body[0].weight
    CHANGES[change](net)
    before = values(net), None if former.is_meta else former.tolist()
    with pytest.raises(xw.WriteError, match="body/0/kernel"):
        step()
    assert (values(net), None if former.is_meta else former.tolist()) == before


def test_a_bound_step_outlives_its_model() -> None:
    net = Net()
    weight = net.body[0].weight
    step = xw.bind(net, xw.Fill(2.0), where="body/0/kernel")
    step()
    del net
    gc.collect()
    with torch.no_grad():
        weight.zero_()
    step()
    assert weight.unique().tolist() == [2.0]


BOUND = {
    "a clip": xw.Clip(-0.1, 0.1),
    "noise": xw.Noise(0.1, seed=0),
    "a norm": xw.MaxNorm(0.1, "out"),
    "a function": lambda w: w * 0.5,
}
REPLACED = {
    "a parameter": lambda model: setattr(model[1][0], "weight", nn.Parameter(torch.ones(3, 3))),
    "a layer": lambda model: model[1].__setitem__(0, nn.Linear(3, 3)),
    "the layers around it": lambda model: model.__setitem__(1, nn.ModuleList([nn.Linear(3, 3)])),
    "a layer that was taken out": lambda model: model[1].__delitem__(0),
}


@pytest.mark.parametrize("replaced", REPLACED)
@pytest.mark.parametrize("rule", BOUND)
def test_a_bound_step_never_writes_to_what_the_model_has_no_more(rule: str, replaced: str) -> None:
    model = nn.ModuleList([nn.Linear(3, 3), nn.ModuleList([nn.Linear(3, 3)])])
    step = xw.bind(model, BOUND[rule], where="*/kernel")
    former = [model[0].weight, model[1][0].weight]
    before = [p.detach().clone() for p in former]
    REPLACED[replaced](model)
    if rule == "noise":
        step.draw(1)
    with pytest.raises(xw.WriteError, match="'1/0/kernel' was replaced since it was bound"):
        step()
    assert all(torch.equal(p, old) for p, old in zip(former, before, strict=True))


def test_a_bound_step_keeps_no_layer_alive_that_it_does_not_edit() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    step = xw.bind(model, xw.Clip(-0.1, 0.1), where="0/kernel")
    other = weakref.ref(model[1])
    model[1] = nn.Linear(3, 3)
    step()
    gc.collect()
    assert other() is None
