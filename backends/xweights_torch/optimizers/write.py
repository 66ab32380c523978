"""The neutral optimizer state written into an optimizer of PyTorch.

Hooks before the step do what the framework's own class can't; :class:`ForeignOptimizer` does what hooks can't.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.optimizers.protocol import (
    Part,
    Route,
    Training,
    WrittenState,
    drop_rows_variant,
    embedding_gradient_parts,
)
from xweights.optimizers.rules.slots import slots_of
from xweights.optimizers.rules.updates import NON_ELEMENTWISE_RULES
from xweights.optimizers.state import OptimizerGroup, OptimizerState, unscale_momentum_by_lr
from xweights_torch.dtypes import from_host
from xweights_torch.optimizers.foreign import ForeignOptimizer
from xweights_torch.optimizers.hooks import OFFSETS, OptimizerHooks, hooks_of
from xweights_torch.optimizers.read import ORIGINALS, averaged_pairs, fingerprint
from xweights_torch.optimizers.schedules import make_scheduler
from xweights_torch.optimizers.table import CLASSES, OptimizerRow, arguments, class_for
from xweights_torch.sharding.beside import is_cut, put_beside
from xweights_torch.storage import tensor_of

_RULES = frozenset(row.rule for row in CLASSES.values())


@dataclass(frozen=True)
class GroupNeed:
    """Needs of one group: ``shim`` says why no class of torch's works, ``remedies`` what a hook has to do and why."""

    native: OptimizerRow | None
    shim: str = ""
    remedies: Mapping[str, str] = field(default_factory=dict)


def need_of(state: OptimizerState, group: OptimizerGroup) -> GroupNeed:
    """Return the needs of a group of a state in PyTorch."""
    v, h, rule = group.variant, group.hyper, group.rule
    if rule not in _RULES:
        return GroupNeed(None, f"torch.optim has no {rule}")
    decaying = any(other.hyper.get("weight_decay") for other in state.groups)
    native = class_for(rule, v.get("decay", "coupled") if decaying else "coupled")
    remedies: dict[str, str] = {}
    decays = bool(h.get("weight_decay"))
    momentum = bool(h.get("momentum"))
    if decays and v.get("decay") != native.variant["decay"] and (rule != "sgd" or momentum):
        remedies["decay"] = "weight decay acts on the weights alone, here on the gradients"
    if rule in ("sgd", "rmsprop") and momentum and v.get("rate_inside") and state.schedule is not None:
        if rule == "rmsprop":
            return GroupNeed(native, "its momentum has the learning rate of its day in it, which changes")
        remedies["rescale"] = "the momentum has the learning rate of its day in it, which changes"
    if rule == "adam" and v.get("eps") != "corrected":
        remedies["eps"] = "epsilon is added before the correction of the average, here after it"
        if decays and v.get("decay") == "decoupled":
            remedies["decay"] = "the exchanged learning rate must not scale the decay"
    if rule in ("rmsprop", "adamax") and v.get("eps") != native.variant["eps"]:
        remedies["offset"] = f"epsilon is {v.get('eps')}, here {native.variant['eps']}"
    if rule == "nadam" and v.get("powers") != "double":
        return GroupNeed(native, "its powers of beta are computed in the dtype of the weights, here in float64")
    if rule == "adafactor" and v.get("eps") != "floor":
        return GroupNeed(native, "epsilon is added to each squared gradient, here it is a floor under their estimate")
    if rule == "muon" and v.get("accumulate") != "mean":
        return GroupNeed(native, "its matrices are made orthogonal in the dtype of the weights, here in bfloat16")
    return GroupNeed(native, "", remedies)


