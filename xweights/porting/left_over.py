"""What has no twin after a port: layers of either model, and rows of tables."""

from __future__ import annotations

from collections.abc import Sequence

from xweights.core import hold_registry
from xweights.porting.matching.attempt import Attempt
from xweights.porting.matching.forms import fit
from xweights.porting.matching.pairs import Pair
from xweights.porting.matching.rows import is_written
from xweights.porting.refusal import name_some
from xweights.porting.session import Run
from xweights.porting.units import LayerUnit


def list_unpaired(run: Run, attempt: Attempt) -> tuple[list[LayerUnit], list[str]]:
    """Return the units of the target that need a twin and have none, and notes on what one of the models has more."""
    written = {hold_registry.identity(p) for pair in attempt.pairs.values() for p in pair.target.parameters}
    # Zero is right for a table that the source doesn't have, not for one whose twin this sample doesn't call.
    zeroed = [] if attempt.divergences else attempt.zeroed
    zeroed = [unit for unit in zeroed if not any(fit(left, unit) for left in attempt.unused)]
    written |= {hold_registry.identity(p) for unit in zeroed for p in unit.parameters}
    unpaired = [
        unit
        for unit in run.target.units
        if id(unit) not in attempt.pairs
        and id(unit) not in run.skipped
        and not is_written(unit, attempt.pairs.values(), written)
    ]
    # What no output needs stays as it is, unless the source has something left that may belong there.
    spare = [unit for unit in unpaired if id(unit) not in attempt.called and attempt.outputs]
    spare = [unit for unit in spare if not any(fit(left, unit) for left in attempt.unused)]
    notes = [f"{unit.path} isn't in the source, and is zero" for unit in zeroed]
    if spare:
        run.remains = tuple(dict.fromkeys((*run.remains, *(p.name for unit in spare for p in unit.parameters))))
        shown = name_some([unit.path for unit in spare], 8)
        notes.append(f"not in the source, and no compared output needs it, so it was kept: {shown}")
    if attempt.unused and not attempt.divergences:
        shown = name_some([unit.path for unit in attempt.unused], 8)
        notes.append(f"in the source, and no compared output needs it, so it went nowhere: {shown}")
    return [unit for unit in unpaired if unit not in spare], notes


def note_rows(pairs: Sequence[Pair]) -> list[str]:
    """Return a note on each table of which some rows are no twins of any in the other one."""
    notes = []
    for pair in pairs:
        notes += [
            f"{row.path} is always added, and is now a part of {pair.target.path}: exact up to a rounding"
            for row in pair.absorbed
        ]
        if pair.permutation.shift is None:
            continue
        first_source, first_target = pair.permutation.shift
        lengths = [next(iter(unit.slices.values())).shape[0] for unit in (pair.source, pair.target)]
        moved = min(lengths[0] - first_source, lengths[1] - first_target)
        if moved < lengths[1]:
            notes.append(f"{lengths[1] - moved} of {lengths[1]} rows of {pair.target.path} have no twin and were kept")
        if moved < lengths[0]:
            notes.append(f"{lengths[0] - moved} of {lengths[0]} rows of {pair.source.path} have no twin")
    return notes
