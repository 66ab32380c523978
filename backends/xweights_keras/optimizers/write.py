"""Write the neutral state into Keras optimizers.

Keras has no hooks: :class:`ForeignOptimizer` computes what Keras' own classes can't.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import keras
import numpy as np

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
from xweights.optimizers.state import OptimizerGroup, OptimizerState, scale_momentum_by_lr
from xweights_keras.optimizers.embedding_gradients import rows_of
from xweights_keras.optimizers.foreign import ForeignOptimizer
from xweights_keras.optimizers.schedules import make_schedule
from xweights_keras.optimizers.table import CLASSES, OptimizerRow, class_for, native_of, variant_of
from xweights_keras.storage.slots import back_up_slot, write_slot

_CLIPS = {"norm": "clipnorm", "global_norm": "global_clipnorm", "value": "clipvalue"}

NARROW = (
    "it goes on with the same roundings to {}, where a sum in another order moves an entry by 0.4 % now and then: "
    "permuting the rows of a batch does so, too"
)


def shim_reason(state: OptimizerState) -> str:
    """Return why none of Keras' own classes continues from a state exactly; "" if one does."""
    rules = {group.rule for group in state.groups}
    if rules == {"muon", "adam"} and _is_own_muon(state):
        return ""
    if len(rules) > 1:
        return "its groups follow several rules"
    first = state.groups[0]
    native = class_for(first.rule, decays=False)
    if native is None:
        return f"Keras has no {first.rule}"
    wide = "float64" in state.dtypes.values()
    for group in state.groups:
        reason = _rule_differs(state, group, native, wide) or _rows_differ(state, group) or _groups_differ(group, first)
        if reason:
            return reason
    decays = {group.hyper.get("weight_decay") or 0.0 for group in state.groups}
    if len(decays - {0.0}) > 1:
        return "its groups decay by different amounts"
    if state.clip is not None and state.clip.eps:
        return "its gradients are clipped by the norm and a small number"
    return ""


def _is_own_muon(state: OptimizerState) -> bool:
    if "Muon" not in CLASSES:
        return False
    own = {"muon": variant_of(CLASSES["Muon"]), "adam": variant_of(CLASSES["Adam"])}
    variants = [{key: value for key, value in group.variant.items() if key != "rows"} for group in state.groups]
    alike = all(variant == own[group.rule] for variant, group in zip(variants, state.groups, strict=True))
    return alike and not any(_rows_differ(state, group) for group in state.groups)


def _rows_differ(state: OptimizerState, group: OptimizerGroup) -> str:
    """Return a reason if Keras' own class doesn't sum the gradients of embeddings first, and the source does."""
    own = rows_of(group, clipped=state.clip is not None, micro_steps=state.micro_steps)
    return (
        "Keras' own squares an embedding's gradients before it adds them up"
        if own and not group.variant.get("rows")
        else ""
    )


def _groups_differ(group: OptimizerGroup, first: OptimizerGroup) -> str:
    ignored = ("weight_decay", "initial_accumulator_value")
    for key in {*group.hyper, *first.hyper} - set(ignored):
        if group.hyper.get(key) != first.hyper.get(key):
            return f"its groups differ in {key}"
    return "its groups differ in the learning rate" if group.factor != first.factor else ""