def plan_route(state: OptimizerState, parameters: Sequence[Parameter], optimizer: Any, grade: str) -> Route:
    """Return how a state gets into an optimizer; see ``Optimizing.plan``."""
    needs = [need_of(state, group) for group in state.groups]
    parts, refusals = [], []
    kinds = {need.native.kind for need in needs if need.native is not None and not need.shim}
    several_rules = len(kinds) > 1
    shim = several_rules or any(need.shim for need in needs)
    surroundings = _surrounding_parts(state, grade)
    for group, need in zip(state.groups, needs, strict=True):
        why = need.shim or ("its groups follow several rules" if several_rules else "")
        if shim:
            parts.append(Part(group.rule, "exact (shim)", why or "another group needs it"))
        elif need.remedies:
            parts.append(Part(group.rule, "exact (hook)", "; ".join(need.remedies.values())))
        else:
            parts.append(Part(group.rule, "stock", f"torch.optim.{_class(need).__name__} follows the same rule"))
        if grade == "stock" and (why or need.remedies):
            refusals.append(f"{group.rule} is no rule of torch's own: {why or '; '.join(need.remedies.values())}")
    parts += [*surroundings, *embedding_gradient_parts(state)]
    if grade == "stock":
        refusals += [f"{part.name}: {part.why}" for part in embedding_gradient_parts(state)]
        refusals += [f"{part.name}: {part.why}" for part in surroundings if "hook" in part.grade]
    if optimizer is not None:
        required = ForeignOptimizer if shim else _class(needs[0])
        if type(optimizer) is not required:
            refusals.append(
                f"the optimizer given is {type(optimizer).__name__}, and {required.__name__} is needed\n"
                "Fix: pass None in its place, and take the one in the report"
            )
    if any(is_cut(tensor_of(p.handle)) for p in parameters):
        refusals += _refuse_on_shards(state, shim=shim)
    needs_hooks = any(need.remedies for need in needs) or any("hook" in part.grade for part in surroundings)
    kind = "shim" if shim else "hook" if needs_hooks else "stock"
    return Route(kind, tuple(parts), tuple(dict.fromkeys(refusals)))


def _refuse_on_shards(state: OptimizerState, *, shim: bool) -> list[str]:
    """Return why a state can't go on where each rank has a part of the parameters."""
    joint = [group.rule for group in state.groups if shim and group.rule in NON_ELEMENTWISE_RULES]
    refusals = [
        f"{rule} looks at whole arrays in each step, and each rank has a part of them\nFix: a rule of torch's own"
        for rule in dict.fromkeys(joint)
    ]
    if state.moving is not None:
        refusals.append(
            "a moving average is kept in a copy of the model (AveragedModel), and a sharded one can't be copied\n"
            "Fix: dataclasses.replace(state, moving=None), and xweights.average(model, decay=...)"
        )
    return refusals


def _class(need: GroupNeed) -> type[Optimizer]:
    assert need.native is not None
    return need.native.kind


def _surrounding_parts(state: OptimizerState, grade: str) -> list[Part]:
    """Return the report parts on everything around the steps."""
    hook = "exact (hook)"
    parts = []
    if state.schedule is not None:
        if grade == "stock":
            parts.append(Part("schedule", "stock", "LambdaLR over the neutral definition: step it after each update"))
        else:
            parts.append(Part("schedule", hook, "the hook sets the rate of each update: step no scheduler"))
    if state.clip is not None:
        parts.append(Part("clipping", hook, "gradients are clipped inside of step(), here outside of it"))
    if state.moving is not None:
        how = "stock" if grade == "stock" and not state.moving.every else hook
        why = "AveragedModel: call update_parameters after each update" if how == "stock" else "updated by the hook"
        parts.append(Part("moving average", how, why))
    if state.micro_steps > 1:
        parts.append(Part("accumulation", hook, f"the mean of {state.micro_steps} gradients: call step() after "
                          f"{state.micro_steps} backward(), the first time after "
                          f"{state.micro_steps - state.micro_done}"))  # fmt: skip
    return parts


def write_state(
    side: Training, state: OptimizerState, parameters: Sequence[Parameter], route: Route, grade: str
) -> WrittenState:
    """Build or fill an optimizer; see ``Optimizing.write``."""
    by_name = {p.name: p for p in parameters}
    needs = [need_of(state, group) for group in state.groups]
    if route.kind == "shim":
        groups = [_make_foreign_group(state, group, by_name) for group in drop_rows_variant(state).groups]
        optimizer = side.optimizer if side.optimizer is not None else ForeignOptimizer(groups)
    else:
        kind = _class(needs[0])
        groups = []
        for group, need in zip(state.groups, needs, strict=True):
            assert need.native is not None
            defaults = kind([torch.zeros((1, 1), requires_grad=True)]).defaults  # type: ignore[call-arg]
            entries = arguments(need.native, _stock_hyper(group, need), defaults)
            if group.rule == "muon":
                entries["adjust_lr_fn"] = {"original": "original", "rms": "match_rms_adamw"}[group.variant["adjust"]]
            groups.append({**entries, "params": [tensor_of(by_name[name].handle) for name in group.names]})
        optimizer = side.optimizer if side.optimizer is not None else kind(copy.copy(groups))  # type: ignore[call-arg]
    previous_hooks = hooks_of(optimizer)
    if previous_hooks is not None:
        previous_hooks.release()
    if side.optimizer is not None:
        _replace_groups(optimizer, groups)
    optimizer.state.clear()
    lrs = [state.rate(group) for group in state.groups]
    for group, shown, lr in zip(state.groups, optimizer.param_groups, lrs, strict=True):
        shown["lr"] = lr
        for name in group.names:
            _fill_slots(optimizer, state, group, by_name[name], route, needs[state.groups.index(group)])
    return _attach_surroundings(side, state, parameters, route, grade, optimizer, needs)


