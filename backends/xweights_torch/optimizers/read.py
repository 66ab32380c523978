"""PyTorch's optimizers, read into the neutral record."""

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
from xweights.optimizers.state import Clipping, OptimizerGroup, OptimizerState, WeightEMA
from xweights_torch.dtypes import host_view
from xweights_torch.optimizers.foreign import ForeignOptimizer
from xweights_torch.optimizers.hooks import Attached, attached_to
from xweights_torch.optimizers.schedules import read_scheduler
from xweights_torch.optimizers.table import CLASSES, OptimizerRow, native_of, value_of
from xweights_torch.storage import tensor_of

# What was written into an optimizer, where slots had to be changed on the way.
ORIGINALS: WeakKeyDictionary[Optimizer, tuple[str, OptimizerState]] = WeakKeyDictionary()
# clip_grad_norm_ divides by the norm and this.
CLIP_EPS = 1e-6
_UNKNOWN = ("maximize", "capturable", "differentiable")


@dataclass
class Reading:
    """What has been found so far."""

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
    attached = attached_to(optimizer)
    names = _names(optimizer, parameters, problems)
    problems.check()
    reading = Reading(problems)
    groups = []
    for place, group in enumerate(optimizer.param_groups):
        mine = [names[id(p)] for p in group["params"] if p.requires_grad or optimizer.state.get(p)]
        members = [p for p in group["params"] if p.requires_grad or optimizer.state.get(p)]
        made = _foreign_group(group) if native is None else _group(native, group, reading)
        for p, parameter in zip(members, mine, strict=True):
            _read_slots(optimizer, native, made, p, parameter, reading, attached)
        if native is not None and made.rule == "nadam" and _narrow_product(optimizer, members):
            made = replace(made, variant={**made.variant, "product": "float32"})
        groups.append(replace(made, names=tuple(one.name for one in mine)))
        if native is None:
            _foreign_factored(group, names, reading)
        elif attached is not None and attached.state.factored:
            reading.factored |= dict(attached.state.factored)
        groups[-1] = replace(groups[-1], last_rate=1.0 if attached is None else attached.last_rates[place])
    reading.problems.check()
    state = OptimizerState(
        groups=tuple(groups), slots=reading.slots, factored=reading.factored,
        dtypes={one.name: one.dtype.name for one in parameters if one.name in reading.slots},
    )  # fmt: skip
    state = _with_surroundings(state, side, reading, attached, native, parameters, step)
    return _original(side) or state


def _original(side: Training) -> OptimizerState | None:
    """Return the very state that was written into an optimizer, if nothing has happened since."""
    mark, state = ORIGINALS.get(side.optimizer, ("", None))
    if state is None or side.clip is not None or side.micro_done or side.micro_steps > 1 or side.ema_momentum:
        return None
    if mark != fingerprint(side.optimizer):
        ORIGINALS.pop(side.optimizer, None)
        return None
    return state


def fingerprint(optimizer: Optimizer) -> str:
    """Return what changes with any bit of an optimizer's slots and numbers."""
    import hashlib

    digest = hashlib.blake2b(digest_size=16)
    for group in optimizer.param_groups:
        digest.update(repr({key: value for key, value in group.items() if key != "params"}).encode())
        for p in group["params"]:
            for key, value in optimizer.state.get(p, {}).items():
                digest.update(key.encode())
                digest.update(np.ascontiguousarray(host_view(value)).tobytes() if value is not None else b"")
            digest.update(b"" if p.grad is None else np.ascontiguousarray(host_view(p.grad)).tobytes())
    return digest.hexdigest()


def _names(optimizer: Optimizer, parameters: Sequence[Parameter], problems: Problems) -> dict[int, Parameter]:
    known = {id(tensor_of(p.handle)): p for p in parameters if isinstance(tensor_of(p.handle), nn.Parameter)}
    strange = 0
    for group in optimizer.param_groups:
        for p in group["params"]:
            strange += id(p) not in known
        for word in _UNKNOWN:
            if group.get(word):
                problems.add(HandoffError, f"{word}=True has no counterpart", fix=f"make the optimizer without {word}")
    if strange:
        count = sum(len(group["params"]) for group in optimizer.param_groups)
        problems.add(
            HandoffError,
            f"this optimizer is of another model: {strange} of its {count} parameters aren't among the model's",
            fix="pass the optimizer that was made from this model's parameters()",
        )
    return known


