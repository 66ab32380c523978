"""Read Keras optimizers into the neutral state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.errors import HandoffError, NotBuiltError, Problems, XweightsError, near
from xweights.optimizers.protocol import Training
from xweights.optimizers.rules.slots import slots_of
from xweights.optimizers.state import Clipping, OptimizerGroup, OptimizerState, WeightEMA
from xweights_keras.optimizers.embedding_gradients import add_rows_variant
from xweights_keras.optimizers.foreign import ForeignOptimizer
from xweights_keras.optimizers.schedules import read_schedule
from xweights_keras.optimizers.table import CLASSES, OptimizerRow, native_of, variant_of
from xweights_keras.storage.slots import read_slot
from xweights_keras.training.holds import foreign_constraint

_CLIPS = {"clipnorm": "norm", "global_clipnorm": "global_norm", "clipvalue": "value"}


def read_state(side: Training, parameters: Sequence[Parameter], step: int | None) -> OptimizerState:
    """Return the state of a Keras optimizer; see ``Optimizing.read``."""
    optimizer = side.optimizer
    problems = Problems("this optimizer can't be read, and nothing was changed")
    native = native_of(optimizer)
    foreign = isinstance(optimizer, ForeignOptimizer)
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        kind = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
        problems.add(HandoffError, f"this is no optimizer of the model's framework\ngot:      {kind}\n"
                     "expected: a keras.optimizers.Optimizer", fix="pass model.optimizer")  # fmt: skip
    elif native is None and not foreign:
        name = type(optimizer).__name__
        fix = "pass its inner_optimizer" if hasattr(optimizer, "inner_optimizer") else None
        text = f"{name} is no optimizer whose rule is known\n{near(name, CLASSES)}"
        problems.add(HandoffError, text, fix=fix)
    elif not optimizer.built:
        problems.add(NotBuiltError, "this optimizer isn't built: it has no slots yet",
                     fix="train a step first, or optimizer.build(model.trainable_variables)")  # fmt: skip
    problems.check()
    for option in ("scheduler", "clip", "ema"):
        if getattr(side, option) is not None:
            problems.add(HandoffError, f"{option}= is outside of Keras' optimizers, which have their own")
    if optimizer.loss_scale_factor is not None:
        problems.add(HandoffError, "loss_scale_factor has no counterpart", fix="train without it")
    members = _match_parameters(optimizer, parameters, problems)
    problems.check()
    groups = _read_foreign_groups(optimizer, members) if foreign else _read_groups(optimizer, native, members)
    slots: dict[str, dict[str, Array]] = {}
    for position, p in members:
        group = next(g for g in groups if p.name in g.names)
        own_slots = (
            optimizer.slots_of(position) if foreign else _read_slots(optimizer, native, position, group, p, problems)
        )
        slots[p.name] = {slot: _read_value(p, value, slot) for slot, value in own_slots.items()}
        for slot, attribute in _extra_slots(optimizer).items():
            variable = getattr(optimizer, attribute)[position]
            slots[p.name][slot] = _read_value(p, variable, slot)
    problems.check()
    factored = _factored_axes(optimizer, groups, members, foreign=foreign)
    state = _build_state(side.model, optimizer, groups, slots, factored, members)
    state = state if foreign else add_rows_variant(state)
    if step is not None and step != state.updates:
        raise HandoffError(f"step= isn't what the optimizer counted\ngot:      {step}\nexpected: {state.updates}")
    return state


def _match_parameters(
    optimizer: Any, parameters: Sequence[Parameter], problems: Problems
) -> list[tuple[int, Parameter]]:
    """Return the trained parameters with their positions in the optimizer."""
    known = {key_of(p.handle): p for p in parameters}
    members, unknown = [], 0
    for position, variable in enumerate(optimizer._trainable_variables):
        p = known.get(key_of(variable))
        if p is None:
            unknown += 1
        elif p.trainable:
            members.append((position, p))
            if foreign_constraint(variable) is not None:
                problems.add(
                    HandoffError,
                    f"{p.name!r} has a constraint, which acts after each update and has no counterpart",
                    fix="take it off, and hold a rule in both frameworks: xw.hold(model, rule, where=...)",
                )
    if unknown:
        count = len(optimizer._trainable_variables)
        problems.add(
            HandoffError,
            f"this optimizer is of another model: {unknown} of its {count} variables aren't among the model's",
            fix="pass the optimizer that was built for this model",
        )
    return members


def key_of(variable: Any) -> int:
    """Return what tells a variable from others, also where a parameter has the backend's own variable."""
    native = (
        variable.value if isinstance(variable, keras.Variable) and keras.backend.backend() == "tensorflow" else variable
    )
    return id(native)