def _stock_hyper(group: OptimizerGroup, need: GroupNeed) -> dict[str, Any]:
    """Return the hyperparameters with which torch's class computes the same."""
    hyper = dict(group.hyper)
    single = group.variant.get("cast") == "float32"
    if group.rule == "sgd" and single:
        hyper["momentum"] = float(np.float32(hyper["momentum"]))
    if single and "decay" not in need.remedies and hyper.get("weight_decay"):
        hyper["weight_decay"] = float(np.float32(hyper["weight_decay"]))
    if group.rule == "adagrad" and group.variant.get("eps") == "inside":
        hyper["epsilon"] = 0.0
    return hyper


def _make_foreign_group(
    state: OptimizerState, group: OptimizerGroup, by_name: Mapping[str, Parameter]
) -> dict[str, Any]:
    parameters = [by_name[name] for name in group.names]
    hyper = {key: value for key, value in group.hyper.items() if key not in ("learning_rate", "weight_decay")}
    return {
        "params": [tensor_of(p.handle) for p in parameters],
        "lr": float(group.hyper["learning_rate"]),
        "weight_decay": group.hyper.get("weight_decay") or 0.0,
        "rule": group.rule,
        "hyper": hyper,
        "variant": dict(group.variant),
        "orders": [p.layout.order for p in parameters] if group.rule == "muon" else None,
        "factored": [_stored_axes(p, state.factored.get(p.name)) for p in parameters]
        if group.rule == "adafactor"
        else None,
        "slots": dict.fromkeys(next((list(state.slots[name]) for name in group.names), []), 0.0),
    }


def _stored_axes(p: Parameter, axes: tuple[int, int] | None) -> tuple[int, int] | None:
    return None if axes is None else (p.layout.order[axes[0]], p.layout.order[axes[1]])


def _replace_groups(optimizer: Optimizer, groups: Sequence[dict[str, Any]]) -> None:
    old_groups = optimizer.param_groups
    defaults = {**optimizer.defaults, **{k: v for k, v in old_groups[0].items() if k != "params"}}
    optimizer.param_groups = []
    for group in groups:
        optimizer.add_param_group({**defaults, **group})


def _fill_slots(
    optimizer: Optimizer, state: OptimizerState, group: OptimizerGroup, p: Parameter, route: Route, need: GroupNeed
) -> None:
    tensor = tensor_of(p.handle)
    slots = state.slots[p.name]
    if "accumulated" in slots:
        tensor.grad = put_beside(_to_stored(p, slots["accumulated"], "accumulated"), tensor)
    if route.kind == "shim":
        table = {slot: slot for slot in slots if slot not in ("accumulated", "average")}
        counts = True
    else:
        assert need.native is not None
        names = slots_of(group.rule, group.hyper, tensor.ndim, variant=need.native.variant, among=need.native.slots)
        table = {slot: need.native.slots[slot] for slot in names}
        counts = need.native.counts
    if state.updates == 0 and route.kind == "stock" and group.rule != "adagrad":
        return  # it makes its slots at the first step, and does some things only then
    native_slots = optimizer.state[tensor]
    if counts:
        native_slots["step"] = torch.tensor(float(state.updates))
    for slot, native in table.items():
        value = slots[slot]
        if route.kind != "shim":
            value = _to_stock_value(group, slot, value, need)
        native_slots[native] = put_beside(_to_stored(p, value, slot), tensor)