def _rule_differs(state: OptimizerState, group: OptimizerGroup, native: OptimizerRow, wide: bool) -> str:
    v, h = group.variant, group.hyper
    own = variant_of(native)
    momentum = bool(h.get("momentum"))
    if h.get("weight_decay") and v.get("decay") != "decoupled" and (group.rule != "sgd" or momentum):
        return "weight decay acts on the gradients, here on the weights alone"
    for key in ("eps", "scale", "accumulate", "adjust", "narrow"):
        if key == "eps" and group.rule == "adagrad" and not h.get("epsilon"):
            continue  # it is in the accumulator
        if key in own and v.get(key) != own[key]:
            return f"its formula is another one ({key}: {v.get(key)}, here {own[key]})"
    inside = group.rule in ("sgd", "rmsprop") and momentum and not v.get("rate_inside")
    if inside and (state.schedule is not None or group.rule == "rmsprop"):
        return "the learning rate is outside of the momentum, and changes"
    if inside and not h["learning_rate"]:
        return "the learning rate is 0, and Keras' momentum has it inside: it would be lost"
    if h.get("dampening") and state.updates == 0:
        return "dampening doesn't count in the first update"
    powers = group.rule in ("adam", "adamax", "nadam", "lamb", "adafactor")
    if powers and v.get("powers") != own["powers"]:
        return "its powers of beta are computed in float64, here in the dtype of the weights"
    if h.get("lr_decay"):
        return "its learning rate has a decay of its own"
    if group.rule == "nadam" and h.get("momentum_decay") != 1.0:
        return f"momentum_decay is {h.get('momentum_decay')}, here always 1"
    if wide and v.get("cast") != own["cast"] and own["cast"] == "float32":
        numbers = [h["learning_rate"], h.get("weight_decay") or 0.0, *(h[name] for name in native.scaled)]
        if any(float(np.float32(number)) != number for number in numbers):
            return "its numbers don't fit into float32, by way of which Keras casts them"
    elif wide and v.get("cast") != own["cast"]:
        return "its numbers went through float32, as on another backend of Keras"
    if wide and keras.config.floatx() != "float64" and float(np.float32(h["learning_rate"])) != h["learning_rate"]:
        return "its learning rate doesn't fit into float32, in which Keras keeps it"
    return ""


def plan_route(state: OptimizerState, parameters: Sequence[Parameter], optimizer: Any, grade: str) -> Route:
    """Return how a state gets into an optimizer; see ``Optimizing.plan``."""
    reason = shim_reason(state)
    refusals = []
    parts = []
    for group in state.groups:
        own = class_for(group.rule, decays=bool(group.hyper.get("weight_decay")))
        grade_of = "exact (shim)" if reason else "stock"
        name = own.name if own is not None else "class"
        if group.variant.get("narrow"):
            parts.append(Part(group.rule, "close", NARROW.format(group.variant["narrow"])))
        else:
            parts.append(Part(group.rule, grade_of, reason or f"keras.optimizers.{name} follows the same rule"))
    how = "exact (shim)" if reason else "stock"
    if state.schedule is not None:
        parts.append(Part("schedule", "stock" if state.schedule.precision == "float32" else "exact (shim)",
                          "a schedule of the optimizer's own"))  # fmt: skip
    if state.clip is not None:
        parts.append(Part("clipping", how, "inside of the optimizer"))
    if state.moving is not None:
        parts.append(Part("moving average", "stock", "use_ema of the optimizer"))
    if state.micro_steps > 1:
        parts.append(Part("accumulation", "stock", f"gradient_accumulation_steps={state.micro_steps}"))
    if grade == "stock" and reason:
        refusals.append(f"{state.rule} goes on by no class of Keras' own: {reason}")
    trainable = {p.name for p in parameters if p.trainable}
    refusals += [
        f"{name!r} is trainable here, and not updated on the other side\n"
        "Fix: xw.freeze(model, where=...), or set trainable=False on its layer"
        for name in sorted(trainable - set(state.names))
    ]
    refusals += [
        f"{name!r} is frozen here, and updated on the other side" for name in sorted(set(state.names) - trainable)
    ]
    transposed = {p.name for p in parameters if not p.layout.is_identity}
    refusals += [
        f"{name!r} isn't in neutral order here, and {group.rule} looks at rows and columns"
        for group in state.groups
        if group.rule in ("adafactor", "muon")
        for name in group.names
        if name in transposed
    ]
    kept = all(
        rows_of(g, clipped=state.clip is not None, micro_steps=state.micro_steps)
        for g in state.groups
        if g.variant.get("rows")
    )
    if reason or not kept:
        parts += embedding_gradient_parts(state)
        refusals += [f"{part.name}: {part.why}" for part in embedding_gradient_parts(state) if grade == "stock"]
    if optimizer is not None and not refusals:
        refusals += _optimizer_differs(optimizer, state, parameters, shim=bool(reason))
    return Route("shim" if reason else "stock", tuple(parts), tuple(refusals))


