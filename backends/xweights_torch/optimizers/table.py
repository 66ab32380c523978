"""A table: optimizer class of PyTorch -> the rule it follows, and what it calls numbers and slots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer


@dataclass(frozen=True)
class OptimizerRow:
    """``hyper``: neutral word -> key of a parameter group, with its place where that is a tuple; ``slots`` likewise."""

    kind: type[Optimizer]
    rule: str
    hyper: Mapping[str, str]
    slots: Mapping[str, str]
    variant: Mapping[str, Any] = field(default_factory=dict)
    counts: bool = True  # whether it keeps how many updates it made


_RATE = {"learning_rate": "lr", "weight_decay": "weight_decay"}
_BETAS = {"beta_1": "betas.0", "beta_2": "betas.1", "epsilon": "eps"}
_MOMENTS = {"momentum": "exp_avg", "velocity": "exp_avg_sq"}
_ADAM = {**_RATE, **_BETAS, "amsgrad": "amsgrad"}
_ADAM_SLOTS = {**_MOMENTS, "velocity_hat": "max_exp_avg_sq"}
_EXACT = {"cast": "exact", "powers": "double", "decay": "coupled", "decays": "factor"}

_ALL = [
    OptimizerRow(
        torch.optim.SGD, "sgd",
        {**_RATE, "momentum": "momentum", "dampening": "dampening", "nesterov": "nesterov"},
        {"momentum": "momentum_buffer"}, {**_EXACT, "rate_inside": False}, counts=False,
    ),
    OptimizerRow(torch.optim.AdamW, "adam", _ADAM, _ADAM_SLOTS, {**_EXACT, "decay": "decoupled", "eps": "corrected"}),
    OptimizerRow(torch.optim.Adam, "adam", _ADAM, _ADAM_SLOTS, {**_EXACT, "eps": "corrected"}),
    OptimizerRow(
        torch.optim.Adamax, "adamax", {**_RATE, **_BETAS}, {"momentum": "exp_avg", "norm": "exp_inf"},
        {**_EXACT, "eps": "inside"},
    ),
    OptimizerRow(
        torch.optim.NAdam, "nadam", {**_RATE, **_BETAS, "momentum_decay": "momentum_decay"},
        {**_MOMENTS, "product": "mu_product"}, _EXACT,
    ),
    OptimizerRow(
        torch.optim.RMSprop, "rmsprop",
        {**_RATE, "rho": "alpha", "epsilon": "eps", "momentum": "momentum", "centered": "centered"},
        {"velocity": "square_avg", "momentum": "momentum_buffer", "average_gradient": "grad_avg"},
        {**_EXACT, "eps": "outside", "rate_inside": False},
    ),
    OptimizerRow(
        torch.optim.Adagrad, "adagrad",
        {**_RATE, "lr_decay": "lr_decay", "epsilon": "eps", "initial_accumulator_value": "initial_accumulator_value"},
        {"accumulator": "sum"}, {**_EXACT, "eps": "outside"},
    ),
    OptimizerRow(
        torch.optim.Adadelta, "adadelta", {**_RATE, "rho": "rho", "epsilon": "eps"},
        {"accumulated_grad": "square_avg", "accumulated_delta_var": "acc_delta"}, _EXACT,
    ),
    OptimizerRow(
        torch.optim.Adafactor, "adafactor",
        {**_RATE, "beta_2_decay": "beta2_decay", "epsilon_1": "eps.0", "epsilon_2": "eps.1", "clip_threshold": "d"},
        {"row": "row_var", "column": "col_var", "velocity": "variance"},
        {**_EXACT, "decay": "decoupled", "eps": "floor", "scale": "before"},
    ),
    OptimizerRow(
        torch.optim.Muon, "muon",
        {**_RATE, "momentum": "momentum", "nesterov": "nesterov", "epsilon": "eps", "ns_steps": "ns_steps",
         "muon_a": "ns_coefficients.0", "muon_b": "ns_coefficients.1", "muon_c": "ns_coefficients.2"},
        {"momentum": "momentum_buffer"}, {**_EXACT, "decay": "decoupled", "accumulate": "mean", "narrow": "bfloat16"},
        counts=False,
    ),
]  # fmt: skip
CLASSES = {one.kind: one for one in _ALL}


def native_of(optimizer: Any) -> OptimizerRow | None:
    """Return the row of an optimizer; None for a class that isn't known, subclasses of a user included."""
    return CLASSES.get(type(optimizer))


def class_for(rule: str, decay: str) -> OptimizerRow:
    """Return the row that fits a rule best."""
    if rule == "adam":
        return CLASSES[torch.optim.AdamW if decay == "decoupled" else torch.optim.Adam]
    return next(one for one in _ALL if one.rule == rule)


def value_of(group: Mapping[str, Any], key: str) -> Any:
    """Return a number of a parameter group; ``betas.0`` is the first of a tuple."""
    name, _, place = key.partition(".")
    value = group[name][int(place)] if place else group[name]
    return value.item() if isinstance(value, torch.Tensor) else value


def arguments(native: OptimizerRow, hyper: Mapping[str, Any], former: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a parameter group for hyperparameters; what they don't say is taken from ``former``."""
    made: dict[str, Any] = {}
    for word, key in native.hyper.items():
        name, _, place = key.partition(".")
        value = hyper.get(word)
        if value is None:
            value = 0.0 if word == "weight_decay" else value_of(former, key)
        if place:
            parts = list(made.get(name, former[name]))
            parts[int(place)] = value
            made[name] = tuple(parts)
        else:
            made[name] = value
    return made
