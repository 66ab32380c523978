"""Cut the arrays of a file to what this rank holds of their parameters, so that nobody reads more than that."""

from __future__ import annotations

from collections.abc import Sequence

from xweights.core.agreement import is_cut, shard_of
from xweights.core.layout import Layout, plain_layout
from xweights.core.parameter import Parameter
from xweights.core.shards import Ranges, Shard, SlicedStorage
from xweights.edit.shards import local_parameter
from xweights.edit.stream import StreamedValue


def cut_sources(sources: Sequence[StreamedValue], *, allow_nonfinite: bool) -> list[StreamedValue]:
    """Return the same values, those of parameters that several ranks hold cut to this rank's blocks.

    A block is read once: straight into the parameter's memory if nothing is checked, else after what is there has been
    backed up.
    """
    if not any(is_cut(source.p) for source in sources):
        return list(sources)
    return [_cut(source, allow_nonfinite) or source for source in sources]


def _cut(source: StreamedValue, allow_nonfinite: bool) -> StreamedValue | None:
    shard, storage = shard_of(source.p), source.value.storage
    if not isinstance(storage, SlicedStorage):
        return None
    if shard is None:  # of this process alone, beside others that are shared
        ranges = tuple((0, length) for length in source.value.layout.stored)
        found = _block_of(source.value, ranges, source.value.layout)
        return None if found is None else _make_value(found, source.p, source, allow_nonfinite)
    local = local_parameter(source.p, shard)
    if source.is_stored_alike:
        # Stored in the same order, so no axis has to be known.
        plain = plain_layout(shard.shape)
        found = _block_of(source.value, shard.stored, plain)
        return None if found is None else _make_value(found, local.replace(layout=plain), source, allow_nonfinite)
    cut = _cut_layout(source, shard)
    found = None if cut is None else _block_of(source.value, *cut)
    return None if found is None else _make_value(found, local, source, allow_nonfinite)


def _make_value(block: Parameter, local: Parameter, source: StreamedValue, allow_nonfinite: bool) -> StreamedValue:
    """Return a block of a file that goes into a block of a parameter."""
    is_checked = block.dtype != local.dtype or not allow_nonfinite
    order = "native" if source.is_stored_alike else source.order
    return StreamedValue(block, local, order, is_block=True, reads_once=is_checked)


def _block_of(value: Parameter, ranges: Ranges, layout: Layout) -> Parameter | None:
    found = value.storage.block(value.handle, ranges)  # type: ignore[attr-defined]
    return None if found is None else value.replace(storage=found[0], handle=found[1], layout=layout)


def _cut_layout(source: StreamedValue, shard: Shard) -> tuple[Ranges, Layout] | None:
    """Return the ranges along the file's stored axes, and the block's layout; None where it is no block of them."""
    layout, ours, theirs = source.value.layout, source.p.axes, source.value.axes
    if shard.ranges is None or layout.split != layout.stored:
        return None
    ranges = shard.ranges
    if ours is not None and theirs is not None and ours != theirs:
        ranges = tuple(ranges[ours.index(axis)] for axis in theirs)
    stored = tuple(ranges[position] for position in layout.inverse)
    lengths = tuple(last - first for first, last in stored)
    return stored, Layout(lengths, lengths, layout.order, layout.axes, layout.outputs)
