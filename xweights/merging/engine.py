"""The merging itself, one parameter at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from xweights.core.casting import rounded
from xweights.core.dtypes import Array
from xweights.core.layout import outputs_of
from xweights.errors import DtypeError, LayoutError, NonfiniteError, Problems, SelectionError
from xweights.merging.groups import Group, Member, is_counter
from xweights.merging.methods import Method
from xweights.merging.options import Settings
from xweights.merging.streams import Inputs, Stream, block_entries, is_finite, working_dtype


class Work:
    """One call: how it merges, and what it found wrong on the way."""

    def __init__(self, method: Method, settings: Settings, problems: Problems, allow_nonfinite: bool) -> None:
        self.method, self.settings, self.problems = method, settings, problems
        self.allow_nonfinite = allow_nonfinite

    def blocks(self, group: Group, walk: tuple[int, ...]) -> Iterator[Array]:
        """Yield the merged entries of one parameter as flat blocks of its dtype, its axes walked in this order."""
        for called, member in _called(group):
            for other in member.others:
                if not _alike(member.neutral(group), member.turned(other, group)):
                    text = f"{group.first.name!r} is tied in target 0, and {called} has two of it that differ"
                    self.problems.add(SelectionError, text, fix="put the target that isn't tied first")
        if not group.first.floating:
            yield from self._kept(group, walk)
            return
        work = np.result_type(*(working_dtype(member.parameter.dtype) for member in group.everybody))
        streams = [_stream(member, group, walk, work) for member in group.everybody]
        for stream in streams:
            stream.looks, stream.entries = not self.method.linear, block_entries(len(streams))
        targets = streams[: len(group.members)]
        base = streams[-1] if group.base is not None else None
        options = self.settings.at(group.first)
        units = units_of(group, options["per"]) if self.method.units else ()
        overflown = 0
        # What isn't finite is counted, and said at the end; so is what becomes infinite.
        with np.errstate(all="ignore"):
            for block in self.method.function(Inputs(targets, base, options, group.key, units)):
                merged = block if block.dtype == group.dtype else rounded(block, group.dtype)
                if not self.allow_nonfinite and not is_finite(merged):
                    overflown += merged.size - int(np.count_nonzero(np.isfinite(merged)))
                yield merged
        if not self.allow_nonfinite:
            if overflown:
                for stream in streams:
                    stream.look()
            self._note_nonfinite(group, streams, overflown)

    def _kept(self, group: Group, walk: tuple[int, ...]) -> Iterator[Array]:
        first = group.members[0].neutral(group)
        for called, member in _called(group)[1:]:
            if not is_counter(group.first) and not _alike(first, member.neutral(group)):
                self.problems.add(
                    DtypeError,
                    f"{group.first.name!r} is {group.first.dtype.name}, which isn't merged, and differs in {called}",
                    fix="leave it out with where=",
                )
        yield np.ascontiguousarray(first.transpose(walk)).reshape(-1)

    def _note_nonfinite(self, group: Group, streams: Sequence[Stream], overflown: int) -> None:
        fix = "allow_nonfinite=True merges them as they are"
        found = False
        for (called, _), stream in zip(_called(group), streams, strict=True):
            if stream.nonfinite:
                found = True
                text = (
                    f"{group.first.name!r} of {called}: {stream.nonfinite:,} of {stream.size:,} entries aren't finite"
                )
                self.problems.add(NonfiniteError, text, fix=fix)
        if overflown and not found:
            text = f"{group.first.name!r}: {overflown:,} merged entries are too large for {group.dtype.name}"
            self.problems.add(NonfiniteError, text, fix=fix)


def units_of(group: Group, per: Any) -> tuple[int, ...]:
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
    found = []
    for one in per if isinstance(per, (tuple, list)) else (per,):
        if isinstance(one, str):
            if axes is None or one not in axes:
                known = "unknown" if axes is None else ", ".join(axes)
                raise LayoutError(f"{group.first.name!r} has no axis {one!r}\nits axes: {known}")
            found.append(axes.index(one))
        elif not -dims <= one < dims:
            raise LayoutError(f"{group.first.name!r} has no axis {one}\nits shape: {group.shape}")
        else:
            found.append(one % dims)
    return tuple(dict.fromkeys(found))


def _stream(member: Member, group: Group, walk: tuple[int, ...], dtype: np.dtype[Any]) -> Stream:
    """Return one target's share, read in parts where its storage can and its order is the one that is walked."""
    p, layout = member.parameter, member.layout
    read_into: Callable[[Array, int], None] | None = getattr(p.handle, "read_into", None)
    same_axes = layout.axes is None or group.axes is None or layout.axes == group.axes
    if read_into is not None and same_axes and walk == layout.inverse:
        return Stream.of_parts(tuple(layout.shape[axis] for axis in walk), p.dtype, dtype, read_into)
    return Stream.of(member.neutral(group).transpose(walk), dtype)


def _called(group: Group) -> list[tuple[str, Member]]:
    found = [(f"target {i}", member) for i, member in enumerate(group.members)]
    return found if group.base is None else [*found, ("the base", group.base)]


def _alike(a: Array, b: Array) -> bool:
    """Return True if two arrays have the same bits."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
