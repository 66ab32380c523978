"""Table of PyTorch's optimizer classes: the rule each follows, and its names of hyperparameters and slots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer

from xweights_torch.tables.newer import Muon


@dataclass(frozen=True)
class OptimizerRow:
    """One optimizer class.

    ``hyper``: neutral name -> key of a parameter group, with the index in a tuple; ``slots``: neutral name -> torch's.
    """

    kind: type[Optimizer]
    rule: str
    hyper: Mapping[str, str]
    slots: Mapping[str, str]
    variant: Mapping[str, Any] = field(default_factory=dict)
    counts: bool = True  # whether it counts its updates


_LR = {"learning_rate": "lr", "weight_decay": "weight_decay"}
_BETAS = {"beta_1": "betas.0", "beta_2": "betas.1", "epsilon": "eps"}
_MOMENTS = {"momentum": "exp_avg", "velocity": "exp_avg_sq"}
_ADAM = {**_LR, **_BETAS, "amsgrad": "amsgrad"}
_ADAM_SLOTS = {**_MOMENTS, "velocity_hat": "max_exp_avg_sq"}
_EXACT = {"cast": "exact", "powers": "double", "decay": "coupled", "decays": "factor"}

_ALL = [
    OptimizerRow(
        torch.optim.SGD, "sgd",
        {**_LR, "momentum": "momentum", "dampening": "dampening", "nesterov": "nesterov"},
        {"momentum": "momentum_buffer"}, {**_EXACT, "rate_inside": False}, counts=False,
    ),
    OptimizerRow(torch.optim.AdamW, "adam", _ADAM, _ADAM_SLOTS, {**_EXACT, "decay": "decoupled", "eps": "corrected"}),
    OptimizerRow(torch.optim.Adam, "adam", _ADAM, _ADAM_SLOTS, {**_EXACT, "eps": "corrected"}),
    OptimizerRow(
        torch.optim.Adamax, "adamax", {**_LR, **_BETAS}, {"momentum": "exp_avg", "norm": "exp_inf"},
        {**_EXACT, "eps": "inside"},
    ),
    OptimizerRow(
        torch.optim.NAdam, "nadam", {**_LR, **_BETAS, "momentum_decay": "momentum_decay"},
        {**_MOMENTS, "product": "mu_product"}, _EXACT,
    ),
    OptimizerRow(
        torch.optim.RMSprop, "rmsprop",
        {**_LR, "rho": "alpha", "epsilon": "eps", "momentum": "momentum", "centered": "centered"},
        {"velocity": "square_avg", "momentum": "momentum_buffer", "average_gradient": "grad_avg"},
        {**_EXACT, "eps": "outside", "rate_inside": False},
    ),
    OptimizerRow(
        torch.optim.Adagrad, "adagrad",
        {**_LR, "lr_decay": "lr_decay", "epsilon": "eps", "initial_accumulator_value": "initial_accumulator_value"},
        {"accumulator": "sum"}, {**_EXACT, "eps": "outside"},
    ),
    OptimizerRow(
        torch.optim.Adadelta, "adadelta", {**_LR, "rho": "rho", "epsilon": "eps"},
        {"accumulated_grad": "square_avg", "accumulated_delta_var": "acc_delta"}, _EXACT,
    ),
    OptimizerRow(
        torch.optim.Adafactor, "adafactor",
        {**_LR, "beta_2_decay": "beta2_decay", "epsilon_1": "eps.0", "epsilon_2": "eps.1", "clip_threshold": "d"},
        {"row": "row_var", "column": "col_var", "velocity": "variance"},
        {**_EXACT, "decay": "decoupled", "eps": "floor", "scale": "before"},
    ),
    OptimizerRow(
        Muon, "muon",
        {**_LR, "momentum": "momentum", "nesterov": "nesterov", "epsilon": "eps", "ns_steps": "ns_steps",
         "muon_a": "ns_coefficients.0", "muon_b": "ns_coefficients.1", "muon_c": "ns_coefficients.2"},
        {"momentum": "momentum_buffer"}, {**_EXACT, "decay": "decoupled", "accumulate": "mean", "narrow": "bfloat16"},
        counts=False,
    ),
]  # fmt: skip
CLASSES = {row.kind: row for row in _ALL if row.kind is not None}


def native_of(optimizer: Any) -> OptimizerRow | None:
    """Return the row of an optimizer; None for an unknown class, including a user's subclass."""
    return CLASSES.get(type(optimizer))


def class_for(rule: str, decay: str) -> OptimizerRow:
    """Return the row that fits a rule best."""
    if rule == "adam":
        return CLASSES[torch.optim.AdamW if decay == "decoupled" else torch.optim.Adam]
    return next(row for row in CLASSES.values() if row.rule == rule)


def value_of(group: Mapping[str, Any], key: str) -> Any:
    """Return a number of a parameter group; ``betas.0`` is the first of a tuple."""
    name, _, index = key.partition(".")
    value = group[name][int(index)] if index else group[name]
    return value.item() if isinstance(value, torch.Tensor) else value


def arguments(native: OptimizerRow, hyper: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a parameter group for hyperparameters; missing ones are taken from ``defaults``."""
    entries: dict[str, Any] = {}
    for neutral, key in native.hyper.items():
        name, _, index = key.partition(".")
        value = hyper.get(neutral)
        if value is None:
            value = 0.0 if neutral == "weight_decay" else value_of(defaults, key)
        if index:
            parts = list(entries.get(name, defaults[name]))
            parts[int(index)] = value
            entries[name] = tuple(parts)
        else:
            entries[name] = value
    return entries
