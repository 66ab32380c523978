"""PyTorch's optimizers read into the neutral optimizer state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.errors import HandoffError, Problems, XweightsError, near
from xweights.optimizers.protocol import Training
from xweights.optimizers.rules.slots import slots_of
from xweights.optimizers.state import Clipping, OptimizerGroup, OptimizerState, WeightEMA
from xweights_torch.dtypes import host_view
from xweights_torch.optimizers.foreign import ForeignOptimizer
from xweights_torch.optimizers.hooks import OptimizerHooks, hooks_of
from xweights_torch.optimizers.schedules import read_scheduler
from xweights_torch.optimizers.table import CLASSES, OptimizerRow, native_of, value_of
from xweights_torch.sharding.beside import block_beside, block_of
from xweights_torch.storage import tensor_of

# States written into optimizers, by optimizer, with a fingerprint: slots may have been converted on the way.
ORIGINALS: WeakKeyDictionary[Optimizer, tuple[str, OptimizerState]] = WeakKeyDictionary()
# clip_grad_norm_ adds this to the norm before it divides.
CLIP_EPS = 1e-6
_UNKNOWN = ("maximize", "capturable", "differentiable")


@dataclass
class StateReading:
    """Problems, slots, step counts and factored axes collected so far."""

    problems: Problems
    slots: dict[str, dict[str, Array]] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    factored: dict[str, tuple[int, int]] = field(default_factory=dict)


def read_state(side: Training, parameters: Sequence[Parameter], step: int | None) -> OptimizerState:
    """Return the state of an optimizer of PyTorch; see ``Optimizing.read``."""
    optimizer = side.optimizer
    problems = Problems("this optimizer can't be read, and nothing was changed")
    if not isinstance(optimizer, Optimizer):
        kind = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
        text = f"this is no optimizer of the model's framework\ngot:      {kind}\nexpected: a torch.optim.Optimizer"
        problems.add(HandoffError, text, fix="pass the optimizer itself, without wrappers")
        problems.throw()
    native = native_of(optimizer)
    if native is None and not isinstance(optimizer, ForeignOptimizer):
        known = [kind.__name__ for kind in CLASSES]
        problems.add(
            HandoffError,
            f"{type(optimizer).__name__} is no optimizer whose rule is known\n{near(type(optimizer).__name__, known)}",
        )
        problems.throw()
    hooks = hooks_of(optimizer)
    names = _match_parameters(optimizer, parameters, problems)
    problems.check()
    reading = StateReading(problems)
    groups = []
    for index, group in enumerate(optimizer.param_groups):
        group_parameters = [names[id(p)] for p in group["params"] if p.requires_grad or optimizer.state.get(p)]
        members = [p for p in group["params"] if p.requires_grad or optimizer.state.get(p)]
        new_group = _read_foreign_group(group) if native is None else read_group(native, group)
        for p, parameter in zip(members, group_parameters, strict=True):
            _read_slots(optimizer, native, new_group, p, parameter, reading, hooks)
        if native is not None and new_group.rule == "nadam" and _has_narrow_product(optimizer, members):
            new_group = replace(new_group, variant={**new_group.variant, "product": "float32"})
        groups.append(replace(new_group, names=tuple(parameter.name for parameter in group_parameters)))
        if native is None:
            _read_foreign_factored(group, names, reading)
        elif hooks is not None and hooks.state.factored:
            reading.factored |= dict(hooks.state.factored)
        groups[-1] = replace(groups[-1], last_rate=1.0 if hooks is None else hooks.last_lrs[index])
    reading.problems.check()
    state = OptimizerState(
        groups=tuple(groups), slots=reading.slots, factored=reading.factored,
        dtypes={p.name: p.dtype.name for p in parameters if p.name in reading.slots},
    )  # fmt: skip
    state = _build_state(state, side, reading, hooks, native, parameters, step)
    return _recall_original(side) or state


def _recall_original(side: Training) -> OptimizerState | None:
    """Return the state that was written into an optimizer, if nothing has happened since."""
    mark, state = ORIGINALS.get(side.optimizer, ("", None))
    if state is None or side.clip is not None or side.micro_done or side.micro_steps > 1 or side.ema_momentum:
        return None
    if mark != fingerprint(side.optimizer):
        ORIGINALS.pop(side.optimizer, None)
        return None
    return state


def fingerprint(optimizer: Optimizer) -> str:
    """Return a digest of an optimizer's slots, gradients and hyperparameters."""
    import hashlib

    digest = hashlib.blake2b(digest_size=16)
    for group in optimizer.param_groups:
        digest.update(repr({key: value for key, value in group.items() if key != "params"}).encode())
        for p in group["params"]:
            for key, value in optimizer.state.get(p, {}).items():
                digest.update(key.encode())
                digest.update(b"" if value is None else np.ascontiguousarray(host_view(block_of(value))).tobytes())
            digest.update(b"" if p.grad is None else np.ascontiguousarray(host_view(block_of(p.grad))).tobytes())
    return digest.hexdigest()


