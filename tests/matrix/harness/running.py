"""Run a cell: the row's body on a twin of the column and on the referee, and the distance between them.

Steps of one family are compiled together, once per process: compiling is what the matrix spends its time on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from harness import values
from harness.columns import DTYPES, Column
from harness.compare import Gap, gap
from harness.hands import Bound, Now
from harness.naive import Naive
from harness.rows import FIRST, ROWS, Row
from harness.twins import AXES, FEW, Arrays, Twin
from xweights.errors import LayoutError

Finished = dict[str, tuple[Twin, Arrays]]
ON_TORCH = "measured in the column of torch only: compiling takes seconds, and the row is a variant of another"
TOO_SLOW = "measured in float32 only: compiling takes seconds, and the row is a variant of another"
NO_AXES = "needs axis names, and a tf.Module has none: refused with a LayoutError"


@contextmanager
def wide_enough(column: Column, dtype: str) -> Iterator[None]:
    """Turn on JAX's 64-bit mode, which float64 needs and a user turns on for a whole process."""
    if column.framework != "jax" or dtype != "float64":
        yield
        return
    import jax

    # For the process, not by jax.enable_x64(): that is for one thread, and callbacks run in others.
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


def refused(row: Row, column: Column) -> str | None:
    """Return the reason why this column has to refuse the row, or None."""
    return NO_AXES if row.needs == "axes" and not _has_axes(column) else None


def unmeasured(row: Row, column: Column, dtype: str) -> str | None:
    """Return the reason why this cell is left out, or None."""
    if column.mode not in row.slow:
        return None
    if column is Column.KERAS_TORCH_COMPILED:
        return ON_TORCH
    return TOO_SLOW if dtype != "float32" else None


def later(row: Row, column: Column, dtype: str) -> bool:
    """Return whether compiling the cell takes so long that CI leaves it to ``nox -s nightly``.

    CI compiles in float32: on torch and by XLA the first rows of each family and the chains, whose fences keep
    compilers from contracting two rules to one; by tf.function every row. Keras adds nothing to what a tf.Module or a
    torch module of the same framework was compiled with, so that its columns have the rows which a tf.Module refuses.
    """
    if column.mode == "eager":
        return False
    if dtype != "float32" or column is Column.KERAS_TORCH_COMPILED:
        return True
    if column.keras == "tensorflow" and row.needs != "axes":
        return True
    return column.mode != "function" and row.name not in FIRST


def few_of(column: Column, dtype: str) -> tuple[str, ...]:
    """Return the arrays that a selection is narrowed to, where compiling takes seconds for each."""
    return () if column.mode != "compiled" else FEW if dtype == "float32" else FEW[:2]


def _has_axes(column: Column) -> bool:
    return column.twin_name != "tf_module"


@cache
def eager_twin(column: Column, dtype: str) -> Twin:
    """Return one model for all eager cells of a column and dtype: each loads its own values, by hand."""
    return column.twin(DTYPES[dtype])


def check_refusal(row: Row, column: Column, dtype: str) -> None:
    """Check that the row is refused and the target unchanged."""
    twin = eager_twin(column, dtype)
    start = values.make(row.values, DTYPES[dtype])
    twin.load(start)
    try:
        row.body(Now(twin.target))
    except LayoutError:
        change = gap(twin.read(), start, bits=True)
        assert change.entries == 0, f"a refused call changed something: {change}"
    else:
        raise AssertionError(f"{row.name} was done to a target without axes")


def run(row: Row, column: Column, dtype: str) -> Gap:
    """Run one cell and measure it."""
    with wide_enough(column, dtype):
        if column.mode == "eager":
            return run_eager(row, column, dtype)
        return run_compiled(row, column, dtype)


def run_eager(row: Row, column: Column, dtype: str) -> Gap:
    """Run the verbs as a script calls them, and compare what they return (masks) as well."""
    twin = eager_twin(column, dtype)
    start = values.make(row.values, DTYPES[dtype])
    twin.load(start)
    before = twin.identity()
    returned = row.body(Now(twin.target))
    assert twin.identity() == before, "a verb replaced a parameter by another object"
    want, expected = referee(row, start, twin)
    distance = gap(twin.read(), want, bits=row.bits)
    if distance.entries == 0 and isinstance(expected, dict):
        distance = gap(returned, expected, bits=True)
    return distance


def referee(row: Row, start: Arrays, twin: Twin, few: tuple[str, ...] = ()) -> tuple[Arrays, Any]:
    """Return the row's expected result: (arrays, what the verb returns)."""
    naive = Naive({name: array.copy() for name, array in start.items()}, AXES, twin.trained, few)
    expected = row.body(naive)
    return naive.w, expected


