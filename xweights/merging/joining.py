"""Many targets into one.

Owns :func:`merge`. Imports arrays, errors, pairing, params, selecting, settings, streams, table, targets, values and
writing; files inside a function.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from xweights.arrays import quick_sum, stored_order
from xweights.axes import outputs_of
from xweights.errors import ArgumentError, DtypeError, LayoutError, NonfiniteError, Problems, SelectionError, TraceError
from xweights.merging.pairing import Group, Member, Side, grouped, settle_names, sides_of
from xweights.merging.settings import Settings, the_method
from xweights.merging.streams import Inputs, Stream, working_dtype
from xweights.merging.table import Method
from xweights.parameter import COUNTERS, Array
from xweights.params import LayoutName, Params
from xweights.renaming import Names
from xweights.selecting import WhereLike
from xweights.targets import tracing
from xweights.values import rounded
from xweights.writing import set_params


def merge(
    targets: Sequence[Any],
    method: str = "average",
    *,
    base: Any = None,
    where: WhereLike = ...,
    names: Names | Sequence[Names | None] | None = None,
    layout: LayoutName | None = None,
    into: Any = None,
    out: str | os.PathLike[str] | None = None,
    cast: bool = False,
    allow_nonfinite: bool = False,
    durable: bool = True,
    **options: Any,
) -> Params | None:
    """Merge models, checkpoints, paths and mappings, of any framework and mixed, into one.

    Args:
        targets: What is merged: a list of targets. They pair by neutral name, and by axis name inside; the first one's
            names, axes and dtypes are the result's.
        method: "average", "lerp", "slerp", "ema", "model_stock", "task_arithmetic", "ties", "dare_linear", "dare_ties",
            "della", "della_linear", "breadcrumbs" or "breadcrumbs_ties": see docs/merging.md for formulas and sources.
        base: The target that task vectors begin at, for the methods from "model_stock" on.
        where: Which parameters of the first target; the others are no part of the result. Default: all.
        names: ``{glob in the first target: glob in the others}`` where names differ, for targets that don't have the
            first one's names; or a list with a mapping or None for each target but the first, then base, then into.
            Also what randomness is keyed by.
        layout: How arrays of unknown axes lie beside those that know theirs: "neutral", or "native": as these store it.
        into: A target to write the result to, in place and all or nothing; holds are re-applied, as by
            :func:`xweights.set_params`.
        out: A path to stream the result to instead, a block at a time; the file there is replaced at the end.
        cast: True also merges different dtypes; the result is rounded once to the dtype of ``into``, else of the first.
        allow_nonfinite: True also merges NaN and infinity.
        durable: With ``out``, as for :func:`xweights.save`.
        **options: The method's: weights=, t=, decay=, scale= (any number), density= and gamma= (0 to 1: shares of
            entries), epsilon= (0 to 0.5), normalize=, rescale= ("density", "l1" or None), per= (axes that number the
            units), seed= (an int). weights, density, gamma and epsilon also take a number for each target, and all
            numbers a mapping of where to these, as in ``weights={"*": (1, 1), "head/*": (0, 1)}``: the last that
            matches counts.

    Returns:
        Params in memory of their own; None with ``into`` or ``out``.

    Exact across frameworks: computed on the host in float32 (float64 for float64), sums in float64, and rounded once.
    "average" of equal targets gives their very bits. Integers and bools aren't merged: they have to be equal; counters
    (``num_batches_tracked``) are the first one's.
    Raises SelectionError, ShapeError, DtypeError, LayoutError, NonfiniteError, ArgumentError, WriteError, TargetError:
    all that is wrong at once, with nothing changed.

    Example:
        >>> import numpy as np, xweights as xw
        >>> a, b = {"w": np.array([1.0, 3.0])}, {"w": np.array([3.0, 5.0])}; xw.merge([a, b], weights=(3, 1))["w"]
        array([1.5, 3.5])
    """
    if not isinstance(targets, (list, tuple)) or not targets:
        raise ArgumentError(f"targets= is a list of targets\ngot: {type(targets).__name__}\nFix: merge([a, b], ...)")
    if into is not None and out is not None:
        raise ArgumentError("into= and out= can't both be given\nFix: merge into the target, then save it")
    if layout not in (None, "neutral", "native"):
        raise ArgumentError(f'layout= is "neutral", "native" or None\ngot: {layout!r}')
    row = the_method(method)
    sides = sides_of(targets, base, into, names)
    if any(tracing(side.target) for side in sides):
        raise TraceError("merging reads values on the host\nFix: call it before or after the compiled step")
    problems = Problems("these can't be merged, and nothing was changed")
    for side in sides:
        side.open(problems)
    problems.check()
    settle_names(sides, problems)
    _check_counts(row, method, len(targets), base, problems)
    settings = Settings(row, options, len(targets), sides[0].everything, problems)
    groups = grouped(sides, len(targets), where, layout, cast, problems)
    if row.units:
        _check_units(groups, options.get("per"), problems)
    problems.check()
    work = Work(row, settings, problems, allow_nonfinite)
    if out is not None:
        _stream_out(work, groups, sides[0], out, durable)
        return None
    result = _in_memory(work, groups, named_by_into=into is not None)
    problems.check()
    if into is None:
        return result
    set_params(into, result, strict=False, allow_nonfinite=allow_nonfinite)
    return None


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
        base = streams.pop() if group.base is not None else None
        options = self.settings.at(group.first)
        units = _units(group, options.get("per"))
        overflown = 0
        # What isn't finite is counted, and said at the end; so is what becomes infinite.
        with np.errstate(all="ignore"):
            for block in self.method.function(Inputs(streams, base, options, group.key, units)):
                merged = block if block.dtype == group.dtype else rounded(block, group.dtype)
                if not self.allow_nonfinite and not _all_finite(merged):
                    overflown += int(np.count_nonzero(~np.isfinite(merged)))
                yield merged
        if not self.allow_nonfinite:
            self._note_nonfinite(group, [*streams, *([base] if base is not None else [])], overflown)

    def _kept(self, group: Group, walk: tuple[int, ...]) -> Iterator[Array]:
        first = group.members[0].neutral(group)
        for called, member in _called(group)[1:]:
            if group.first.role not in COUNTERS and not _alike(first, member.neutral(group)):
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


def _check_counts(method: Method, name: str, count: int, base: Any, problems: Problems) -> None:
    if count < method.fewest or count > (method.most or count):
        wanted = f"{method.fewest} targets" if method.most == method.fewest else f"at least {method.fewest} targets"
        problems.add(ArgumentError, f"{name!r} merges {wanted}\ngot: {count}")
    if method.base and base is None:
        problems.add(ArgumentError, f"{name!r} needs base=, the target that the others were trained from")
    if base is not None and not method.base:
        problems.add(ArgumentError, f"{name!r} has no base", fix="put it among the targets, or choose another method")


def _check_units(groups: Sequence[Group], per: Any, problems: Problems) -> None:
    for group in groups:
        try:
            _units(group, per)
        except LayoutError as wrong:
            problems.add(LayoutError, str(wrong))


def _units(group: Group, per: Any) -> tuple[int, ...]:
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


def _in_memory(work: Work, groups: Sequence[Group], *, named_by_into: bool) -> Params:
    arrays: dict[str, Array] = {}
    axes, roles, gates = {}, {}, {}
    for group in groups:
        p = group.first
        name = group.into.name if named_by_into and group.into is not None else p.name
        if named_by_into and group.into is None:  # a counter that it doesn't have
            continue
        walk = tuple(range(len(group.shape)))
        if work.method.any_order:
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


def _stream_out(work: Work, groups: Sequence[Group], first: Side, out: str | os.PathLike[str], durable: bool) -> None:
    from xweights.files.items import item_of
    from xweights.files.saving import write_items

    left = len(groups)

    def pieces(group: Group) -> Iterator[Array]:
        nonlocal left
        layout = group.members[0].layout
        if work.method.any_order or layout.is_identity:
            yield from work.blocks(group, layout.inverse)
        else:
            yield np.ascontiguousarray(layout.to_stored(_whole(work, group, tuple(range(len(group.shape))))))
        left -= 1
        if not left:  # the last chance to leave the old file where it is
            work.problems.check()

    write_items(
        [item_of(group.first, pieces=lambda group=group: pieces(group)) for group in groups], out, durable=durable
    )


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


def _all_finite(block: Array) -> bool:
    if block.dtype.itemsize >= 4 and np.isfinite(quick_sum(block)):
        return True
    return bool(np.isfinite(block).all())


def _alike(a: Array, b: Array) -> bool:
    """Return True if two arrays have the same bits."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