def _match_parameters(
    optimizer: Optimizer, parameters: Sequence[Parameter], problems: Problems
) -> dict[int, Parameter]:
    known = {id(tensor_of(p.handle)): p for p in parameters if isinstance(tensor_of(p.handle), nn.Parameter)}
    unknown = 0
    for group in optimizer.param_groups:
        for p in group["params"]:
            unknown += id(p) not in known
        for option in _UNKNOWN:
            if group.get(option):
                problems.add(
                    HandoffError, f"{option}=True has no counterpart", fix=f"make the optimizer without {option}"
                )
    if unknown:
        count = sum(len(group["params"]) for group in optimizer.param_groups)
        problems.add(
            HandoffError,
            f"this optimizer is of another model: {unknown} of its {count} parameters aren't among the model's",
            fix="pass the optimizer that was made from this model's parameters()",
        )
    return known


def read_group(native: OptimizerRow, group: Mapping[str, Any]) -> OptimizerGroup:
    """Return a parameter group of one of torch's classes, without its names."""
    hyper = {name: value_of(group, key) for name, key in native.hyper.items()}
    variant = dict(native.variant)
    if group.get("decoupled_weight_decay"):
        variant["decay"] = "decoupled"
    if native.rule == "muon":
        adjustments = {None: "original", "original": "original", "match_rms_adamw": "rms"}
        variant["adjust"] = adjustments[group["adjust_lr_fn"]]
        hyper["rms_rate"] = 0.2
    if native.rule == "adafactor" and hyper["epsilon_1"] is None:
        hyper["epsilon_1"] = float(torch.finfo(group["params"][0].dtype).eps)
    return OptimizerGroup(native.rule, (), hyper, variant)


def _read_foreign_group(group: Mapping[str, Any]) -> OptimizerGroup:
    hyper = {**group["hyper"], "learning_rate": float(group["lr"]), "weight_decay": group["weight_decay"]}
    return OptimizerGroup(group["rule"], (), hyper, dict(group["variant"]))


def _read_foreign_factored(group: Mapping[str, Any], names: Mapping[int, Parameter], reading: StateReading) -> None:
    if group["factored"] is not None:
        for p, axes in zip(group["params"], group["factored"], strict=True):
            if axes is not None:
                row, column = (names[id(p)].layout.inverse[axis] for axis in axes)
                reading.factored[names[id(p)].name] = (row, column)


def _read_slots(
    optimizer: Optimizer, native: OptimizerRow | None, group: OptimizerGroup, p: torch.Tensor, parameter: Parameter,
    reading: StateReading, hooks: OptimizerHooks | None,
) -> None:  # fmt: skip
    state = optimizer.state.get(p, {})
    table = dict(native.slots) if native is not None else {name: name for name in state if name not in _COUNTS}
    wanted = slots_of(group.rule, group.hyper, p.ndim, variant=group.variant, among=table)
    slots: dict[str, Array] = {}
    has_slots = any(state.get(key) is not None for key in table.values())
    for slot in wanted:
        value = state.get(table[slot])
        if value is not None:
            slots[slot] = _read_value(parameter, value, slot)
        elif has_slots:
            reading.problems.add(HandoffError, f"{parameter.name!r} has no {table[slot]!r}, though it has others",
                                 fix="load the whole state_dict of the optimizer")  # fmt: skip
        else:
            slots[slot] = _initial_slot(group, parameter, p, slot)
    reading.slots[parameter.name] = slots
    if native is not None and group.rule == "adafactor" and p.ndim > 1:
        inverse = parameter.layout.inverse
        reading.factored[parameter.name] = (inverse[p.ndim - 2], inverse[p.ndim - 1])
    if "step" in state or (native is not None and native.counts):
        reading.steps[parameter.name] = _step_count(state)


def _has_narrow_product(optimizer: Optimizer, members: Sequence[torch.Tensor]) -> bool:
    """Return whether nadam's product is narrower than the weights: it has torch's default dtype."""
    first = next(iter(members), None)
    if first is None or first.dtype != torch.float64:
        return False
    product = optimizer.state.get(first, {}).get("mu_product")
    return (torch.get_default_dtype() if product is None else product.dtype) == torch.float32


_COUNTS = frozenset({"step"})


def _step_count(state: Mapping[str, Any]) -> int:
    return int(float(state.get("step", 0)))


def _read_value(parameter: Parameter, value: torch.Tensor, slot: str) -> Array:
    own = block_beside(value.detach(), tensor_of(parameter.handle), f"{slot} of {parameter.name!r}")
    array = np.array(host_view(own))
    if array.ndim == 0 or (slot in ("row", "column") and array.ndim != len(parameter.layout.order)):
        return array
    if slot in ("row", "column"):
        return np.ascontiguousarray(array.transpose(parameter.layout.order))
    return np.ascontiguousarray(parameter.layout.to_neutral(array))


