"""The test matrix: every verb on every target, in every mode and dtype, against the referee in plain NumPy.

A cell's name reads ``torch-compiled-bfloat16-clip(low, high)``. Exact verbs have to give the referee's bits, close ones
the rtol of their docstring. What a column can't do is checked to be refused. docs/matrix.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from harness.columns import DTYPES, Column, columns_here
from harness.compare import Gap
from harness.host import HOST_CALLS, HOST_ROWS, check_host_refusal, run_host, traceable, why_not_compiled
from harness.rows import ROWS
from harness.running import check_refusal, later, refused, run, unmeasured

pytestmark = pytest.mark.matrix
ORDER = [*HOST_ROWS, *ROWS]
FAMILIES = list(dict.fromkeys(row.family for row in ROWS.values()))


def cell(column: Column, *rest: str) -> Any:
    marks = [pytest.mark.keras_backend] if column.keras else []
    if len(rest) == 2:
        dtype, name = rest
        family = ROWS[name].family if name in ROWS else "host"
        marks.append(pytest.mark.xdist_group(f"{column.id}-{dtype}-{family}"))
        marks += [pytest.mark.thorough] if waits(name, column, dtype) else []
    return pytest.param(column, *rest, id="-".join([column.id, *rest]), marks=marks)


def waits(name: str, column: Column, dtype: str) -> bool:
    """Whether CI leaves a cell to ``nox -s nightly``. Of what works on the host, set_params alone is ever compiled."""
    if name in ROWS:
        return later(ROWS[name], column, dtype)
    return column.mode != "eager" and (dtype != "float32" or column.keras == "tensorflow")


def cells() -> list[Any]:
    """All cells of this process. Those of one compiled step are a group, which one worker gets."""
    rows = sorted(ROWS.values(), key=lambda row: FAMILIES.index(row.family))
    return [
        cell(column, dtype, row.name)
        for column in columns_here()
        for dtype in DTYPES
        for row in rows
        if unmeasured(row, column, dtype) is None
    ]


def host_cells() -> list[Any]:
    return [
        cell(column, dtype, name)
        for column in columns_here()
        for dtype in DTYPES
        for name in HOST_ROWS
        if column.mode == "eager" or traceable(name, column)
    ]


class Cell:
    """Says what became of one cell, to pytest and to the record."""

    def __init__(self, record: Callable[..., None], column: Column, dtype: str, **row: Any) -> None:
        self.record = lambda **more: record(**({**row, "column": column.id, "dtype": dtype} | more))
        self.title, self.dtype, self.rtol = f"{row['row']} on {column.id} in {dtype}", DTYPES[dtype], row["rtol"]
        obstacle = column.obstacle()
        if obstacle is not None:
            self.record(outcome="skipped", reason=obstacle)
            pytest.skip(obstacle)

    def judge(self, measure: Callable[[], Gap]) -> None:
        try:
            found = measure()
        except BaseException:
            self.record(outcome="failed", ulps=0, entries=0)
            raise
        kept = found.within(self.rtol, self.dtype)
        outcome = "passed" if kept else "failed"
        self.record(outcome=outcome, ulps=found.ulps, relative=found.relative, entries=found.entries)
        assert kept, f"{self.title}: {found.entries} entries differ; {found.where} ({found})"


@pytest.mark.parametrize(("column", "dtype", "name"), cells())
def test_a_verb_gives_the_same_numbers_everywhere(
    column: Column, dtype: str, name: str, record: Callable[..., None]
) -> None:
    row = ROWS[name]
    one = Cell(record, column, dtype, row=name, order=ORDER.index(name), rtol=row.rtol, values=row.values)
    reason = refused(row, column)
    if reason is None:
        one.judge(lambda: run(row, column, dtype))
    else:
        check_refusal(row, column, dtype)
        one.record(outcome="unsupported", reason=reason)


@pytest.mark.parametrize(("column", "dtype", "name"), host_cells())
def test_reading_writing_and_undoing_move_the_very_bits(
    column: Column, dtype: str, name: str, record: Callable[..., None]
) -> None:
    _, kind, rtol = HOST_ROWS[name]
    one = Cell(record, column, dtype, row=name, order=ORDER.index(name), rtol=rtol, values=kind)
    one.judge(lambda: run_host(name, column, dtype))


@pytest.mark.parametrize(
    ("column", "call"),
    [cell(column, call) for column in columns_here() if column.mode != "eager" for call in HOST_CALLS],
)
def test_what_works_on_the_host_is_refused_inside_a_compiled_step(
    column: Column, call: str, record: Callable[..., None]
) -> None:
    record_what_is_left_out(column, record)
    check_host_refusal(call, column)


def facts(name: str) -> dict[str, Any]:
    """What the page says of a row before its numbers."""
    if name in ROWS:
        return {"rtol": ROWS[name].rtol, "values": ROWS[name].values}
    _, kind, rtol = HOST_ROWS[name]
    return {"rtol": rtol, "values": kind}


def record_what_is_left_out(column: Column, record: Callable[..., None]) -> None:
    """The cells of a compiled column that no test runs, and why."""
    for dtype in DTYPES:
        for name, row in ROWS.items():
            reason = unmeasured(row, column, dtype)
            if reason is not None:
                one = Cell(record, column, dtype, row=name, order=ORDER.index(name), rtol=row.rtol, values=row.values)
                one.record(outcome="unmeasured", reason=refused(row, column) or reason)
        for name, (_, kind, rtol) in HOST_ROWS.items():
            if not traceable(name, column):
                one = Cell(record, column, dtype, row=name, order=ORDER.index(name), rtol=rtol, values=kind)
                one.record(outcome="unsupported", reason=why_not_compiled(name))
        # So that a run without them isn't taken for one in which they were lost.
        measured = [name for name, row in ROWS.items() if unmeasured(row, column, dtype) is None]
        for name in [*measured, *(name for name in HOST_ROWS if traceable(name, column))]:
            if waits(name, column, dtype):
                record(row=name, column=column.id, dtype=dtype, outcome="later", order=ORDER.index(name), **facts(name))
