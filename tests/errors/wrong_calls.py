"""Calls of every public function with each of its arguments wrong once, made from the signatures.

A new public function is covered by itself: its arguments are known by their names. One of a new name is given in
`SAMPLES`, as something that is right.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import xweights as xw


class Strange:
    """An object of a user's own, which no argument takes."""

    def __repr__(self) -> str:
        return "Strange()"


def weights() -> xw.Params:
    arrays = {"d/kernel": np.arange(12, dtype="f4").reshape(3, 4) - 5, "d/bias": np.ones(4, "f4")}
    return xw.Params(arrays, axes={"d/kernel": ("in", "out"), "d/bias": ("out",)})


def adapter() -> dict[str, np.ndarray]:
    return {"d.lora_A.weight": np.ones((1, 3), "f4"), "d.lora_B.weight": np.ones((4, 1), "f4")}


# What is right for an argument of this name; of `function.argument` where one name means several things.
SAMPLES: dict[str, Callable[[], Any]] = {
    "a": weights, "b": weights, "after": weights, "before": weights, "source": weights, "src": lambda: "w.npz",
    "dst": lambda: "other.npz", "target": weights, "targets": lambda: [weights(), weights()], "model": weights,
    "values": weights, "value": lambda: 0.5, "factor": lambda: 0.5, "delta": lambda: 0.5, "low": lambda: -1.0,
    "high": lambda: 1.0, "max": lambda: 1.0, "per": lambda: "out", "seed": lambda: 0, "std": lambda: 0.1,
    "initializer": lambda: "zeros", "keep": lambda: {"d/kernel": np.ones((3, 4), bool)}, "index": lambda: (0, 0),
    "where": lambda: "d/kernel", "rule": lambda: xw.Clip(-1, 1), "fraction": lambda: 0.5, "path": lambda: "w.npz",
    "method": lambda: "average", "names": lambda: {"d/*": "d/*"}, "optimizer": Strange, "to": lambda: "torch",
    "save.path": lambda: "saved.npz", "adapter": adapter, "rank": lambda: 1, "base": weights, "tuned": weights,
    "sample": lambda: np.ones((2, 3), "f4"), "which": lambda: 0, "pattern": lambda: "*", "state": Strange,
    "begin": lambda: 0, "end": lambda: 4, "n": lambda: 2, "m": lambda: 4, "axis": lambda: "in",
    "mapping": lambda: {"w": np.ones(2)}, "function": lambda: lambda step: 0.5, "decay": lambda: 0.9,
    "factors": lambda: {"d/*": 0.5}, "fraction_of": lambda: 0.5, "layer_type": lambda: "Dense", "step": lambda: 0,
    "size": lambda: 2, "batch_size": lambda: 2, "rate": lambda: 0.5, "shape": lambda: (2, 3), "l1": lambda: 0.1,
    "edits": lambda: xw.Clip(-1, 1), "edit_file.rule": lambda: xw.Clip(-1, 1), "prune.fraction": lambda: 0.5,
    "kind": lambda: "constant", "set_optimizer.state": Strange, "training": Strange, "length": lambda: 8,
    "count": lambda: 8, "learning_rate": lambda: 0.1, "framework": lambda: "torch", "batches": lambda: [np.ones(2)],
    "dropout_mask.name": lambda: "dropout", "loss": lambda: lambda *_: 0.0,
    "folder": lambda: "saved", "register_layer.kind": lambda: Strange, "parameters": lambda: {"kernel": ("in", "out")},
}  # fmt: skip
# Not made by users: the results of calls, and what is no function.
RULES = ("xweights.rules.", "xweights.training.sparsity_schedule", "xweights.core.params")
WRONG: dict[str, Callable[[], Any]] = {
    "an object": Strange,
    "a word": lambda: "no such thing",
    "a number": lambda: -7,
}


def public_calls() -> dict[str, Callable[..., Any]]:
    """Return all functions, and the classes that users make objects of, by public name."""
    found = {}
    for name in xw.__all__:
        value = getattr(xw, name)
        is_class = isinstance(value, type)
        if inspect.isfunction(value) or (
            is_class and value.__module__.startswith(RULES) and vars(value).get("__init__")
        ):
            found[name] = value
    return found


def required(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    """Return right values for the arguments that a function needs."""
    # One of several of which one is needed.
    values: dict[str, Any] = {"noise": {"std": 0.1}, "prune": {"fraction": 0.5}, "Noise": {"std": 0.1}}.get(name, {})
    for p in inspect.signature(function).parameters.values():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) or p.default is not p.empty:
            continue
        sample = SAMPLES.get(f"{name}.{p.name}", SAMPLES.get(p.name))
        assert sample is not None, f"tests/errors/wrong_calls.py doesn't know {name}({p.name}=): add it to SAMPLES"
        values[p.name] = sample()
    return values


def wrong_calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield a label and a call for each argument of each public function, wrong in each way."""
    for name, function in public_calls().items():
        for p in inspect.signature(function).parameters.values():
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                continue
            for how, make in WRONG.items():
                yield f"{name}({p.name}={how})", call(name, function, p.name, make)
        yield f"{name}(nonsense=1)", misnamed(name, function)


def call(name: str, function: Callable[..., Any], argument: str, make: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: run(function, required(name, function) | {argument: make()})


def misnamed(name: str, function: Callable[..., Any]) -> Callable[[], Any]:
    return lambda: run(function, required(name, function) | {"nonsense": 1})


def run(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Call a function by position where it takes no names."""
    first = [
        arguments.pop(p.name)
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.POSITIONAL_ONLY and p.name in arguments
    ]
    result = function(*first, **arguments)
    # What does its work when it is entered.
    if hasattr(result, "__enter__") and not hasattr(result, "release"):
        with result:
            pass
    return result


def in_folder(folder: Path) -> None:
    """Make the files that the samples name, and work there."""
    os.chdir(folder)
    xw.save(weights(), "w.npz")