def _optimizer_differs(
    optimizer: Any, state: OptimizerState, parameters: Sequence[Parameter], *, shim: bool
) -> list[str]:
    """Return why an existing optimizer can't take the state: a compiled one can't be changed."""
    fix = "\nFix: pass None in its place, and take the one in the report"
    needed = _make_optimizer(state, shim=shim, wide="float64" in state.dtypes.values(), parameters=parameters)
    same = type(optimizer) is type(needed)
    if not same or (native_of(optimizer) is None and not isinstance(optimizer, ForeignOptimizer)):
        return [f"the optimizer given is {type(optimizer).__name__}, and {type(needed).__name__} is needed{fix}"]
    wanted, config = needed.get_config(), optimizer.get_config()
    differing = [key for key in wanted if key not in ("name", "learning_rate") and wanted[key] != config.get(key)]
    lrs = wanted["learning_rate"], config["learning_rate"]
    if isinstance(lrs[0], dict) != isinstance(lrs[1], dict) or (isinstance(lrs[0], dict) and lrs[0] != lrs[1]):
        differing.append("learning_rate")
    if differing:
        shown = "; ".join(f"{key} is {config.get(key)!r}, not {wanted[key]!r}" for key in differing)
        return [f"the settings of the optimizer given aren't those of the state: {shown}{fix}"]
    known = {id(p.handle) for p in parameters}
    if optimizer.built and any(id(v) not in known for v in optimizer._trainable_variables):
        return [f"the optimizer given is of another model{fix}"]
    if optimizer.built and len(optimizer._trainable_variables) != len(state.names):
        return [f"the optimizer given was built for other variables{fix}"]
    return []


