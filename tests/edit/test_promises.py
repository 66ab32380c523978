"""Promises of every verb and user function: nothing half done, no interruption in the middle, little memory."""

from __future__ import annotations

import signal
import tracemalloc

import numpy as np
import pytest

import xweights as xw
from xweights.core.layout import plain_layout
from xweights.core.numpy_backend import NumpyStorage
from xweights.core.parameter import Parameter

# Functions of the user.


def test_a_function_may_return_a_new_array_or_edit_in_place() -> None:
    def doubled(w):
        w *= 2
        return w

    target = {"w": np.array([1.0, 2.0]), "s": np.array(3.0)}
    home = target["w"]
    xw.apply(target, lambda w: w + 1, where=...)
    xw.apply(target, doubled, where=...)
    xw.apply(target, lambda w: w[::-1] if w.ndim else w, where="w")
    assert target["w"] is home
    assert (home.tolist(), float(target["s"])) == ([6.0, 4.0], 8.0)


def edits_then_raises(w):
    w[:] = 7.0
    if w.size == 3:
        raise RuntimeError("in the middle")
    return w


BAD_FUNCTIONS = {
    "another shape": (lambda w: w[:1] if w.size == 3 else w * 2, xw.ShapeError, "changed the shape of 'b'"),
    "a number": (lambda w: 1.0 if w.size == 3 else w * 2, xw.ShapeError, "changed the shape of 'b'"),
    "another dtype": (lambda w: w.astype(np.float32) if w.size == 3 else w * 2, xw.DtypeError, "changed the dtype"),
    "none": (lambda w: w.fill(0) if w.size == 3 else w * 2, xw.ArgumentError, "returned None for 'b'"),
    "a list": (lambda w: w.tolist() if w.size == 3 else w * 2, xw.ArgumentError, "no tensor for 'b'"),
    "an error": (edits_then_raises, RuntimeError, "in the middle"),
}


@pytest.mark.parametrize("fault", BAD_FUNCTIONS)
def test_a_function_that_fails_leaves_everything_as_it_was(fault: str) -> None:
    function, kind, text = BAD_FUNCTIONS[fault]
    target = {"a": np.arange(2.0), "b": np.arange(3.0), "c": np.arange(4.0)}
    with pytest.raises(kind, match=text):
        xw.apply(target, function, where=...)
    assert [array.tolist() for array in target.values()] == [[0, 1], [0, 1, 2], [0, 1, 2, 3]]


def test_ctrl_c_inside_a_function_leaves_everything_as_it_was() -> None:
    def interrupted(w):
        w[:] = 7.0
        if w.size == 3:
            signal.raise_signal(signal.SIGINT)
        return w

    target = {"a": np.arange(2.0), "b": np.arange(3.0)}
    with pytest.raises(KeyboardInterrupt):
        xw.apply(target, interrupted, where=...)
    assert [array.tolist() for array in target.values()] == [[0, 1], [0, 1, 2]]


def test_a_class_is_no_rule() -> None:
    with pytest.raises(xw.ArgumentError, match="an instance"):
        xw.apply({"w": np.ones(1)}, xw.Clip, where="w")


# What holds around every verb.


class Interrupted(NumpyStorage):
    """Storage whose second edit is interrupted by Ctrl-C."""

    def __init__(self) -> None:
        self.edits = 0

    def commit(self, handle, native, value) -> None:
        self.edits += 1
        if self.edits == 2:
            signal.raise_signal(signal.SIGINT)
        super().commit(handle, native, value)


VERBS = {
    "fill": lambda t: xw.fill(t, 2.0),
    "scale": lambda t: xw.scale(t, 3e38),
    "add": lambda t: xw.add(t, 3e38),
    "clip": lambda t: xw.clip(t, -0.5, 0),
    "clip_norm": lambda t: xw.clip_norm(t, 0.5, scope="global"),
    "noise": lambda t: xw.noise(t, 1e38, seed=0),
    "init": lambda t: xw.init(t, "uniform", seed=0),
    "prune": lambda t: xw.prune(t, fraction=0.5, scope="global"),
    "mask": lambda t: xw.mask(t, np.array(False)),
    "non_negative": lambda t: xw.non_negative(t),
    "set_entries": lambda t: xw.set_entries(t, (0,), 0.5, where=...),
    "spectral_norm": lambda t: xw.spectral_norm(t, 0.5),
}


