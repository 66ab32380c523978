"""Rows that read or write whole arrays, or undo: small scripts on one twin, measured by reads by hand.

All of them move bits, so any bit pattern goes in: subnormals, both zeros, NaN of every payload.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

import xweights as xw
from harness import values
from harness.columns import DTYPES, Column
from harness.compare import FAR, Gap, gap
from harness.running import COMPILERS, eager_twin, wide_enough
from harness.twins import NAMES, Arrays, Twin, as_params
from xweights.errors import TraceError

ON_HOST = "works on the host: refused inside a compiled step, with the advice to call it before or after"
EAGER = "says something about eager code; a step that can't be compiled has not run"
HostRow = Callable[[Twin, Arrays], Gap]


class _StopError(Exception):
    pass


def _get_params(twin: Twin, start: Arrays) -> Gap:
    got = xw.get_params(twin.target, where=NAMES)
    assert dict(got.axes) == dict(as_params(start).axes) or twin.axes_unknown
    return gap(got, start, bits=True)


def _get_params_view(twin: Twin, start: Arrays) -> Gap:
    got = xw.get_params(twin.target, where=NAMES, copy=False)
    assert not any(array.flags.writeable for array in got.values()), "a view that can be written"
    return gap(got, start, bits=True)


def _set_params(twin: Twin, start: Arrays) -> Gap:
    new = values.make("bits", start[NAMES[0]].dtype, seed=2)
    params = as_params({name: array.copy() for name, array in new.items()})
    xw.set_params(twin.target, params, allow_nonfinite=True)
    for array in params.values():
        array.fill(7)  # the caller's arrays must not have become the target's
    return gap(twin.read(), new, bits=True)


def _set_params_subset(twin: Twin, start: Arrays) -> Gap:
    new = values.make("bits", start[NAMES[0]].dtype, seed=3)
    subset = {name: new[name] for name in ("conv/kernel", "cell/kernel", "norm/moving_mean")}
    xw.set_params(twin.target, subset, strict=False, allow_nonfinite=True)
    return gap(twin.read(), start | subset, bits=True)


def _native(twin: Twin, start: Arrays) -> Gap:
    other = values.make("bits", start[NAMES[0]].dtype, seed=4)
    native = xw.get_params(twin.target, layout="native")
    twin.load(other)
    xw.set_params(twin.target, dict(native), layout="native", allow_nonfinite=True)
    return gap(twin.read(), start, bits=True)


def _refused(twin: Twin, start: Arrays) -> Gap:
    bad: dict[str, Any] = {name: np.zeros_like(array) for name, array in start.items()}
    bad[NAMES[-1]] = np.zeros((1, 2), start[NAMES[0]].dtype)
    with contextlib.suppress(xw.ShapeError):
        xw.set_params(twin.target, bad)
        raise AssertionError("a wrong shape was accepted")
    return gap(twin.read(), start, bits=True)


def _snapshot(twin: Twin, start: Arrays) -> Gap:
    before = xw.snapshot(twin.target)
    xw.fill(twin.target, 0.5)
    twin.load(values.make("plain", start[NAMES[0]].dtype, seed=5))
    before.restore()
    return gap(twin.read(), start, bits=True)


def _transaction(twin: Twin, start: Arrays) -> Gap:
    with contextlib.suppress(_StopError), xw.transaction(twin.target):
        xw.scale(twin.target, 0.5)
        twin.load(values.make("plain", start[NAMES[0]].dtype, seed=5))  # writes of the user's own
        raise _StopError
    return gap(twin.read(), start, bits=True)


def _failing(twin: Twin, start: Arrays) -> Gap:
    seen: list[Any] = []

    def function(w: Any) -> Any:
        seen.append(w)
        if len(seen) == 3:
            raise _StopError
        return w * w

    with contextlib.suppress(_StopError):
        xw.apply(twin.target, function, where=NAMES)
        raise AssertionError("the function's own error was lost")
    return gap(twin.read(), start, bits=True)


def _diff(twin: Twin, start: Arrays) -> Gap:
    same = as_params({name: array.copy() for name, array in start.items()})
    other = same.copy()
    other["conv/kernel"][2, 1, 3, 0] = other["conv/kernel"][0, 0, 0, 0]
    result = xw.diff(twin.target, other)
    reported = [(change.name, change.changed) for change in result.changes]
    right = (
        not xw.diff(twin.target, twin.target)
        and xw.equal(twin.target, same)
        and not xw.equal(twin.target, other)
        and reported == [("conv/kernel", 1)]
        and not (result.only_a or result.only_b)
    )
    return Gap() if right else Gap(FAR, float("inf"), 1, f"diff reported {reported}")


def _stats(twin: Twin, start: Arrays) -> Gap:
    result, want = xw.stats(twin.target, where=NAMES), {}
    got = {name: np.array([row.norm, row.mean, row.min, row.max]) for name, row in result.items()}
    for name, array in start.items():
        wide = array.astype(np.float64)
        want[name] = np.array([np.sqrt((wide**2).sum()), wide.mean(), wide.min(), wide.max()])
    return gap(got, want, bits=False)


def _merge(twin: Twin, start: Arrays) -> Gap:
    other = values.make("plain", start[NAMES[0]].dtype, seed=6)
    xw.merge([twin.target, as_params(other)], into=twin.target, layout="neutral", where=NAMES)
    want = {}
    for name, array in start.items():
        want[name] = ((array.astype(np.float64) + other[name].astype(np.float64)) / 2).astype(array.dtype)
    return gap(twin.read(), want, bits=True)


def _merge_ties(twin: Twin, start: Arrays) -> Gap:
    """Merge by TIES arrays in which many entries are equal, so that ties at the edge count."""
    dtype = start[NAMES[0]].dtype
    other, base = (values.make("plain", dtype, seed=seed) for seed in (6, 7))
    targets = [twin.target, as_params(other)]
    got = xw.merge(targets, "ties", base=as_params(base), density=0.3, layout="neutral", where=NAMES)
    wide, want = np.dtype(np.float64 if dtype.itemsize == 8 else np.float32), {}
    for name, array in start.items():
        origin, trimmed = base[name].astype(wide), []
        for x in (array, other[name]):
            vector = x.astype(wide) - origin
            dropped = np.argsort(np.abs(vector), axis=None, kind="stable")[
                : vector.size - max(1, int(0.3 * vector.size))
            ]
            vector[np.unravel_index(dropped, vector.shape)] = 0
            trimmed.append(vector)
        sign = np.where(trimmed[0] + trimmed[1] >= 0, 1, -1)
        agreeing = [np.where(np.sign(vector) == sign, vector, 0) for vector in trimmed]
        share = np.maximum(1, sum((vector != 0).astype(wide) for vector in agreeing))
        want[name] = (origin + (agreeing[0] + agreeing[1]) / share).astype(dtype)
    return gap(got, want, bits=True)


# name: (script, kind of values, rtol)
HOST_ROWS: dict[str, tuple[HostRow, str, float]] = {
    "get_params": (_get_params, "bits", 0.0),
    "get_params(copy=False)": (_get_params_view, "bits", 0.0),
    "get_params(layout='native'), set_params back": (_native, "bits", 0.0),
    "set_params(Params)": (_set_params, "bits", 0.0),
    "set_params(mapping, strict=False)": (_set_params_subset, "bits", 0.0),
    "set_params, refused: nothing changes": (_refused, "bits", 0.0),
    "apply(function) that fails: nothing changes": (_failing, "special", 0.0),
    "snapshot, restore": (_snapshot, "bits", 0.0),
    "transaction, after an exception": (_transaction, "bits", 0.0),
    "diff, equal": (_diff, "bits", 0.0),
    "stats": (_stats, "plain", 1e-12),
    "merge(into=), average": (_merge, "plain", 0.0),
    "merge('ties')": (_merge_ties, "plain", 0.0),
}


def run_host(name: str, column: Column, dtype: str) -> Gap:
    """Run one of these rows and measure it."""
    script, kind, _ = HOST_ROWS[name]
    if traceable(name, column):
        return run_traced(column, dtype)
    with wide_enough(column, dtype):
        twin, start = eager_twin(column, dtype), values.make(kind, DTYPES[dtype])
        twin.load(start)
        before = twin.identity()
        distance = script(twin, start)
        assert twin.identity() == before, "a parameter was replaced by another object"
    return distance


def traceable(name: str, column: Column) -> bool:
    """Return whether the row can be part of a compiled step: only set_params, and only where verbs are traced."""
    return name == "set_params(Params)" and column.framework == "tensorflow" and column.mode != "eager"


def why_not_compiled(name: str) -> str:
    return EAGER if "nothing changes" in name else ON_HOST


def run_traced(column: Column, dtype: str) -> Gap:
    """Run set_params inside a ``tf.function``: the values become constants of the graph."""
    twin, new = column.twin(DTYPES[dtype]), values.make("bits", DTYPES[dtype], seed=2)
    params = as_params(new)
    step = COMPILERS[column.framework, column.mode](
        [lambda: xw.set_params(twin.target, params, allow_nonfinite=True)], [twin]
    )
    step()
    twin.load(values.make("plain", DTYPES[dtype]))
    step()
    return gap(twin.read(), new, bits=True)


HOST_CALLS: dict[str, Callable[[Any], Any]] = {
    "get_params": xw.get_params,
    "snapshot": xw.snapshot,
    "diff": lambda target: xw.diff(target, target),
    "stats": xw.stats,
    "merge": lambda target: xw.merge([target, target]),
}


def check_host_refusal(call: str, column: Column) -> None:
    """Check that inside a compiled step the call is refused with a clear error and changes nothing."""
    twin, start = column.twin(DTYPES["float32"]), values.make("plain", DTYPES["float32"])
    twin.load(start)
    # What is installed is looked up before the step: Dynamo can't trace importlib.metadata.
    xw.parameters(twin.target)
    raised: list[BaseException] = []

    def body() -> None:
        try:
            HOST_CALLS[call](twin.target)
        except TraceError as error:
            raised.append(error)
            raise

    step = COMPILERS[column.framework, column.mode]([body], [twin])
    try:
        step()
    except Exception as error:
        causes = [error, error.__cause__, error.__context__]
        if not any(isinstance(problem, TraceError) or "UseBindError" in str(problem) for problem in [*causes, *raised]):
            raise AssertionError(f"{call} inside {column.id}: {type(error).__name__}: {error}") from error
    else:
        raise AssertionError(f"{call} inside {column.id} was not refused")
    assert gap(twin.read(), start, bits=True).entries == 0