def _to_stock_value(group: OptimizerGroup, slot: str, value: Array, need: GroupNeed) -> Array:
    if slot == "momentum" and group.rule in ("sgd", "rmsprop"):
        return unscale_momentum_by_lr(group, value)
    eps = value.dtype.type(group.hyper.get("epsilon") or 0.0)
    offset = "offset" in need.remedies and OFFSETS[group.rule][1] == slot
    if offset or (slot == "accumulator" and group.variant.get("eps") == "inside"):
        return np.asarray(value + eps)
    return value


def _to_stored(p: Parameter, value: Array, slot: str) -> torch.Tensor:
    if value.ndim == 0:
        return torch.tensor(float(value), dtype=torch.float64 if value.dtype == np.float64 else torch.float32)
    permuted = slot in ("row", "column")
    stored = value.transpose(p.layout.inverse) if permuted else p.layout.to_stored(value)
    return from_host(np.array(stored, order="C"))


def _attach_surroundings(
    side: Training, state: OptimizerState, parameters: Sequence[Parameter], route: Route, grade: str,
    optimizer: Optimizer, needs: Sequence[GroupNeed],
) -> WrittenState:  # fmt: skip
    ema = side.ema
    averaged: list[tuple[torch.Tensor, torch.Tensor]] = []
    if state.moving is not None:
        if ema is None:
            ema = AveragedModel(
                side.model,
                multi_avg_fn=get_ema_multi_avg_fn(state.moving.momentum),  # type: ignore[no-untyped-call]
            )
        with torch.no_grad():
            for p, mean, weight in averaged_pairs(ema, parameters, state.names):
                mean.copy_(_to_stored(p, state.slots[p.name]["average"], "average"))
                averaged.append((mean, weight))
            ema.n_averaged.fill_(state.iterations)
    scheduler = None
    if grade == "stock":
        if state.schedule is not None:
            factors = [group.factor for group in state.groups]
            scheduler = make_scheduler(optimizer, state.schedule, step=state.updates, factors=factors)
        _remember(optimizer, state)
        return WrittenState(optimizer, scheduler, ema)
    # SGD and Muon don't count: without a hook, reading them back would need the number of steps.
    hooks = None
    if route.kind != "stock" or not all(need.native is not None and need.native.counts for need in needs):
        remedies = [frozenset() if route.kind == "shim" else frozenset(need.remedies) for need in needs]
        if route.kind != "shim":
            # It does nothing while the learning rate stays the same, but that may be changed by hand.
            lr_inside = [
                g.rule == "sgd" and g.hyper.get("momentum") and g.variant.get("rate_inside") for g in state.groups
            ]
            remedies = [
                names | {"rescale"} if rescale else names for names, rescale in zip(remedies, lr_inside, strict=True)
            ]
        hooks = OptimizerHooks(optimizer, _without_slots(state), remedies, ema, averaged)
    _remember(optimizer, state)
    return WrittenState(optimizer, None, ema, (lambda: None) if hooks is None else hooks.release)


def _without_slots(state: OptimizerState) -> OptimizerState:
    """Return the state for hooks: everything but the slots."""
    state = drop_rows_variant(state)
    groups = tuple(replace(group, last_rate=group.last_rate or 1.0) for group in state.groups)
    return replace(state, groups=groups, slots={})


def _remember(optimizer: Optimizer, state: OptimizerState) -> None:
    """Keep the original slots, for reading back before any step: a division or an offset loses last bits."""
    ORIGINALS[optimizer] = (fingerprint(optimizer), state)


def backup(optimizer: Any) -> Callable[[], None]:
    """Return a function that restores an optimizer; see ``Optimizing.backup``."""
    if not isinstance(optimizer, Optimizer):
        return lambda: None
    groups = [dict(group, params=list(group["params"])) for group in optimizer.param_groups]
    # By reference: a hand-off replaces these tensors by new ones.
    state = {p: dict(slots) for p, slots in optimizer.state.items()}
    grads = [(p, p.grad) for group in groups for p in group["params"]]
    original = ORIGINALS.get(optimizer)

    def restore() -> None:
        optimizer.param_groups = groups
        optimizer.state.clear()
        optimizer.state.update(state)
        for p, grad in grads:
            p.grad = grad
        ORIGINALS.pop(optimizer, None)
        if original is not None:
            ORIGINALS[optimizer] = original

    return restore
