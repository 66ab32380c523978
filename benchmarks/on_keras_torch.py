"""Time calls on Keras models on torch against hand-written loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from shapes import Shape, arrays, keras_model, name_values, shapes_with_bert
from timing import Memory, Timing, compare

import xweights as xw


def rows(quick: bool) -> Iterator[Timing | Memory]:
    """Yield the rows."""
    for shape in shapes_with_bert(quick):
        model = keras_model(shape)
        yield from _time_reads(model, shape)
        yield from _time_writes(model, shape)
        yield from _time_edits(model, shape)


def _time_reads(model: Any, shape: Shape) -> Iterator[Timing]:
    yield compare(
        "get_params(copy=False)", "keras-torch", shape.name, lambda: xw.get_params(model, copy=False),
        {"v._value.detach().numpy()": lambda: [v._value.detach().numpy() for v in model.weights]},
        1.5, idiom=("get_weights", model.get_weights),
    )  # fmt: skip
    yield compare(
        "get_params()", "keras-torch", shape.name, lambda: xw.get_params(model),
        {"the same, .copy()": lambda: [v._value.detach().numpy().copy() for v in model.weights]},
        1.25, idiom=("get_weights", model.get_weights),
    )  # fmt: skip


def _time_writes(model: Any, shape: Shape) -> Iterator[Timing]:
    values = arrays(shape)
    named = name_values(model, values)

    def foreach() -> None:
        with torch.no_grad():
            torch._foreach_copy_([v._value for v in model.weights], [torch.from_numpy(a) for a in values])

    def copyto() -> None:
        for v, value in zip(model.weights, values, strict=True):
            np.copyto(v._value.detach().numpy(), value)

    for how, options, goal in (("allow_nonfinite=True", {"allow_nonfinite": True}, 1.3), ("checked", {}, 1.5)):
        yield compare(
            f"set_params({how})", "keras-torch", shape.name,
            lambda options=options: xw.set_params(model, named, **options),
            {"_foreach_copy_": foreach, "np.copyto": copyto}, goal,
            idiom=("set_weights", lambda: model.set_weights(values)),
        )  # fmt: skip


def _time_edits(model: Any, shape: Shape) -> Iterator[Timing]:
    @torch.no_grad()
    def clamp() -> None:
        for v in model.weights:
            v._value.clamp_(-0.05, 0.05)

    @torch.no_grad()
    def multiply() -> None:
        torch._foreach_mul_([v._value for v in model.weights], 0.999)

    bound = xw.bind(model, xw.Clip(-0.05, 0.05), where=...)
    edits: dict[str, tuple[Callable[[], Any], dict[str, Callable[[], Any]], float]] = {
        "clip": (lambda: xw.clip(model, -0.05, 0.05, where=...), {"clamp_": clamp}, 1.25),
        "scale": (lambda: xw.scale(model, 0.999, where=...), {"_foreach_mul_": multiply}, 1.25),
        "clip, bound": (bound, {"clamp_": clamp}, 1.1),
    }
    for title, (ours, peers, goal) in edits.items():
        yield compare(title, "keras-torch", shape.name, ours, peers, goal)