@contextmanager
def use_floatx(dtype: str) -> Iterator[None]:
    """Make Keras use this dtype for new variables."""
    former = keras.config.floatx()
    keras.config.set_floatx(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(former)


def _make_optimizer(state: OptimizerState, *, shim: bool, wide: bool, parameters: Sequence[Parameter]) -> Any:
    """Return a new optimizer with the settings of a state; its slots come later."""
    first = state.groups[0]
    lr: Any = float(first.hyper["learning_rate"]) / first.factor
    if state.schedule is not None:
        lr = make_schedule(state.schedule)
    options: dict[str, Any] = {}
    if state.moving is not None:
        options |= {"use_ema": True, "ema_momentum": state.moving.momentum,
                    "ema_overwrite_frequency": state.moving.every}  # fmt: skip
    if state.micro_steps > 1:
        options["gradient_accumulation_steps"] = state.micro_steps
    if shim:
        with use_floatx("float64" if wide else keras.config.floatx()):
            return _make_foreign(state, lr, parameters, options)
    if state.clip is not None:
        options[_CLIPS[state.clip.kind]] = state.clip.limit
    main = next((group for group in state.groups if group.rule == "muon"), first)
    decays = max(float(group.hyper.get("weight_decay") or 0.0) for group in state.groups)
    native = class_for(main.rule, decays=decays > 0)
    assert native is not None
    hyper = {key: main.hyper[key] for key in native.hyper if key in main.hyper}
    if "momentum" in hyper:
        hyper["momentum"] = float(hyper["momentum"])  # Keras takes no 0
    if main.rule == "muon":
        options |= _muon_options(state, main)
        decays = float(main.hyper.get("weight_decay") or 0.0)
    if main.hyper.get("dampening") and not callable(lr):
        lr *= 1.0 - main.hyper["dampening"]
    options["weight_decay"] = decays or None
    return native.kind(lr, **hyper, **options)


def _muon_options(state: OptimizerState, main: OptimizerGroup) -> dict[str, Any]:
    adam = next((group for group in state.groups if group.rule == "adam"), None)
    if adam is None:
        return {}
    return {"adam_beta_1": adam.hyper["beta_1"], "adam_beta_2": adam.hyper["beta_2"],
            "adam_weight_decay": (adam.hyper.get("weight_decay") or 0.0) * adam.factor or None,
            "adam_lr_ratio": adam.factor / main.factor}  # fmt: skip


def _make_foreign(state: OptimizerState, lr: Any, parameters: Sequence[Parameter], options: Mapping[str, Any]) -> Any:
    groups = []
    base = state.groups[0]
    for group in drop_rows_variant(state).groups:
        factor = group.factor
        if state.schedule is None:
            own, first = group.hyper["learning_rate"], base.hyper["learning_rate"]
            factor = own / first if first else group.factor / base.factor
        hyper = {key: value for key, value in group.hyper.items() if key != "learning_rate"}
        slots = dict.fromkeys([slot for slot in _slots_of(state, group) if slot not in ("average", "accumulated")], 0.0)
        groups.append({"rule": group.rule, "hyper": hyper, "variant": dict(group.variant),
                       "factor": factor, "slots": slots})  # fmt: skip
    if state.schedule is None:
        lr = float(base.hyper["learning_rate"])
    names = [p.name for p in _trained(state, parameters)]
    members = [next(i for i, group in enumerate(state.groups) if name in group.names) for name in names]
    clip = None if state.clip is None else (state.clip.kind, state.clip.limit, state.clip.eps)
    factored = [state.factored.get(name) for name in names]
    return ForeignOptimizer(lr, groups, members, factored, clip, **options)


def _slots_of(state: OptimizerState, group: OptimizerGroup) -> list[str]:
    return list(dict.fromkeys(slot for name in group.names for slot in state.slots[name]))


def _trained(state: OptimizerState, parameters: Sequence[Parameter]) -> list[Parameter]:
    wanted = set(state.names)
    return [p for p in parameters if p.name in wanted]


def write_state(side: Training, state: OptimizerState, parameters: Sequence[Parameter], route: Route) -> WrittenState:
    """Build or fill an optimizer; see ``Optimizing.write``."""
    wide = "float64" in state.dtypes.values()
    shim = route.kind == "shim"
    trained = _trained(state, parameters)
    optimizer = side.optimizer
    if optimizer is None:
        optimizer = _make_optimizer(state, shim=shim, wide=wide, parameters=parameters)
    if not optimizer.built:
        decays = {name for group in state.groups if group.hyper.get("weight_decay") for name in group.names}
        undecayed = [p.handle for p in trained if p.name not in decays]
        if not shim and decays and undecayed:
            optimizer.exclude_from_weight_decay(var_list=undecayed)
        optimizer.build([p.handle for p in trained])
    positions = {id(v): position for position, v in enumerate(optimizer._trainable_variables)}
    if not callable(optimizer._learning_rate) or isinstance(optimizer._learning_rate, keras.Variable):
        lr = float(state.groups[0].hyper["learning_rate"]) / (1.0 if shim else state.groups[0].factor)
        damped = not shim and state.groups[0].hyper.get("dampening")
        optimizer.learning_rate = lr * (1.0 - damped) if damped else lr
    optimizer._iterations.assign(state.iterations)
    for p in trained:
        _fill_slots(optimizer, state, p, positions[id(p.handle)], shim=shim)
    return WrittenState(optimizer)


def _fill_slots(optimizer: Any, state: OptimizerState, p: Parameter, position: int, *, shim: bool) -> None:
    group, values = state.group_of(p.name), state.slots[p.name]
    if optimizer.use_ema:
        _assign_slot(optimizer._model_variables_moving_average[position], p, values["average"])
    if optimizer.gradient_accumulation_steps and "accumulated" in values:
        _assign_slot(optimizer._accumulated_gradients[position], p, values["accumulated"])
    if shim:
        for slot, variable in optimizer.slots_of(position).items():
            _assign_slot(variable, p, values[slot])
        return
    native = native_of(optimizer)
    assert native is not None
    for slot in slots_of(group.rule, group.hyper, len(p.shape), among=native.slots):
        held = getattr(optimizer, native.slots[slot])
        variable = held if slot == "product" else held[position]
        value = values.get(slot)
        if value is None:
            continue  # adafactor's estimate of a matrix, which it computes again in every step
        if slot == "momentum" and group.rule in ("sgd", "rmsprop"):
            lr = float(group.hyper["learning_rate"])
            value = (
                value if group.variant.get("rate_inside") else scale_momentum_by_lr(replace(group, last_rate=lr), value)
            )
        _assign_slot(variable, p, value)


def _assign_slot(variable: Any, p: Parameter, value: Array) -> None:
    stored = p.layout.to_stored(value) if value.ndim and value.size == p.size else value
    write_slot(variable, p, np.asarray(stored))


def backup(optimizer: Any) -> Callable[[], None]:
    """Return a function that restores an optimizer; see ``Optimizing.backup``."""
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        return lambda: None
    product = getattr(optimizer, "_u_product", None)
    variables = [*optimizer.variables, *([] if product is None else [product])]
    restores = [back_up_slot(variable) for variable in variables]

    def restore() -> None:
        for restore_slot in restores:
            restore_slot()

    return restore
