"""Write merged entries to memory or stream them to a file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from xweights.core.blocks import stored_order
from xweights.core.dtypes import Array
from xweights.core.params import Params
from xweights.files.io.arrays_to_write import array_to_write
from xweights.files.save import keys_of, write_arrays
from xweights.merging.engine import MergeEngine
from xweights.merging.groups import Group
from xweights.merging.inputs import MergeInput


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
    engine: MergeEngine, groups: Sequence[Group], first: MergeInput, out: str | os.PathLike[str], durable: bool
) -> None:
    """Write the result to a file block by block; raise all problems before the file is replaced."""
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

    keys = keys_of(first.target, [group.first for group in groups])
    arrays = [
        array_to_write(group.first, key=key, pieces=partial(pieces, group))
        for group, key in zip(groups, keys, strict=True)
    ]
    write_arrays(arrays, out, durable=durable)