@pytest.mark.parametrize("verb", VERBS)
def test_ctrl_c_in_the_middle_of_a_verb_waits_until_it_is_done(verb: str) -> None:
    def three(storage) -> list[Parameter]:
        return [
            Parameter(name=f"{i}/kernel", native_name=f"{i}", layout=plain_layout((2, 2)), dtype=np.dtype(np.float32),
                      storage=storage, handle=np.arange(-1, 3, dtype=np.float32).reshape(2, 2))
            for i in range(3)
        ]  # fmt: skip

    calm, interrupted = three(NumpyStorage()), three(Interrupted())
    VERBS[verb](calm)
    with pytest.raises(KeyboardInterrupt):
        VERBS[verb](interrupted)
    assert [p.handle.tobytes() for p in interrupted] == [p.handle.tobytes() for p in calm]


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_stops_in_the_middle_where_numpy_is_set_to_raise(verb: str) -> None:
    target = {"a/kernel": np.full((2, 2), 3e38, np.float32), "b/kernel": np.full((2, 2), -3e38, np.float32)}
    calm = {name: array.copy() for name, array in target.items()}
    VERBS[verb](calm)
    with np.errstate(all="raise"):
        VERBS[verb](target)
    assert [array.tobytes() for array in target.values()] == [array.tobytes() for array in calm.values()]


@pytest.mark.parametrize("verb", VERBS)
def test_a_read_only_array_is_refused_by_every_verb_and_nothing_is_written(verb: str) -> None:
    target = {"a/kernel": np.ones((2, 2), np.float32), "b/kernel": np.ones((2, 2), np.float32)}
    target["b/kernel"].flags.writeable = False
    with pytest.raises(xw.WriteError, match="'b/kernel' can't be written: the array is read-only"):
        VERBS[verb](target)
    assert target["a/kernel"].tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_everything_a_rule_refuses_is_raised_at_once() -> None:
    target = {"a/kernel": np.ones(2), "b/kernel": np.ones(2, np.int32), "c/kernel": np.ones((2, 2))}
    with pytest.raises(xw.XweightsError) as caught:
        xw.apply(target, xw.MaxNorm(1.0, "out"), where=...)
    assert isinstance(caught.value, (xw.LayoutError, xw.DtypeError))
    assert all(name in str(caught.value) for name in target)


def test_an_error_in_one_parameter_leaves_the_others_untouched() -> None:
    target = {"a": np.ones(3), "b": np.ones(4)}
    with pytest.raises(xw.ShapeError):
        xw.scale(target, np.full(3, 2.0))
    assert target["a"].tolist() == [1.0, 1.0, 1.0]


LARGE = 1 << 24  # float32 entries: 64 MB


@pytest.mark.parametrize(
    "verb",
    [
        lambda target, other, keep: xw.clip(target, -0.5, 0.5),
        lambda target, other, keep: xw.clip(target, 0, 0.5),
        lambda target, other, keep: xw.scale(target, 0.9),
        lambda target, other, keep: xw.add(target, {"kernel": other}),
        lambda target, other, keep: xw.mask(target, keep),
        lambda target, other, keep: xw.noise(target, 0.1, seed=0),
        lambda target, other, keep: xw.noise(target, low=-0.1, high=0.1, seed=0),
        lambda target, other, keep: xw.clip_norm(target, 1.0),
        lambda target, other, keep: xw.set_params(target, {"kernel": other}),
        lambda target, other, keep: xw.set_params(target, {"kernel": other}, allow_nonfinite=True),
    ],
    ids=["clip", "clip at zero", "scale", "add", "mask", "noise", "uniform noise", "clip_norm", "set", "set nonfinite"],
)
def test_an_edit_of_64_mb_takes_less_than_2_mib_more(verb) -> None:
    target = {"kernel": np.ones((1 << 12, LARGE >> 12), np.float32)}
    other, keep = np.asfortranarray(target["kernel"]), target["kernel"] > 0
    tracemalloc.start()
    try:
        verb(target, other, keep)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20