# Compiled steps


def run_compiled(row: Row, column: Column, dtype: str) -> Gap:
    """Run the verbs in a compiled step, together with those of the row's family on twins of their own."""
    finished = family_of(row.family, column, dtype, later(row, column, dtype))
    if row.name not in finished:
        # It couldn't be compiled: run alone it raises the reason.
        finished = run_steps([row], column, dtype)
    twin, start = finished[row.name]
    want, _ = referee(row, start, twin, few_of(column, dtype))
    return gap(twin.read(), want, bits=row.bits)


@cache
def family_of(family: str, column: Column, dtype: str, night: bool) -> Finished:
    """Run every row of a family in one compiled step; those that can't be compiled are left out.

    ``night``: the rows that CI leaves out, or those that it runs.
    """
    rows = [row for row in ROWS.values() if row.family == family and unmeasured(row, column, dtype) is None]
    rows = [row for row in rows if later(row, column, dtype) is night]
    return _compilable([row for row in rows if refused(row, column) is None], column, dtype)


def _compilable(rows: list[Row], column: Column, dtype: str) -> Finished:
    try:
        return run_steps(rows, column, dtype)
    except Exception:  # noqa: BLE001 - whatever it is, the row at fault will raise it again
        half = len(rows) // 2
        parts = [rows[:half], rows[half:]] if half else []
        return {name: result for part in parts for name, result in _compilable(part, column, dtype).items()}


def run_steps(rows: list[Row], column: Column, dtype: str) -> Finished:
    """Compile one step for these rows, each on its own twin, and run it as often as the row draws."""
    twins = [column.twin(DTYPES[dtype]) for _ in rows]
    starts = [values.make(row.values, DTYPES[dtype]) for row in rows]
    for twin, start in zip(twins, starts, strict=True):
        twin.load(start)
    traced = column.framework == "tensorflow" and not any(row.draws for row in rows)
    bodies: list[Callable[[], Any]] = []
    draws: list[list[int]] = []
    bound: list[Bound] = []
    for row, twin in zip(rows, twins, strict=True):
        if traced:  # TensorFlow traces the verbs themselves
            bodies.append(lambda row=row, twin=twin: row.body(Now(twin.target)))
            continue
        hand = Bound(twin.target, twin.trained, few_of(column, dtype))
        row.body(hand)
        bound.append(hand)
        bodies += hand.steps
        draws.append(hand.draws)
    step = COMPILERS[column.framework, column.mode](bodies, twins)
    for call in range(max([1, *map(len, draws)])):
        for hand, steps in zip(bound, draws, strict=True):
            if steps:
                hand.steps[0].draw(steps[call])
        step()
    return {row.name: (twin, start) for row, twin, start in zip(rows, twins, starts, strict=True)}


def _torch_compiled(bodies: list[Callable[[], Any]], twins: list[Twin]) -> Callable[[], None]:
    import torch

    def step() -> None:
        for body in bodies:
            body()

    torch.compiler.reset()
    return torch.compile(step, fullgraph=True)


def _tf_function(bodies: list[Callable[[], Any]], twins: list[Twin], jit: bool) -> Callable[[], None]:
    import tensorflow as tf

    def step() -> None:
        for body in bodies:
            body()

    return tf.function(step, autograph=False, jit_compile=jit)


def _jax_jitted(bodies: list[Callable[[], Any]], twins: list[Twin]) -> Callable[[], None]:
    """Compile as Keras trains on JAX: values go in and out of a pure function, through a StatelessScope."""
    import jax
    import keras

    variables = [variable for twin in twins for variable in twin.target.weights]

    @jax.jit
    def pure(now: list[Any]) -> list[Any]:
        with keras.StatelessScope(state_mapping=list(zip(variables, now, strict=True))) as scope:
            for body in bodies:
                body()
        return [scope.get_current_value(variable) for variable in variables]

    def step() -> None:
        for variable, value in zip(variables, pure([variable._value for variable in variables]), strict=True):
            variable.assign(value)

    return step


COMPILERS: dict[tuple[str, str], Callable[[list[Callable[[], Any]], list[Twin]], Callable[[], None]]] = {
    ("torch", "compiled"): _torch_compiled,
    ("tensorflow", "function"): lambda bodies, twins: _tf_function(bodies, twins, jit=False),
    ("tensorflow", "jit"): lambda bodies, twins: _tf_function(bodies, twins, jit=True),
    ("jax", "jit"): _jax_jitted,
}