def _read_groups(
    optimizer: Any, native: OptimizerRow | None, members: Sequence[tuple[int, Parameter]]
) -> list[OptimizerGroup]:
    assert native is not None
    hyper = {name: getattr(optimizer, name) for name in native.hyper}
    hyper["learning_rate"] = _lr_of(optimizer)
    if native.rule == "muon":
        return _read_muon_groups(optimizer, native, hyper, members)
    if native.rule == "nadam":
        hyper["momentum_decay"] = 1.0
    decay = float(optimizer.weight_decay or 0.0)
    decaying = [p.name for _, p in members if decay and optimizer._use_weight_decay(p.handle)]
    rest = [p.name for _, p in members if p.name not in set(decaying)]
    variant = variant_of(native)
    groups = [
        OptimizerGroup(native.rule, tuple(names), {**hyper, "weight_decay": value}, variant)
        for names, value in ((decaying, decay), (rest, 0.0))
    ]
    return [group for group in groups if group.names]


def _read_muon_groups(
    optimizer: Any, native: OptimizerRow, hyper: Mapping[str, Any], members: Sequence[tuple[int, Parameter]]
) -> list[OptimizerGroup]:
    adam = CLASSES["Adam"]
    small = {"beta_1": optimizer.adam_beta_1, "beta_2": optimizer.adam_beta_2, "epsilon": optimizer.epsilon,
             "amsgrad": False, "learning_rate": hyper["learning_rate"]}  # fmt: skip
    kinds: dict[tuple[bool, bool], list[str]] = {}
    for _, p in members:
        key = (bool(optimizer._should_use_adamw(p.handle)), bool(optimizer._use_weight_decay(p.handle)))
        kinds.setdefault(key, []).append(p.name)
    groups = []
    for (is_adam, decays), names in kinds.items():
        decay = (optimizer.adam_weight_decay if is_adam else optimizer.weight_decay) if decays else 0.0
        numbers = {**(small if is_adam else hyper), "weight_decay": float(decay or 0.0)}
        factor = float(optimizer.adam_lr_ratio) if is_adam else 1.0
        if is_adam and factor != 1.0:
            # Only the update of these is scaled by the ratio, not their decay.
            numbers["weight_decay"] /= factor
        numbers["learning_rate"] *= factor
        rule = ("adam", variant_of(adam)) if is_adam else ("muon", variant_of(native))
        groups.append(OptimizerGroup(rule[0], tuple(names), numbers, rule[1], factor))
    return groups


def _read_foreign_groups(optimizer: ForeignOptimizer, members: Sequence[tuple[int, Parameter]]) -> list[OptimizerGroup]:
    groups = []
    lr = _lr_of(optimizer)
    for position, group in enumerate(optimizer.spec["groups"]):
        names = [p.name for index, p in members if optimizer.spec["members"][index] == position]
        factor = float(group["factor"])
        hyper = {**group["hyper"], "learning_rate": lr * factor}
        groups.append(OptimizerGroup(group["rule"], tuple(names), hyper, dict(group["variant"]), factor))
    return groups


def _lr_of(optimizer: Any) -> float:
    return float(np.asarray(keras.ops.convert_to_numpy(optimizer.learning_rate)))


