"""The test matrix: every verb on every target, in every mode and dtype, against the referee in plain NumPy.

A cell's name reads ``torch-compiled-bfloat16-clip(low, high)``. Exact verbs have to give the referee's bits, close ones
the rtol of their docstring. What a column can't do is checked to be refused. docs/matrix.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from harness.columns import DTYPES, Column, columns_here
from harness.rows import ROWS
from harness.running import check_refusal, refused, run

pytestmark = pytest.mark.matrix
ORDER = list(ROWS)
FAMILIES = list(dict.fromkeys(row.family for row in ROWS.values()))


def cells() -> list[Any]:
    """All cells of this process. Cells of one compiled step stand together, so that one worker gets them."""
    rows = sorted(ROWS.values(), key=lambda row: FAMILIES.index(row.family))
    return [
        pytest.param(
            *(column, dtype, row.name),
            id=f"{column.id}-{dtype}-{row.name}",
            marks=[pytest.mark.keras_backend] if column.keras else [],
        )
        for column in columns_here()
        for dtype in DTYPES
        for row in rows
    ]


@pytest.mark.parametrize(("column", "dtype", "name"), cells())
def test_a_verb_gives_the_same_numbers_everywhere(
    column: Column, dtype: str, name: str, record: Callable[..., None]
) -> None:
    row = ROWS[name]
    cell = {"row": name, "order": ORDER.index(name), "promise": row.promise, "rtol": row.rtol, "values": row.values}
    cell |= {"column": column.id, "dtype": dtype}
    obstacle = column.obstacle()
    if obstacle is not None:
        record(**cell, outcome="skipped", reason=obstacle)
        pytest.skip(obstacle)
    reason = refused(row, column)
    if reason is not None:
        check_refusal(row, column, dtype)
        record(**cell, outcome="unsupported", reason=reason)
        return
    found = run(row, column, dtype)
    kept = found.within(row.rtol, DTYPES[dtype])
    record(**cell, outcome="passed" if kept else "failed", ulps=found.ulps, relative=found.relative, entries=found.entries)
    assert kept, f"{name} on {column.id} in {dtype}: {found.entries} entries differ; {found.where} ({found})"