def _initial_slot(group: OptimizerGroup, parameter: Parameter, p: torch.Tensor, slot: str) -> Array:
    """Return a slot as it is before the first step, at which torch makes it."""
    if slot == "product":
        return np.ones((), parameter.dtype)
    shape = list(parameter.shape)
    if slot in ("row", "column"):
        inverse = parameter.layout.inverse
        shape[inverse[p.ndim - 1 if slot == "row" else p.ndim - 2]] = 1
    value = group.hyper.get("initial_accumulator_value") or 0.0 if slot == "accumulator" else 0.0
    return np.full(shape, value, parameter.dtype)


def _build_state(
    state: OptimizerState, side: Training, reading: StateReading, hooks: OptimizerHooks | None,
    native: OptimizerRow | None, parameters: Sequence[Parameter], step: int | None,
) -> OptimizerState:  # fmt: skip
    problems = reading.problems
    schedule, factors = None, [1.0] * len(state.groups)
    if side.scheduler is not None:
        try:
            schedule, factors = read_scheduler(side.scheduler, side.optimizer)
        except XweightsError as error:
            problems.add(type(error), str(error))
    if hooks is not None:
        shown = [{"learning_rate": g.hyper["learning_rate"], "weight_decay": g.hyper.get("weight_decay")}
                 for g in state.groups]  # fmt: skip
        state = hooks.current(state.slots, shown)
        updates = hooks.updates
    else:
        updates = _count_updates(state, reading, native, step, side, problems)
        state = replace(state, groups=tuple(replace(g, factor=f) for g, f in zip(state.groups, factors, strict=True)))
    if step is not None and step != updates:
        problems.add(HandoffError, f"step= isn't what the optimizer counted\ngot:      {step}\nexpected: {updates}")
    if schedule is not None and side.scheduler.last_epoch != updates:
        problems.add(
            HandoffError,
            f"the scheduler was stepped {side.scheduler.last_epoch} times and the optimizer {updates} times: a rate "
            "that changes by the epoch has no counterpart",
            fix="step the scheduler after each update, with its numbers in updates",
        )
    problems.check()
    state = replace(state, updates=updates, schedule=schedule or state.schedule)
    if side.clip is not None:
        kind, limit = side.clip
        state = replace(state, clip=Clipping(kind, float(limit), 0.0 if kind == "value" else CLIP_EPS))
    if side.micro_steps > 1:
        state = replace(state, micro_steps=side.micro_steps)
    if side.micro_done:
        state = replace(state, micro_done=side.micro_done, slots=_add_accumulated(state, parameters))
    ema = side.ema if side.ema is not None else (hooks.ema if hooks is not None else None)
    if ema is not None:
        state = _add_average(state, ema, side, parameters)
    return state


def _count_updates(
    state: OptimizerState,
    reading: StateReading,
    native: OptimizerRow | None,
    step: int | None,
    side: Training,
    problems: Problems,
) -> int:
    counts = {count for name, count in reading.steps.items() if name in state.names}
    if len(counts) == 1:
        return counts.pop()
    if counts:
        lagging = {name: count for name, count in reading.steps.items() if count != max(counts)}
        name, count = next(iter(lagging.items()))
        problems.add(HandoffError, f"parameters were updated different numbers of times: {name!r} {count} times, "
                     f"others {max(counts)} times", fix="leave what gets no gradient out of the optimizer")  # fmt: skip
        return max(counts)
    if step is not None:
        return step
    if side.scheduler is not None:
        return int(side.scheduler.last_epoch)
    if any(state.slots.values()) and not any(side.optimizer.state.values()):
        return 0  # it would keep a momentum
    name = type(side.optimizer).__name__
    problems.add(HandoffError, f"{name} doesn't count its updates", fix="pass step=, the number of updates so far")
    return 0


def _add_accumulated(state: OptimizerState, parameters: Sequence[Parameter]) -> dict[str, dict[str, Array]]:
    slots = {name: dict(values) for name, values in state.slots.items()}
    for p in parameters:
        if p.name in slots:
            grad = tensor_of(p.handle).grad
            accumulated = np.zeros(p.shape, p.dtype) if grad is None else _read_value(p, grad, "accumulated")
            slots[p.name]["accumulated"] = accumulated
    return slots


def _add_average(state: OptimizerState, ema: Any, side: Training, parameters: Sequence[Parameter]) -> OptimizerState:
    weight_ema = state.moving if side.ema_momentum is None else WeightEMA(float(side.ema_momentum))
    if weight_ema is None:
        raise HandoffError("an AveragedModel doesn't tell its momentum\nFix: Training(..., ema_momentum=0.999)")
    means = averaged_pairs(ema, parameters, state.names)
    slots = {name: dict(values) for name, values in state.slots.items()}
    for p, mean, _ in means:
        slots[p.name]["average"] = _read_value(p, mean, "average")
    return replace(state, moving=weight_ema, slots=slots)


def averaged_pairs(
    ema: Any, parameters: Sequence[Parameter], names: Sequence[str]
) -> list[tuple[Parameter, torch.Tensor, torch.Tensor]]:
    """Return (parameter, mean, weight) for each parameter that an AveragedModel averages."""
    means = dict(ema.module.named_parameters())
    wanted = set(names)
    return [
        (p, means[p.native_name], tensor_of(p.handle))
        for p in parameters
        if p.name in wanted and p.native_name in means
    ]