def _group(native: OptimizerRow, group: Mapping[str, Any], reading: Reading) -> OptimizerGroup:
    hyper = {word: value_of(group, key) for word, key in native.hyper.items()}
    variant = dict(native.variant)
    if group.get("decoupled_weight_decay"):
        variant["decay"] = "decoupled"
    if native.rule == "muon":
        fits = {None: "original", "original": "original", "match_rms_adamw": "rms"}
        variant["adjust"] = fits[group["adjust_lr_fn"]]
        hyper["rms_rate"] = 0.2
    if native.rule == "adafactor" and hyper["epsilon_1"] is None:
        hyper["epsilon_1"] = float(torch.finfo(group["params"][0].dtype).eps)
    return OptimizerGroup(native.rule, (), hyper, variant)


def _foreign_group(group: Mapping[str, Any]) -> OptimizerGroup:
    hyper = {**group["hyper"], "learning_rate": float(group["lr"]), "weight_decay": group["weight_decay"]}
    return OptimizerGroup(group["rule"], (), hyper, dict(group["variant"]))


def _foreign_factored(group: Mapping[str, Any], names: Mapping[int, Parameter], reading: Reading) -> None:
    if group["factored"] is not None:
        for p, axes in zip(group["params"], group["factored"], strict=True):
            if axes is not None:
                one, two = (names[id(p)].layout.inverse[axis] for axis in axes)
                reading.factored[names[id(p)].name] = (one, two)


def _read_slots(
    optimizer: Optimizer, native: OptimizerRow | None, group: OptimizerGroup, p: torch.Tensor, parameter: Parameter,
    reading: Reading, attached: Attached | None,
) -> None:  # fmt: skip
    state = optimizer.state.get(p, {})
    table = dict(native.slots) if native is not None else {name: name for name in state if name not in _COUNTS}
    wanted = wanted_slots(group, p.ndim, table)
    slots: dict[str, Array] = {}
    begun = any(state.get(key) is not None for key in table.values())
    for slot in wanted:
        value = state.get(table[slot])
        if value is not None:
            slots[slot] = _neutral(parameter, value, slot)
        elif begun:
            reading.problems.add(HandoffError, f"{parameter.name!r} has no {table[slot]!r}, though it has others",
                                 fix="load the whole state_dict of the optimizer")  # fmt: skip
        else:
            slots[slot] = _fresh(group, parameter, p, slot)
    reading.slots[parameter.name] = slots
    if native is not None and group.rule == "adafactor" and p.ndim > 1:
        inverse = parameter.layout.inverse
        reading.factored[parameter.name] = (inverse[p.ndim - 2], inverse[p.ndim - 1])
    if "step" in state or (native is not None and native.counts):
        reading.steps[parameter.name] = _steps(state)


def _narrow_product(optimizer: Optimizer, members: Sequence[torch.Tensor]) -> bool:
    """Return whether nadam's product is narrower than the weights: it has torch's default dtype."""
    first = next(iter(members), None)
    if first is None or first.dtype != torch.float64:
        return False
    product = optimizer.state.get(first, {}).get("mu_product")
    return (torch.get_default_dtype() if product is None else product.dtype) == torch.float32


_COUNTS = frozenset({"step"})


def _steps(state: Mapping[str, Any]) -> int:
    return int(float(state.get("step", 0)))


def wanted_slots(group: OptimizerGroup, rank: int, table: Mapping[str, str]) -> list[str]:
    """Return the slots that a rule with these settings keeps, for an array of so many axes."""
    hyper = group.hyper
    unwanted = set()
    if group.rule in ("sgd", "rmsprop") and not hyper.get("momentum"):
        unwanted.add("momentum")
    if not hyper.get("amsgrad"):
        unwanted.add("velocity_hat")
    if not hyper.get("centered"):
        unwanted.add("average_gradient")
    if group.rule == "adafactor":
        unwanted |= {"row", "column"} if rank < 2 else set()
        if rank > 1 and group.variant.get("eps") == "floor":
            unwanted.add("velocity")
    return [slot for slot in table if slot not in unwanted]


def _neutral(parameter: Parameter, value: torch.Tensor, slot: str) -> Array:
    array = np.array(host_view(value.detach()))
    if array.ndim == 0 or (slot in ("row", "column") and array.ndim != len(parameter.layout.order)):
        return array
    if slot in ("row", "column"):
        return np.ascontiguousarray(array.transpose(parameter.layout.order))
    return np.ascontiguousarray(parameter.layout.to_neutral(array))


