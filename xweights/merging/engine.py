"""Merge one parameter at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from xweights.core.casting import round_to
from xweights.core.dtypes import Array
from xweights.core.layout import outputs_of
from xweights.errors import DtypeError, LayoutError, NonfiniteError, Problems
from xweights.files.io.records import Record
from xweights.merging.groups import Group, Member, is_counter
from xweights.merging.methods import Method
from xweights.merging.options import Settings
from xweights.merging.streams import Inputs, Stream, block_entries, is_finite, working_dtype


class MergeEngine:
    """The engine of one call of `merge`: its method and settings, and the problems met on the way."""

    def __init__(self, method: Method, settings: Settings, problems: Problems, allow_nonfinite: bool) -> None:
        self.method, self.settings, self.problems = method, settings, problems
        self.allow_nonfinite = allow_nonfinite

    def blocks(self, group: Group, walk: tuple[int, ...]) -> Iterator[Array]:
        """Yield the merged entries of one parameter as flat blocks of its dtype, its axes in the order ``walk``."""
        if not group.first.floating:
            yield from self._keep_unmerged(group, walk)
            return
        dtype = np.result_type(*(working_dtype(member.parameter.dtype) for member in group.all_members))
        streams = [_open_stream(member, group, walk, dtype) for member in group.all_members]
        for stream in streams:
            stream.counts_nonfinite, stream.entries = not self.method.linear, block_entries(len(streams))
        targets = streams[: len(group.members)]
        base = streams[-1] if group.base is not None else None
        options = self.settings.at(group.first)
        units = find_unit_axes(group, options["per"]) if self.method.units else ()
        overflown = 0
        # Nonfinite entries, in the inputs and in the result, are counted and reported at the end.
        with np.errstate(all="ignore"):
            for block in self.method.function(Inputs(targets, base, options, group.key, units)):
                merged = block if block.dtype == group.dtype else round_to(block, group.dtype)
                if not self.allow_nonfinite and not is_finite(merged):
                    overflown += merged.size - int(np.count_nonzero(np.isfinite(merged)))
                yield merged
        if not self.allow_nonfinite:
            if overflown:
                for stream in streams:
                    stream.count_nonfinite()
            self._note_nonfinite(group, streams, overflown)

    def _keep_unmerged(self, group: Group, walk: tuple[int, ...]) -> Iterator[Array]:
        first = group.members[0].read_neutral(group)
        for label, member in _label_members(group)[1:]:
            if not is_counter(group.first) and not _have_same_bits(first, member.read_neutral(group)):
                self.problems.add(
                    DtypeError,
                    f"{group.first.name!r} is {group.first.dtype.name}, which isn't merged, and differs in {label}",
                    fix="leave it out with where=",
                )
        yield np.ascontiguousarray(first.transpose(walk)).reshape(-1)

    def _note_nonfinite(self, group: Group, streams: Sequence[Stream], overflown: int) -> None:
        fix = "allow_nonfinite=True merges them as they are"
        in_inputs = False
        for (label, _), stream in zip(_label_members(group), streams, strict=True):
            if stream.nonfinite:
                in_inputs = True
                text = f"{group.first.name!r} of {label}: {stream.nonfinite:,} of {stream.size:,} entries aren't finite"
                self.problems.add(NonfiniteError, text, fix=fix)
        if overflown and not in_inputs:
            text = f"{group.first.name!r}: {overflown:,} merged entries are too large for {group.dtype.name}"
            self.problems.add(NonfiniteError, text, fix=fix)


def find_unit_axes(group: Group, per: Any) -> tuple[int, ...]:
    """Return the positions of the axes that number the units of a layer."""
    axes, dims = group.axes, len(group.shape)
    if dims < 2:
        return ()
    if per is None:
        if axes is None:
            raise LayoutError(
                f"{group.first.name!r} belongs to a layer whose axes are unknown, and its units are ranked one by one\n"
                "Fix: per=0 if the first axis numbers them, as PyTorch stores it; per=-1 if the last one does"
            )
        per = outputs_of(group.members[0].layout)
    positions = []
    for axis in per if isinstance(per, (tuple, list)) else (per,):
        if isinstance(axis, str):
            if axes is None or axis not in axes:
                known = "unknown" if axes is None else ", ".join(axes)
                raise LayoutError(f"{group.first.name!r} has no axis {axis!r}\nits axes: {known}")
            positions.append(axes.index(axis))
        elif not -dims <= axis < dims:
            raise LayoutError(f"{group.first.name!r} has no axis {axis}\nits shape: {group.shape}")
        else:
            positions.append(axis % dims)
    return tuple(dict.fromkeys(positions))


def _open_stream(member: Member, group: Group, walk: tuple[int, ...], dtype: np.dtype[Any]) -> Stream:
    """Return the stream of one target, read in parts if it is in a file and stored in the order of ``walk``."""
    p, layout = member.parameter, member.layout
    read_into = p.handle.read_into if isinstance(p.handle, Record) else None
    same_axes = layout.axes is None or group.axes is None or layout.axes == group.axes
    if read_into is not None and same_axes and walk == layout.inverse:
        return Stream.of_parts(tuple(layout.shape[axis] for axis in walk), p.dtype, dtype, read_into)
    return Stream.of(member.read_neutral(group).transpose(walk), dtype)


def _label_members(group: Group) -> list[tuple[str, Member]]:
    labelled = [(f"target {i}", member) for i, member in enumerate(group.members)]
    return labelled if group.base is None else [*labelled, ("the base", group.base)]


def _have_same_bits(a: Array, b: Array) -> bool:
    """Return True if two arrays have the same bits."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
