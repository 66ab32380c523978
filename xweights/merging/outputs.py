"""Where merged entries go: into memory, or out into a file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from xweights.core.blocks import stored_order
from xweights.core.dtypes import Array
from xweights.core.params import Params
from xweights.files.io.items import item_of
from xweights.files.save import keys_of, write_items
from xweights.merging.engine import Work
from xweights.merging.groups import Group
from xweights.merging.inputs import MergeInput


def in_memory(work: Work, groups: Sequence[Group], *, named_by_into: bool) -> Params:
    """Return the result as arrays of its own, named as the parameters of ``into`` where there is one."""
    arrays: dict[str, Array] = {}
    axes, roles, gates = {}, {}, {}
    for group in groups:
        p = group.first
        name = group.into.name if named_by_into and group.into is not None else p.name
        if named_by_into and group.into is None:  # a counter that it doesn't have
            continue
        walk = tuple(range(len(group.shape)))
        if work.method.linear:
            walk = tuple(stored_order(group.members[0].neutral(group)))
        arrays[name] = _whole(work, group, walk)
        axes[name], roles[name], gates[name] = group.axes, p.role, p.gates
    return Params._made(arrays, axes, roles, gates, "neutral")


def _whole(work: Work, group: Group, walk: tuple[int, ...]) -> Array:
    shape = [group.shape[axis] for axis in walk]
    flat = np.empty(int(np.prod(shape, dtype=np.int64)), group.dtype)
    start = 0
    for block in work.blocks(group, walk):
        flat[start : start + block.size] = block
        start += block.size
    return flat.reshape(shape).transpose(np.argsort(walk))


def stream_out(
    work: Work, groups: Sequence[Group], first: MergeInput, out: str | os.PathLike[str], durable: bool
) -> None:
    """Write the result to a file as it comes; what is wrong is raised before the file is replaced."""
    left = len(groups)

    def pieces(group: Group) -> Iterator[Array]:
        nonlocal left
        layout = group.members[0].layout
        if work.method.linear or layout.is_identity:
            yield from work.blocks(group, layout.inverse)
        else:
            yield np.ascontiguousarray(layout.to_stored(_whole(work, group, tuple(range(len(group.shape))))))
        left -= 1
        if not left:  # the last chance to leave the old file where it is
            work.problems.check()

    keys = keys_of(first.target, [group.first for group in groups])
    items = [
        item_of(group.first, key=key, pieces=partial(pieces, group)) for group, key in zip(groups, keys, strict=True)
    ]
    write_items(items, out, durable=durable)