def _fresh(group: OptimizerGroup, parameter: Parameter, p: torch.Tensor, slot: str) -> Array:
    """Return a slot as it is before the first step, which torch makes when it comes."""
    if slot == "product":
        return np.ones((), parameter.dtype)
    shape = list(parameter.shape)
    if slot in ("row", "column"):
        inverse = parameter.layout.inverse
        shape[inverse[p.ndim - 1 if slot == "row" else p.ndim - 2]] = 1
    value = group.hyper.get("initial_accumulator_value") or 0.0 if slot == "accumulator" else 0.0
    return np.full(shape, value, parameter.dtype)


def _with_surroundings(
    state: OptimizerState, side: Training, reading: Reading, attached: Attached | None, native: OptimizerRow | None,
    parameters: Sequence[Parameter], step: int | None,
) -> OptimizerState:  # fmt: skip
    problems = reading.problems
    rates, factors = None, [1.0] * len(state.groups)
    if side.scheduler is not None:
        try:
            rates, factors = read_scheduler(side.scheduler, side.optimizer)
        except XweightsError as wrong:
            problems.add(type(wrong), str(wrong))
    if attached is not None:
        shown = [{"learning_rate": g.hyper["learning_rate"], "weight_decay": g.hyper.get("weight_decay")}
                 for g in state.groups]  # fmt: skip
        state = attached.current(state.slots, shown)
        updates = attached.updates
    else:
        updates = _updates(state, reading, native, step, side, problems)
        state = replace(state, groups=tuple(replace(g, factor=f) for g, f in zip(state.groups, factors, strict=True)))
    if step is not None and step != updates:
        problems.add(HandoffError, f"step= isn't what the optimizer counted\ngot:      {step}\nexpected: {updates}")
    if rates is not None and side.scheduler.last_epoch != updates:
        problems.add(
            HandoffError,
            f"the scheduler was stepped {side.scheduler.last_epoch} times and the optimizer {updates} times: a rate "
            "that changes by the epoch has no counterpart",
            fix="step the scheduler after each update, with its numbers in updates",
        )
    problems.check()
    state = replace(state, updates=updates, schedule=rates or state.schedule)
    if side.clip is not None:
        kind, limit = side.clip
        state = replace(state, clip=Clipping(kind, float(limit), 0.0 if kind == "value" else CLIP_EPS))
    if side.micro_steps > 1:
        state = replace(state, micro_steps=side.micro_steps)
    if side.micro_done:
        state = replace(state, micro_done=side.micro_done, slots=_accumulated(state, parameters))
    ema = side.ema if side.ema is not None else (attached.ema if attached is not None else None)
    if ema is not None:
        state = _with_average(state, ema, side, parameters)
    return state


def _updates(
    state: OptimizerState,
    reading: Reading,
    native: OptimizerRow | None,
    step: int | None,
    side: Training,
    problems: Problems,
) -> int:
    counts = {count for name, count in reading.steps.items() if name in state.names}
    if len(counts) == 1:
        return counts.pop()
    if counts:
        few = {name: count for name, count in reading.steps.items() if count != max(counts)}
        name, count = next(iter(few.items()))
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


def _accumulated(state: OptimizerState, parameters: Sequence[Parameter]) -> dict[str, dict[str, Array]]:
    slots = {name: dict(mine) for name, mine in state.slots.items()}
    for p in parameters:
        if p.name in slots:
            grad = tensor_of(p.handle).grad
            made = np.zeros(p.shape, p.dtype) if grad is None else _neutral(p, grad, "accumulated")
            slots[p.name]["accumulated"] = made
    return slots


def _with_average(state: OptimizerState, ema: Any, side: Training, parameters: Sequence[Parameter]) -> OptimizerState:
    moving = state.moving if side.ema_momentum is None else WeightEMA(float(side.ema_momentum))
    if moving is None:
        raise HandoffError("an AveragedModel doesn't tell its momentum\nFix: Training(..., ema_momentum=0.999)")
    means = averaged_pairs(ema, parameters, state.names)
    slots = {name: dict(mine) for name, mine in state.slots.items()}
    for p, mean, _ in means:
        slots[p.name]["average"] = _neutral(p, mean, "average")
    return replace(state, moving=moving, slots=slots)


def averaged_pairs(
    ema: Any, parameters: Sequence[Parameter], names: Sequence[str]
) -> list[tuple[Parameter, torch.Tensor, torch.Tensor]]:
    """Return (parameter, mean, weight) for what an AveragedModel averages."""
    means = dict(ema.module.named_parameters())
    wanted = set(names)
    return [
        (p, means[p.native_name], tensor_of(p.handle))
        for p in parameters
        if p.name in wanted and p.native_name in means
    ]
