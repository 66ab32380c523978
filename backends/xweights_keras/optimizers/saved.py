"""Keras' optimizers from files, read into the neutral optimizer state.

Keras saves an optimizer's variables by number. Which is which only its class knows, so that one is made with the
settings in the file, built for the model's variables, and filled. Only classes of Keras itself are made, from numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from xweights.core.dtypes import Array, is_never_trained
from xweights.core.parameter import Parameter
from xweights.errors import HandoffError, Problems, near
from xweights.optimizers.protocol import Training
from xweights.optimizers.saved import SavedOptimizer
from xweights.optimizers.state import OptimizerState
from xweights_keras.optimizers.foreign import ForeignOptimizer
from xweights_keras.optimizers.read import key_of, read_state
from xweights_keras.optimizers.table import CLASSES

_SCHEDULES = frozenset(
    {"ExponentialDecay", "InverseTimeDecay", "PiecewiseConstantDecay", "PolynomialDecay", "CosineDecay"}
    | {"CosineDecayRestarts"}
)
# What Keras 2 calls the slots of its classes, in the order in which Keras 3 has them.
_SLOTS_OF_KERAS_2 = {
    "SGD": ("momentum",),
    "Adam": ("m", "v", "vhat"),
    "Adamax": ("m", "v"),
    "RMSprop": ("rms", "momentum", "mg"),
    "Adagrad": ("accumulator",),
    "Adadelta": ("accum_grad", "accum_var"),
    "Ftrl": ("accumulator", "linear"),
}
_ONLY_KERAS_2 = frozenset({"decay", "is_legacy_optimizer", "jit_compile"})
_SHOWN = 12
_DEPTH = 8


def read_saved(
    saved: SavedOptimizer, model: Any, parameters: Sequence[Parameter], rule: Any, step: int | None
) -> OptimizerState:
    """Return the state of an optimizer that Keras saved; see ``Optimizing.read_saved``."""
    saved.check_framework("keras")
    if model is None:
        raise HandoffError(
            f"Keras numbers the variables of an optimizer, and only the model tells which is which: {saved.label}\n"
            "Fix: xweights.get_optimizer(model, path)"
        )
    make, note = _find_settings(saved, model, rule)
    values = _sort(saved, type(make()).__name__)
    pairs = _list_trained(model, parameters)
    trainable = [(variable, p) for variable, p in pairs if p.trainable]
    tried = []
    for title, members in (("the trainable parameters", trainable), ("all parameters", pairs)):
        optimizer = make()
        optimizer.build([variable for variable, _ in members])
        variables = optimizer.variables
        if saved.tree["names"] and not any("learning_rate" in name for name in saved.tree["names"]):
            # Keras 2 keeps it in the settings alone.
            variables = [variable for variable in variables if variable is not optimizer._learning_rate]
        tried.append((title, variables))
        if [tuple(v.shape) for v in variables] == [value.shape for value in values]:
            _fill(saved, variables, values)
            state = read_state(Training(model, optimizer), parameters, step)
            names = ", ".join(p.name for _, p in members[:_SHOWN]) + (", ..." if len(members) > _SHOWN else "")
            notes = [f"matched by order with {title} of the model: {names}", *([note] if note else [])]
            return replace(state, notes=(*notes, *state.notes))
    raise _refuse(saved, tried, values)


def trained_order(model: Any, parameters: Sequence[Parameter]) -> list[Parameter]:
    """Return the parameters that can be trained, in the order of ``model.trainable_variables``, frozen ones between."""
    return [p for _, p in _list_trained(model, parameters)]


def _list_trained(model: Any, parameters: Sequence[Parameter]) -> list[tuple[Any, Parameter]]:
    known = {key_of(p.handle): p for p in parameters if p.floating and not is_never_trained(p.role)}
    return [(variable, known[key_of(variable)]) for variable in model.variables if key_of(variable) in known]


def groups_of(optimizer: Any, parameters: Sequence[Parameter]) -> list[list[Parameter]]:
    """Return no groups: an optimizer of Keras has none."""
    return []


def _find_settings(saved: SavedOptimizer, model: Any, rule: Any) -> tuple[Any, str]:
    """Return the function that makes the optimizer, and a note on where its settings are from."""
    config = saved.tree["config"]
    if isinstance(config, Mapping):
        kind, arguments = _check_config(saved, config)
        if rule is not None and _class_name(rule).lower() != kind.__name__.lower():
            raise HandoffError(
                f"{saved.label} was written by another class\ngot:      {kind.__name__}\nexpected: {_class_name(rule)}"
            )
        return lambda: _call(saved, kind, arguments), ""
    compiled = getattr(model, "optimizer", None)
    given = rule if isinstance(rule, keras.optimizers.Optimizer) else None
    like = given if given is not None else compiled if rule is None else None
    if like is None or (type(like).__name__ not in CLASSES and not isinstance(like, ForeignOptimizer)):
        raise HandoffError(
            f"{saved.label} has the variables of an optimizer, and no settings: neither its class nor its numbers\n"
            f"its name: {saved.tree['name']}\n"
            "Fix: rule=keras.optimizers.AdamW(...), made as the saved one was; or compile the model with it"
        )
    # Keras numbers the optimizers of one process; older releases call AdamW adamw, newer ones adam_w.
    title = re.sub(r"_\d+$", "", str(saved.tree["name"]))
    wanted = type(like).__name__
    if title.replace("_", "") in {name.lower() for name in CLASSES} - {wanted.lower()}:
        raise HandoffError(
            f"{saved.label} was written by another class\ngot:      {title}\n"
            f"expected: {wanted}\nFix: rule=, an optimizer made as the saved one was"
        )
    whose = "rule=" if given is not None else "the optimizer of the model"
    settings = like.get_config()
    return lambda: type(like).from_config(settings), f"the file has no settings: those of {whose} were taken"


def _class_name(rule: Any) -> str:
    if isinstance(rule, str):
        return rule
    return (rule if isinstance(rule, type) else type(rule)).__name__


def _check_config(saved: SavedOptimizer, config: Mapping[str, Any]) -> tuple[type[Any], dict[str, Any]]:
    """Return the class that a config names and its arguments; refuse classes that aren't Keras' own."""
    name, arguments = config.get("class_name"), config.get("config")
    foreign = config.get("registered_name") == "xweights>ForeignOptimizer"
    module = str(config.get("module") or "keras.optimizers")
    # On its torch backend Keras saves classes as keras.src.backend.torch.optimizers.torch_adamw.AdamW.
    is_own = module == "keras.optimizers" or module.startswith("keras.src.")
    if not foreign and (name not in CLASSES or not is_own or config.get("registered_name") not in (None, name)):
        raise HandoffError(
            f"{saved.label} was written by a class whose rule isn't known, and nothing of it was made\n"
            f"got: {module[:80]}.{str(name)[:80]}\n{near(str(name)[:80], CLASSES)}"
        )
    if not isinstance(arguments, Mapping):
        raise _damaged(saved, "its arguments are no mapping")
    if arguments.get("decay"):
        raise HandoffError(
            f"{saved.label} has an optimizer of Keras 2 whose learning rate decays, as none of Keras 3 does\n"
            f"got: decay={str(arguments['decay'])[:80]}\nFix: rule=, an optimizer with keras.optimizers.schedules."
            "InverseTimeDecay"
        )
    arguments = {key: value for key, value in arguments.items() if key not in _ONLY_KERAS_2}
    made = {str(key): _check_value(saved, key, value) for key, value in arguments.items()}
    return (ForeignOptimizer if foreign else CLASSES[str(name)].kind), made


def _check_value(saved: SavedOptimizer, key: Any, value: Any, depth: int = 0) -> Any:
    """Return a setting; a schedule, which is a config again, is made of its class in Keras."""
    if depth > _DEPTH:
        raise _damaged(saved, f"{str(key)[:80]} is nested too deeply")
    if isinstance(value, Mapping) and "class_name" in value:
        name, settings = value["class_name"], value.get("config")
        if key != "learning_rate" or name not in _SCHEDULES or not isinstance(settings, Mapping):
            raise HandoffError(
                f"{saved.label} has a setting that is no number, and nothing of it was made\n"
                f"got: {str(key)[:80]} = {str(value.get('module'))[:80]}.{str(name)[:80]}"
            )
        inner = {str(k): _check_value(saved, k, v, depth + 1) for k, v in settings.items()}
        return _call(saved, getattr(keras.optimizers.schedules, name), inner)
    if isinstance(value, Mapping):
        return {str(k): _check_value(saved, k, v, depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_check_value(saved, key, item, depth + 1) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise _damaged(saved, f"its {str(key)[:80]} is a {type(value).__name__}")


def _call(saved: SavedOptimizer, kind: Any, arguments: Mapping[str, Any]) -> Any:
    try:
        return kind(**arguments)
    except Exception as wrong:  # noqa: BLE001 - whatever Keras makes of wrong settings
        reason = str(wrong).partition("\n")[0][:120]
        raise _damaged(saved, f"{kind.__name__} can't be made of its settings: {reason}") from None


def _damaged(saved: SavedOptimizer, reason: str) -> HandoffError:
    return HandoffError(f"the optimizer in {saved.label} can't be read: {reason}")


def _sort(saved: SavedOptimizer, kind: str) -> list[Array]:
    """Return the values of the optimizer's variables in the order in which Keras 3 has them."""
    variables, names = saved.tree["variables"], saved.tree["names"]
    if sorted(variables, key=len) != sorted(map(str, range(len(variables))), key=len):
        raise _damaged(saved, "its variables aren't numbered one by one, or aren't those that it lists")
    values = [np.asarray(variables[str(number)]) for number in range(len(variables))]
    if not any(name.endswith(":0") for name in names):
        return values
    # Keras 2 up to 2.10 has each slot of all weights ("Adam/dense/kernel/m:0") after the other, since 2.11 those of one
    # weight together ("Adam/m/dense/kernel:0").
    known = _SLOTS_OF_KERAS_2.get(kind, ())
    words = [_slot_word(name.removesuffix(":0").split("/"), known) for name in names]
    by_slot = [[value for value, word in zip(values, words, strict=True) if word == slot] for slot in known]
    steps = [value for value, word in zip(values, words, strict=True) if word in ("iter", "iteration")]
    steps += [value for value, word in zip(values, words, strict=True) if word == "learning_rate"]
    slots = [found for found in by_slot if found]
    whole = len(steps) + sum(map(len, slots)) == len(values) and len(set(map(len, slots))) <= 1
    if not whole or len(steps) != 1 + ("learning_rate" in words):
        listed = ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
        raise HandoffError(
            f"{saved.label} has variables of an optimizer that aren't those of {kind} in Keras 2: {listed}\n"
            "Fix: load the model with the Keras that wrote it, and save it as .keras"
        )
    return [*steps, *(value for values_of_one in zip(*slots, strict=True) for value in values_of_one)]


