"""Time calls on Keras models on TensorFlow against hand-written loops of raw ops and ``tf.function`` steps.

A peer starts from the model (its ``weights``), as xweights does. A peer of a bound rule has looked up its variables
before, as the bound rule has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from shapes import Shape, arrays, keras_model, masks, name_values, shapes_with_bert
from tensorflow import raw_ops
from timing import Memory, Timing, compare

import xweights as xw

# Checking all values before the first is written reads them once more.
GOAL_CHECKED = {"many": 1.5, "bert": 1.4, "mid": 1.3}
GOALS_BOUND = {"many": 1.2, "mid": 1.15}


def rows(quick: bool) -> Iterator[Timing | Memory]:
    """Yield the rows."""
    for shape in shapes_with_bert(quick):
        model = keras_model(shape)
        yield from _time_reads(model, shape)
        yield from _time_writes(model, shape)
        yield from _time_edits(model, shape)
        yield from _time_compiled_steps(model, shape)


def raw_read(variable: Any) -> Any:
    """Read a variable as cheaply as possible."""
    return raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)


def raw_write(variable: Any, value: Any) -> None:
    """Write a variable as cheaply as possible; it shares the memory of an array that is aligned to 64 bytes."""
    raw_ops.AssignVariableOp(resource=variable.handle, value=value)


def _time_reads(model: Any, shape: Shape) -> Iterator[Timing]:
    yield compare(
        "get_params(copy=False)", "keras-tensorflow", shape.name,
        lambda: xw.get_params(model, copy=False),
        {"raw ReadVariableOp, np.asarray": lambda: [np.asarray(raw_read(v.value)) for v in model.weights]},
        1.2, idiom=("get_weights", model.get_weights),
    )  # fmt: skip
    yield compare(
        "get_params()", "keras-tensorflow", shape.name,
        lambda: xw.get_params(model),
        {"the same, .copy()": lambda: [np.asarray(raw_read(v.value)).copy() for v in model.weights]},
        1.2, idiom=("get_weights", model.get_weights),
    )  # fmt: skip


def _time_writes(model: Any, shape: Shape) -> Iterator[Timing]:
    for suffix, offset in (("", 4), (", aligned", 0)):
        values = arrays(shape, offset=offset)
        named = name_values(model, values)
        misaligned = arrays(shape, offset=4)  # these can be passed as they are
        for options, goal in (({"allow_nonfinite": True}, 1.2), ({}, GOAL_CHECKED[shape.name])):
            how = "allow_nonfinite=True" if options else "checked"
            yield compare(
                f"set_params({how}){suffix}", "keras-tensorflow", shape.name,
                lambda options=options, named=named: xw.set_params(model, named, **options),
                {"raw AssignVariableOp, misaligned": lambda misaligned=misaligned: _assign(model, misaligned)},
                # xweights has to copy an aligned source, where TensorFlow would share its memory: no peer does that.
                goal if offset else None,
                idiom=("set_weights", lambda values=values: model.set_weights(values)),
            )  # fmt: skip


def _assign(model: Any, values: list[Any]) -> None:
    for v, value in zip(model.weights, values, strict=True):
        raw_write(v.value, value)


def _time_edits(model: Any, shape: Shape) -> Iterator[Timing]:
    low, high, factor = (tf.constant(x, tf.float32) for x in (-0.05, 0.05, 0.999))

    def clip() -> None:
        for v in model.trainable_weights:
            new = raw_ops.ClipByValue(t=raw_read(v.value), clip_value_min=low, clip_value_max=high)
            raw_write(v.value, new)

    def clip_idiom() -> None:
        model.set_weights([np.clip(w, -0.05, 0.05) for w in model.get_weights()])

    yield compare(
        "clip", "keras-tensorflow", shape.name, lambda: xw.clip(model, -0.05, 0.05),
        {"raw Read / ClipByValue / Assign": clip}, 1.2, idiom=("get, np.clip, set", clip_idiom),
    )  # fmt: skip

    def scale() -> None:
        for v in model.trainable_weights:
            raw_write(v.value, raw_ops.Mul(x=raw_read(v.value), y=factor))

    def scale_idiom() -> None:
        model.set_weights([w * 0.999 for w in model.get_weights()])

    yield compare(
        "scale", "keras-tensorflow", shape.name, lambda: xw.scale(model, 0.999),
        {"raw Read / Mul / Assign": scale}, 1.2, idiom=("get, multiply, set", scale_idiom),
    )  # fmt: skip
    keep_masks = masks(shape)
    keep = name_values(model, keep_masks)
    zero = tf.zeros(())

    def mask() -> None:
        for v, keep_mask in zip(model.trainable_weights, keep_masks, strict=True):
            raw_write(v.value, raw_ops.SelectV2(condition=keep_mask, t=raw_read(v.value), e=zero))

    def multiply_views() -> None:
        for v, keep_mask in zip(model.trainable_weights, keep_masks, strict=True):
            raw_write(v.value, np.multiply(np.asarray(raw_read(v.value)), keep_mask))

    def mask_idiom() -> None:
        model.set_weights([w * keep_mask for w, keep_mask in zip(model.get_weights(), keep_masks, strict=True)])

    yield compare(
        "mask", "keras-tensorflow", shape.name, lambda: xw.mask(model, keep),
        {"raw Read / SelectV2 / Assign": mask, "np.multiply on the view, raw Assign": multiply_views}, 1.2,
        idiom=("get, multiply, set", mask_idiom),
    )  # fmt: skip


def _time_compiled_steps(model: Any, shape: Shape) -> Iterator[Timing]:
    """Yield rules inside a tf.function against the same step written by hand; tracing isn't timed."""
    if shape.name == "bert":
        return
    # XLA helps where memory is the limit; it takes minutes to compile 1,000 variables.
    jit = shape.name == "mid"
    variables = [v.value for v in model.trainable_weights]
    low, high = tf.constant(-0.05), tf.constant(0.05)

    def by_hand(low: Any, high: Any) -> None:
        for v in variables:
            v.assign(tf.clip_by_value(v, low, high), read_value=False)

    def idiom() -> None:
        model.set_weights([np.clip(w, -0.05, 0.05) for w in model.get_weights()])

    peer = tf.function(by_hand, jit_compile=jit, autograph=False)
    bound = xw.bind(model, xw.Clip(-0.05, 0.05), where="*kernel")
    step = tf.function(bound, jit_compile=jit, autograph=False)
    suffix = ", jit_compile" if jit else ""
    yield compare(
        f"clip in a tf.function{suffix}", "keras-tensorflow", shape.name, step,
        {"tf.function by hand": lambda: peer(low, high)}, 1.15, idiom=("get, np.clip, set", idiom),
    )  # fmt: skip
    # It compiles itself once its eager calls have cost as much as compiling.
    for _ in range(400):
        if bound._run._step is None:
            bound()
    yield compare(
        "clip, bound, called again and again", "keras-tensorflow", shape.name, bound,
        {"tf.function by hand": lambda: peer(low, high)}, GOALS_BOUND[shape.name],
        idiom=("get, np.clip, set", idiom),
    )  # fmt: skip
