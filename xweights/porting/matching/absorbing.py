"""Find rows of the source that are always added, and that are a part of another table in the target.

RoBERTa has one type of token, whose row is added to each position; a twin without types has the sum of both in its
table of positions. A table of one row alone is absorbed: of others the sample shows only a part.
"""

from __future__ import annotations

from xweights.porting.matching.attempt import Attempt
from xweights.porting.matching.forms import find_used_rows
from xweights.porting.matching.matching import Matching
from xweights.porting.units import LayerUnit

_TABLES = ("embedding", "rows")


def list_absorptions(matching: Matching, attempt: Attempt) -> list[tuple[LayerUnit, LayerUnit]]:
    """Return (a row of the source, a table of the target) for each row that went nowhere, and may belong to a table.

    Tables whose rows are the same for every sample come alone into question: what they hold is added wherever they are.
    """
    absorbed = {id(row) for rows in matching.absorbed.values() for row in rows}
    rows = [
        unit
        for unit in attempt.unused
        if unit.kind in _TABLES and unit.form[1][0] == 1 and id(unit) not in absorbed and matching.is_called(unit)
    ]
    tables = [
        pair.target
        for pair in attempt.pairs.values()
        if pair.target.kind in _TABLES
        and pair.target.form[1][0] > 1
        and id(pair.target) not in matching.skipped
        and (pair.permutation.shift is not None or _is_fixed(matching, pair.source))
    ]
    return [(row, table) for row in rows for table in tables if table.form[1][-1] == row.form[1][-1]]


def _is_fixed(matching: Matching, table: LayerUnit) -> bool:
    """Return True if a table of the source is asked for the same rows, whatever the sample is."""
    calls = [call for call in matching.calls if call.unit is table]
    return bool(calls) and all(find_used_rows(table, call.input) is not None for call in calls)