def _slot_word(words: Sequence[str], slots: Sequence[str]) -> str:
    """Return the word of a variable's name in Keras 2 that says what it is: its last one, or that in front."""
    return next((word for word in words[:2] if word in slots and words[-1] not in slots), words[-1])


def _fill(saved: SavedOptimizer, variables: Sequence[Any], values: Sequence[Array]) -> None:
    problems = Problems(f"the optimizer in {saved.label} can't be read, and nothing was changed")
    for variable, value in zip(variables, values, strict=True):
        expected = keras.backend.standardize_dtype(variable.dtype)
        integers = value.dtype.kind in "iu" and "int" in expected
        if value.dtype.name != expected and not integers:
            text = f"{variable.path!r} is of another dtype\ngot:      {value.dtype.name}\nexpected: {expected}"
            problems.add(HandoffError, text)
    problems.check()
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _refuse(saved: SavedOptimizer, tried: Sequence[tuple[str, Sequence[Any]]], values: Sequence[Array]) -> HandoffError:
    """Return the error for variables that fit no set of the model's parameters, with the list of what differs."""
    same = [variables for _, variables in tried if len(variables) == len(values)]
    expected = ", or ".join(f"{len(variables)} (for {title})" for title, variables in tried)
    variables = same[0] if same else tried[0][1]
    rows = []
    for position in range(max(len(values), len(variables))):
        has = values[position].shape if position < len(values) else None
        wants = variables[position] if position < len(variables) else None
        if has is None or wants is None or has != tuple(wants.shape):
            shown = "nothing" if wants is None else f"{wants.path!r} {tuple(wants.shape)}"
            rows.append(f"  variable {position}, {'nothing' if has is None else has} against {shown}")
    more = [f"  ... and {len(rows) - _SHOWN} more"] if len(rows) > _SHOWN else []
    counts = f"got:      {len(values)} variables\nexpected: {expected}\n" if not same else ""
    listed = "\n".join([*rows[:_SHOWN], *more])
    return HandoffError(
        f"the optimizer in {saved.label} doesn't fit the model, and nothing was changed\n{counts}{listed}\n"
        "Fix: freeze what was frozen when it was saved; its settings have to be those that it had"
    )
