"""Write merged entries to memory or stream them to a file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from xweights.core.blocks import stored_order
from xweights.core.dtypes import Array
from xweights.core.params import Params
from xweights.files.edit.replace_arrays import can_replace_arrays, replace_arrays
from xweights.files.io.arrays_to_write import array_to_write
from xweights.files.load import Checkpoint
from xweights.files.save import keys_of, write_arrays
from xweights.merging.engine import MergeEngine
from xweights.merging.groups import Group
from xweights.merging.inputs import MergeInput
from xweights.merging.report import MergeReport


def merge_in_memory(engine: MergeEngine, groups: Sequence[Group], *, named_by_into: bool) -> Params:
    """Return the result in new arrays, named as the parameters of ``into`` where there is one."""
    arrays: dict[str, Array] = {}
    axes, roles, gates = {}, {}, {}
    for group in groups:
        p = group.first
        name = group.into.name if named_by_into and group.into is not None else p.name
        if named_by_into and group.into is None:  # a counter that ``into`` doesn't have
            continue
        walk = tuple(range(len(group.shape)))
        if engine.method.linear:
            walk = tuple(stored_order(group.members[0].read_neutral(group)))
        arrays[name] = _merge_array(engine, group, walk)
        axes[name], roles[name], gates[name] = group.axes, p.role, p.gates
    return Params._made(arrays, axes, roles, gates, "neutral")


def _merge_array(engine: MergeEngine, group: Group, walk: tuple[int, ...]) -> Array:
    shape = [group.shape[axis] for axis in walk]
    flat = np.empty(int(np.prod(shape, dtype=np.int64)), group.dtype)
    start = 0
    for block in engine.blocks(group, walk):
        flat[start : start + block.size] = block
        start += block.size
    return flat.reshape(shape).transpose(np.argsort(walk))


def stream_out(
    engine: MergeEngine,
    groups: Sequence[Group],
    first: MergeInput,
    out: str | os.PathLike[str],
    durable: bool,
    rest: str,
    readings: Mapping[str, str],
) -> MergeReport:
    """Write the result to a file; raise all problems before the file is replaced.

    The first file is written again with other weights where it holds more than these, else the weights alone.
    """
    unwritten = len(groups)

    def pieces(group: Group) -> Iterator[Array]:
        nonlocal unwritten
        layout = group.members[0].layout
        if engine.method.linear or layout.is_identity:
            yield from engine.blocks(group, layout.inverse)
        else:
            yield np.ascontiguousarray(layout.to_stored(_merge_array(engine, group, tuple(range(len(group.shape))))))
        unwritten -= 1
        if not unwritten:  # the last chance to keep the old file
            engine.problems.check()

    def stored(group: Group) -> Array:
        layout = group.members[0].layout
        flat = np.empty(int(np.prod(layout.stored, dtype=np.int64)), group.dtype)
        start = 0
        for block in pieces(group):
            flat[start : start + block.size] = block.reshape(-1)
            start += block.size
        return flat.reshape(layout.stored)

    path, others = os.fspath(out), _list_rest(first.target)
    part = first.target.chosen_part if others else ""
    positions = _find_positions(first, groups) if others else None
    why = _why_dropped(first.target, positions, path, rest) if others else ""
    if others and positions is not None and not why:
        values = {position: partial(stored, group) for position, group in zip(positions, groups, strict=True)}
        replace_arrays(first.target, values, path, durable=durable)
        return MergeReport(path, len(groups), part, kept=others, readings=readings)
    keys = keys_of(first.target, [group.first for group in groups])
    arrays = [
        array_to_write(group.first, key=key, pieces=partial(pieces, group))
        for group, key in zip(groups, keys, strict=True)
    ]
    write_arrays(arrays, path, durable=durable)
    return MergeReport(path, len(groups), dropped=others, why=why, readings=readings)


def _list_rest(target: Any) -> tuple[str, ...]:
    """Return the names of what a file holds besides the part that is merged."""
    if not isinstance(target, Checkpoint):
        return ()
    chosen = target.chosen_part
    parts = [found.name for found in target.parts if found.name != chosen]
    inside = {name.partition("/")[0] for name in (*parts, chosen)}
    # Keys inside of other parts say no more than these.
    arrays = {record.key for record in target.records}
    loose = [key for key in target.ignored if key.partition("/")[0] not in inside and key not in arrays]
    return tuple(dict.fromkeys((*parts, *loose)))


def _find_positions(first: MergeInput, groups: Sequence[Group]) -> list[int] | None:
    """Return the positions of the merged parameters in the first file; None if one stands for two of the result."""
    position_of = {id(p.handle): at for at, p in enumerate(first.target.__xweights_parameters__())}
    positions = [position_of.get(id(group.first.handle), -1) for group in groups]
    return positions if -1 not in positions and len(set(positions)) == len(positions) else None


def _why_dropped(target: Checkpoint, positions: list[int] | None, path: str, rest: str) -> str:
    """Return why the rest of the first file can't be, or isn't to be, in the new one; "" if it is."""
    if rest == "drop":
        return 'rest="drop"'
    if not can_replace_arrays(target, path):
        return f"a {target.format} file is copied to one of its own format"
    return "" if positions is not None else "an array that it shares between two names is two in the result"
