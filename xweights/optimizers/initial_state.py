"""An optimizer that begins, described once for every framework."""

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
from xweights.optimizers.state import Clipping, OptimizerGroup, OptimizerState, WeightEMA


@dataclass(frozen=True)
class Rule:
    """What a rule is told and keeps. ``begin``: what its slots begin with, if not 0."""

    hyper: Mapping[str, Any]
    slots: tuple[str, ...]
    variant: Mapping[str, Any] = field(default_factory=dict)


_BETAS = {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-8}
_PLAIN = {"cast": "exact", "powers": "double", "decay": "decoupled", "decays": "factor"}
RULES = {
    "sgd": Rule({"momentum": 0.0, "nesterov": False, "dampening": 0.0}, ("momentum",), {"rate_inside": False}),
    "adam": Rule({**_BETAS, "amsgrad": False}, ("momentum", "velocity", "velocity_hat"), {"eps": "corrected"}),
    "adamax": Rule(_BETAS, ("momentum", "norm"), {"eps": "inside"}),
    "nadam": Rule({**_BETAS, "momentum_decay": 4e-3}, ("momentum", "velocity", "product")),
    "rmsprop": Rule({"rho": 0.99, "momentum": 0.0, "epsilon": 1e-8, "centered": False},
                    ("velocity", "momentum", "average_gradient"), {"eps": "outside", "rate_inside": False}),
    "adagrad": Rule({"epsilon": 1e-10, "initial_accumulator_value": 0.0, "lr_decay": 0.0}, ("accumulator",),
                    {"eps": "outside"}),
    "adadelta": Rule({"rho": 0.9, "epsilon": 1e-6}, ("accumulated_grad", "accumulated_delta_var")),
    "adafactor": Rule({"beta_2_decay": -0.8, "epsilon_1": 1e-30, "epsilon_2": 1e-3, "clip_threshold": 1.0},
                      ("row", "column", "velocity"), {"eps": "added", "scale": "after"}),
    "lion": Rule({"beta_1": 0.9, "beta_2": 0.99}, ("momentum",)),
    "ftrl": Rule({"learning_rate_power": -0.5, "initial_accumulator_value": 0.1, "l1_regularization_strength": 0.0,
                  "l2_regularization_strength": 0.0, "l2_shrinkage_regularization_strength": 0.0, "beta": 0.0},
                 ("accumulator", "linear")),
    "lamb": Rule({**_BETAS, "epsilon": 1e-7}, ("momentum", "velocity")),
    "muon": Rule({"momentum": 0.95, "nesterov": True, "ns_steps": 5, "muon_a": 3.4445, "muon_b": -4.775,
                  "muon_c": 2.0315, "rms_rate": 0.2, "epsilon": 1e-7}, ("momentum",),
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
    """Describe an optimizer that has made no update yet: the same rule with the same numbers in every framework.

    Args:
        model: The module or model that it will train.
        rule: "sgd", "adam", "adamax", "nadam", "rmsprop", "adagrad", "adadelta", "adafactor", "lion", "ftrl", "lamb" or
            "muon" (matrices; arrays of other ranks then go by adam with the same learning rate).
        learning_rate: A number >= 0, or a :func:`schedule`.
        weight_decay: >= 0; ``w -= weight_decay * learning_rate * w`` before each update, or with ``coupled=True`` an
            addition of ``weight_decay * w`` to the gradient.
        coupled: See ``weight_decay``.
        clip: ``("norm", 1.0)``, ``("global_norm", 1.0)`` or ``("value", 1.0)``.
        ema_momentum: Keep an exponential average of the weights; 0 <= momentum < 1.
        where: Which parameters it updates. Default: all that are trainable.
        hyper: What else the rule takes, in Keras' words (``momentum beta_1 beta_2 epsilon rho ...``). What isn't said
            has one default in every framework.

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
    rate = learning_rate.at(0) if isinstance(learning_rate, LRSchedule) else learning_rate
    for word, value in (("learning_rate", rate), ("weight_decay", weight_decay)):
        if not is_number(value) or not 0 <= value < float("inf"):
            raise ArgumentError(f"{word}= is a number >= 0\ngot: {value!r}")
    if clip is not None and clip[0] not in ("norm", "global_norm", "value"):
        raise ArgumentError(f'clip= is ("norm" | "global_norm" | "value", limit)\ngot: {clip!r}')
    chosen = [p for p in parameters(model, where=trainable() if where is None else where) if p.floating]
    decay = {"learning_rate": float(rate), "weight_decay": float(weight_decay)}
    kinds = {"muon": [p for p in chosen if len(p.shape) == 2 and p.role != "embeddings"]} if rule == "muon" else {}
    kinds[rule if rule != "muon" else "adam"] = [p for p in chosen if p not in kinds.get("muon", [])]
    groups: list[OptimizerGroup] = []
    slots: dict[str, dict[str, Any]] = {}
    for one, mine in kinds.items():
        spec = RULES[one]
        numbers = {**spec.hyper, **(hyper if one == rule else {}), **decay}
        variant = {**_PLAIN, **spec.variant, "decay": "coupled" if coupled else "decoupled"}
        group = OptimizerGroup(one, tuple(p.name for p in mine), numbers, variant, last_rate=float(rate) or 1.0)
        if mine:
            groups.append(group)
        slots |= {p.name: _begun(group, spec, p) for p in mine}
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


def _begun(group: OptimizerGroup, spec: Rule, p: Any) -> dict[str, Any]:
    h = group.hyper
    unwanted = {"velocity_hat"} if not h.get("amsgrad") else set()
    unwanted |= {"average_gradient"} if not h.get("centered") else set()
    if group.rule in ("sgd", "rmsprop") and not h["momentum"]:
        unwanted.add("momentum")
    if len(p.shape) < 2:
        unwanted |= {"row", "column"}
    made = {}
    for slot in spec.slots:
        if slot in unwanted:
            continue
        shape = () if slot == "product" else tuple(p.shape)
        if slot in ("row", "column"):
            gone = len(shape) - (1 if slot == "row" else 2)
            shape = tuple(1 if axis == gone else n for axis, n in enumerate(shape))
        start = 1.0 if slot == "product" else h["initial_accumulator_value"] if slot == "accumulator" else 0.0
        made[slot] = np.full(shape, start, p.dtype)
    return made