def _read_slots(
    optimizer: Any, native: OptimizerRow | None, position: int, group: OptimizerGroup, p: Parameter, problems: Problems
) -> dict[str, Any]:
    assert native is not None
    slots = {}
    for slot in slots_of(group.rule, group.hyper, len(p.shape), among=native.slots):
        held = getattr(optimizer, native.slots[slot], None)
        variable = held if slot == "product" else held[position] if held is not None and position < len(held) else None
        if variable is None:
            problems.add(HandoffError, f"{p.name!r} has no {native.slots[slot].strip('_')!r} in the optimizer",
                         fix="load its variables again, all of them")  # fmt: skip
        else:
            slots[slot] = variable
    return slots


def _read_value(p: Parameter, variable: Any, slot: str) -> Array:
    array = read_slot(variable, p)
    if slot in ("row", "column"):
        # Keras drops the averaged axis; here it is kept, with length 1.
        if array.ndim < len(p.shape):
            array = np.expand_dims(array, -1 if slot == "row" else -2)
        return array
    return array if array.ndim == 0 else np.ascontiguousarray(p.layout.to_neutral(array))


def _extra_slots(optimizer: Any) -> dict[str, str]:
    slots = {}
    if optimizer.use_ema:
        slots["average"] = "_model_variables_moving_average"
    if optimizer.gradient_accumulation_steps:
        slots["accumulated"] = "_accumulated_gradients"
    return slots


def _factored_axes(
    optimizer: Any, groups: Sequence[OptimizerGroup], members: Sequence[tuple[int, Parameter]], *, foreign: bool
) -> dict[str, tuple[int, int]]:
    if foreign:
        axes = optimizer.spec["factored"]
        return {p.name: tuple(axes[position]) for position, p in members if axes[position] is not None}
    if groups[0].rule != "adafactor":
        return {}
    return {p.name: (len(p.shape) - 2, len(p.shape) - 1) for _, p in members if len(p.shape) > 1}


def _build_state(
    model: Any,
    optimizer: Any,
    groups: Sequence[OptimizerGroup],
    slots: Mapping[str, Mapping[str, Array]],
    factored: Mapping[str, tuple[int, int]],
    members: Sequence[tuple[int, Parameter]],
) -> OptimizerState:
    iterations = int(np.asarray(keras.ops.convert_to_numpy(optimizer._iterations)))
    micro_steps = int(optimizer.gradient_accumulation_steps or 1)
    updates, done = divmod(iterations, micro_steps)
    schedule = None
    learning_rate = optimizer._learning_rate
    if callable(learning_rate) and not isinstance(learning_rate, keras.Variable):
        try:
            schedule = read_schedule(
                learning_rate, iterations, model=model, wide=any(p.dtype == np.float64 for _, p in members)
            )
        except XweightsError as error:
            raise type(error)(f"this optimizer can't be read, and nothing was changed\n{error}") from error
    last_lr = None if schedule is None or updates == 0 else schedule.at(updates * micro_steps - 1)
    complete = []
    for group in groups:
        lr = group.hyper["learning_rate"] if last_lr is None else last_lr * group.factor
        complete.append(replace(group, last_rate=lr or 1.0))
    clip = None
    if isinstance(optimizer, ForeignOptimizer):
        clip = None if optimizer.spec["clip"] is None else Clipping(*optimizer.spec["clip"])
    else:
        for attribute, kind in _CLIPS.items():
            if getattr(optimizer, attribute):
                clip = Clipping(kind, float(getattr(optimizer, attribute)))
    moving = None
    if optimizer.use_ema:
        moving = WeightEMA(float(optimizer.ema_momentum), optimizer.ema_overwrite_frequency)
    return OptimizerState(
        groups=tuple(complete),
        slots=slots,
        updates=updates,
        micro_steps=micro_steps,
        micro_done=done,
        schedule=schedule,
        clip=clip,
        moving=moving,
        dtypes={p.name: p.dtype.name for _, p in members},
        factored=factored,
    )
