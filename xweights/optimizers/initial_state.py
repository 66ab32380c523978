"""``optimizer_state``: the state of a new optimizer, described once for every framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xweights.core.casting import is_number
from xweights.core.selection import WhereLike, trainable
from xweights.edit.read import parameters
from xweights.errors import ArgumentError, near
from xweights.optimizers.lr_schedule import LRSchedule
from xweights.optimizers.rules.slots import slots_of
from xweights.optimizers.state import Clipping, OptimizerGroup, OptimizerState, WeightEMA


@dataclass(frozen=True)
class Defaults:
    """The hyperparameters of an update rule with their defaults, and its variant where implementations differ."""

    hyper: Mapping[str, Any]
    variant: Mapping[str, Any] = field(default_factory=dict)


_BETAS = {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-8}
_PLAIN = {"cast": "exact", "powers": "double", "decay": "decoupled", "decays": "factor"}
RULES = {
    "sgd": Defaults({"momentum": 0.0, "nesterov": False, "dampening": 0.0}, {"rate_inside": False}),
    "adam": Defaults({**_BETAS, "amsgrad": False}, {"eps": "corrected"}),
    "adamax": Defaults(_BETAS, {"eps": "inside"}),
    "nadam": Defaults({**_BETAS, "momentum_decay": 4e-3}),
    "rmsprop": Defaults({"rho": 0.99, "momentum": 0.0, "epsilon": 1e-8, "centered": False},
                        {"eps": "outside", "rate_inside": False}),
    "adagrad": Defaults({"epsilon": 1e-10, "initial_accumulator_value": 0.0, "lr_decay": 0.0},
                    {"eps": "outside"}),
    "adadelta": Defaults({"rho": 0.9, "epsilon": 1e-6}),
    "adafactor": Defaults({"beta_2_decay": -0.8, "epsilon_1": 1e-30, "epsilon_2": 1e-3, "clip_threshold": 1.0},
                          {"eps": "added", "scale": "after"}),
    "lion": Defaults({"beta_1": 0.9, "beta_2": 0.99}),
    "ftrl": Defaults({"learning_rate_power": -0.5, "initial_accumulator_value": 0.1, "l1_regularization_strength": 0.0,
                  "l2_regularization_strength": 0.0, "l2_shrinkage_regularization_strength": 0.0, "beta": 0.0}),
    "lamb": Defaults({**_BETAS, "epsilon": 1e-7}),
    "muon": Defaults({"momentum": 0.95, "nesterov": True, "ns_steps": 5, "muon_a": 3.4445, "muon_b": -4.775,
                  "muon_c": 2.0315, "rms_rate": 0.2, "epsilon": 1e-7},
                 {"accumulate": "sum", "adjust": "rms", "narrow": None}),
}  # fmt: skip


def optimizer_state(
    model: Any,
    rule: str,
    *,
    learning_rate: float | LRSchedule,
    weight_decay: float = 0.0,
    coupled: bool = False,
    clip: tuple[str, float] | None = None,
    ema_momentum: float | None = None,
    where: WhereLike | None = None,
    **hyper: Any,
) -> OptimizerState:
    """Return the state of an optimizer that has made no update yet: same rule, same numbers in every framework.

    Args:
        model: The module or model that it will train.
        rule: "sgd", "adam", "adamax", "nadam", "rmsprop", "adagrad", "adadelta", "adafactor", "lion", "ftrl", "lamb" or
            "muon" (matrices; arrays of other ranks then use adam with the same learning rate).
        learning_rate: A number >= 0, or a :func:`schedule`.
        weight_decay: >= 0; ``w -= weight_decay * learning_rate * w`` before each update, or with ``coupled=True`` an
            addition of ``weight_decay * w`` to the gradient.
        coupled: See ``weight_decay``.
        clip: ``("norm", 1.0)``, ``("global_norm", 1.0)`` or ``("value", 1.0)``.
        ema_momentum: Keep an exponential average of the weights; 0 <= momentum < 1.
        where: Which parameters it updates. Default: all that are trainable.
        hyper: Other hyperparameters of the rule, under Keras' names (``momentum beta_1 beta_2 epsilon rho ...``). Their
            defaults are the same in every framework.

    :func:`set_optimizer` builds it: ``xw.set_optimizer(model, None, state).optimizer``. The formulas are those of
    PyTorch where it has the rule, else those of Keras.
    Exact: see :func:`handoff`. Raises ArgumentError, SelectionError.

    Example:
        >>> import torch, xweights as xw
        >>> xw.optimizer_state(torch.nn.Linear(1, 1), "adam", learning_rate=0.1).groups[0].hyper["beta_2"]
        0.999
    """
    if rule not in RULES:
        raise ArgumentError(f"there is no such rule\ngot: {rule!r}\n{near(str(rule), RULES)}")
    for name in hyper:
        if name not in RULES[rule].hyper:
            raise ArgumentError(f"{rule} takes no {name}=\n{near(name, RULES[rule].hyper)}")
    scheduled = isinstance(learning_rate, LRSchedule)
    lr = learning_rate.at(0) if isinstance(learning_rate, LRSchedule) else learning_rate
    for name, value in (("learning_rate", lr), ("weight_decay", weight_decay)):
        if not is_number(value) or not 0 <= value < float("inf"):
            raise ArgumentError(f"{name}= is a number >= 0\ngot: {value!r}")
    if clip is not None and clip[0] not in ("norm", "global_norm", "value"):
        raise ArgumentError(f'clip= is ("norm" | "global_norm" | "value", limit)\ngot: {clip!r}')
    chosen = [p for p in parameters(model, where=trainable() if where is None else where) if p.floating]
    shared = {"learning_rate": float(lr), "weight_decay": float(weight_decay)}
    kinds = {"muon": [p for p in chosen if len(p.shape) == 2 and p.role != "embeddings"]} if rule == "muon" else {}
    kinds[rule if rule != "muon" else "adam"] = [p for p in chosen if p not in kinds.get("muon", [])]
    groups: list[OptimizerGroup] = []
    slots: dict[str, dict[str, Any]] = {}
    for kind, members in kinds.items():
        spec = RULES[kind]
        numbers = {**spec.hyper, **(hyper if kind == rule else {}), **shared}
        variant = {**_PLAIN, **spec.variant, "decay": "coupled" if coupled else "decoupled"}
        group = OptimizerGroup(kind, tuple(p.name for p in members), numbers, variant, last_rate=float(lr) or 1.0)
        if members:
            groups.append(group)
        slots |= {p.name: initial_slots(group, p) for p in members}
    if ema_momentum is not None:
        slots = {p.name: {**slots[p.name], "average": p.numpy()} for p in chosen}
    return OptimizerState(
        groups=tuple(groups),
        slots=slots,
        schedule=learning_rate if scheduled else None,  # type: ignore[arg-type]
        clip=None if clip is None else Clipping(clip[0], float(clip[1])),
        moving=None if ema_momentum is None else WeightEMA(float(ema_momentum)),
        dtypes={p.name: p.dtype.name for p in chosen},
        factored={p.name: (len(p.shape) - 2, len(p.shape) - 1) for p in chosen if len(p.shape) > 1}
        if rule == "adafactor"
        else {},
    )


def initial_slots(group: OptimizerGroup, p: Any) -> dict[str, Any]:
    """Return the slots of a parameter before its first update."""
    slots = {}
    for slot in slots_of(group.rule, group.hyper, len(p.shape), variant=group.variant):
        shape = () if slot == "product" else tuple(p.shape)
        if slot in ("row", "column"):
            averaged = len(shape) - (1 if slot == "row" else 2)
            shape = tuple(1 if axis == averaged else n for axis, n in enumerate(shape))
        accumulator = (group.hyper["initial_accumulator_value"] or 0.0) if slot == "accumulator" else 0.0
        slots[slot] = np.full(shape, 1.0 if slot == "product" else accumulator, p.dtype)
    return slots
