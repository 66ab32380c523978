"""Time calls on Keras models on JAX against one jitted call of all arrays, which takes over their buffers.

Compiling isn't timed: 1,000 arrays take the peer 2 to 3 seconds. JAX returns before the work is done, so every
candidate waits for its arrays. Each side edits a model of its own: whether a jitted call can take over an array depends
on who made it, and copies what NumPy did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from shapes import Shape, arrays, keras_model, masks, name_values, shapes_with_bert
from timing import Memory, Timing
from timing import compare as compare_with

import xweights as xw

compare = partial(compare_with, goal=1.2)


def rows(quick: bool) -> Iterator[Timing | Memory]:
    """Yield the rows."""
    for shape in shapes_with_bert(quick):
        model = keras_model(shape)
        yield from _time_reads(model, shape)
        yield from _time_writes(model, shape)
        yield from _time_edits(model, shape)


def _wait(model: Any) -> None:
    jax.block_until_ready([v._value for v in model.weights])


def _time_reads(model: Any, shape: Shape) -> Iterator[Timing]:
    yield compare(
        "get_params(copy=False)", "keras-jax", shape.name, lambda: xw.get_params(model, copy=False),
        {"np.asarray(v._value)": lambda: [np.asarray(v._value) for v in model.weights]},
        idiom=("get_weights", model.get_weights),
    )  # fmt: skip
    yield compare(
        "get_params()", "keras-jax", shape.name, lambda: xw.get_params(model),
        {"the same, .copy()": lambda: [np.asarray(v._value).copy() for v in model.weights]},
        idiom=("get_weights", model.get_weights),
    )  # fmt: skip


def _time_writes(model: Any, shape: Shape) -> Iterator[Timing]:
    values = arrays(shape, offset=4)  # JAX would share the memory of arrays that are aligned to 64 bytes
    named = name_values(model, values)

    def put() -> None:
        for v, value in zip(model.weights, values, strict=True):
            v._value = jax.device_put(value)
        _wait(model)

    def assign() -> None:
        for v, value in zip(model.weights, values, strict=True):
            v.assign(value)
        _wait(model)

    for how, options in (("allow_nonfinite=True", {"allow_nonfinite": True}), ("checked", {})):

        def ours(options: Any = options) -> None:
            xw.set_params(model, named, **options)
            _wait(model)

        yield compare(
            f"set_params({how})", "keras-jax", shape.name, ours, {"device_put": put, "v.assign": assign},
            idiom=("set_weights", lambda: model.set_weights(values)),
        )  # fmt: skip


def _time_edits(model: Any, shape: Shape) -> Iterator[Timing]:
    mask_arrays = masks(shape)
    keep = name_values(model, mask_arrays)
    jitted_clip = _jit(lambda ws: [jnp.clip(w, -0.05, 0.05) for w in ws])
    jitted_scale = _jit(lambda ws: [w * np.float32(0.999) for w in ws])
    jitted_mask = _jit(lambda ws, ms: [jnp.where(m, w, 0) for w, m in zip(ws, ms, strict=True)])
    on_device = [jnp.asarray(mask) for mask in mask_arrays]
    other = keras_model(shape)
    _edit(other, jitted_scale)
    bound = xw.bind(model, xw.Clip(-0.05, 0.05), where=...)
    edits: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "clip": (lambda: xw.clip(model, -0.05, 0.05, where=...), partial(_edit, other, jitted_clip)),
        "scale": (lambda: xw.scale(model, 0.999, where=...), partial(_edit, other, jitted_scale)),
        "mask": (lambda: xw.mask(model, keep, where=...), partial(_edit, other, jitted_mask, on_device)),
        "clip, bound": (bound, partial(_edit, other, jitted_clip)),
        "a step that donates, then clip": (
            lambda: (_edit(model, jitted_scale), xw.clip(model, -0.05, 0.05, where=...)),
            lambda: (_edit(other, jitted_scale), _edit(other, jitted_clip)),
        ),
    }
    for title, (call, peer) in edits.items():

        def ours(call: Callable[[], Any] = call) -> None:
            call()
            _wait(model)

        for _ in range(8):  # it compiles once eager calls have cost as much
            ours()
        yield compare(title, "keras-jax", shape.name, ours, {"one jitted call": peer})


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(function, donate_argnums=0)


def _edit(model: Any, step: Callable[..., Any], *operands: Sequence[Any]) -> None:
    for v, value in zip(model.weights, step([v._value for v in model.weights], *operands), strict=True):
        v._value = value
    _wait(model)
