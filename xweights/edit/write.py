"""Write values into a target, all of them or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from xweights.core import hold_registry
from xweights.core.agreement import Outcome, Vote
from xweights.core.casting import cast_exactly, check_finite
from xweights.core.dtypes import Array
from xweights.core.layout import LayoutName
from xweights.core.names import Names
from xweights.core.openers import HasParts, open_file, write_file
from xweights.core.parameter import Parameter
from xweights.core.params import Params
from xweights.core.selection import WhereLike, select
from xweights.core.targets import is_path, open_kept, open_target
from xweights.core.values import fit_value, host_array
from xweights.edit.adapting import Adapt, adapted_pair, read_adapters, refuse_unused, suggest_adapters
from xweights.edit.cut_sources import cut_sources
from xweights.edit.find_values import check_tied, find_values
from xweights.edit.guards import (
    alone,
    copy_aliased,
    defer_interrupts,
    enter_guards,
    keys_of,
    order_fallible_first,
    undo_on_error,
)
from xweights.edit.idle_factors import find_idle_factors, refuse_missing_factors
from xweights.edit.load_report import Adapted, LoadReport
from xweights.edit.one_to_one import write_plainly
from xweights.edit.pairing import Pair
from xweights.edit.sources import open_name
from xweights.edit.stream import StreamedValue, fill_on_threads, scan_on_threads
from xweights.edit.stream_groups import stream_plainly
from xweights.edit.write_on_rank import set_params_on
from xweights.errors import ArgumentError, LayoutError, Problems, ShapeError, WriteError, XweightsError


def set_params(
    target: Any,
    values: Any,
    *,
    where: WhereLike = ...,
    layout: LayoutName | None = None,
    strict: bool = True,
    cast: bool = False,
    allow_nonfinite: bool = False,
    names: Names | None = None,
    part: str | None = None,
    mismatched: Literal["error", "skip"] = "error",
    adapt: Adapt | None = None,
    on_rank: int | Literal["all"] = "all",
) -> LoadReport:
    """Write values into a target in place; everything is checked first, and nothing is written unless all of it fits.

    A file may be whatever a training script saved: a state dict beside an optimizer, under the prefixes of wrappers, of
    the model that the target is a part of, or of a part of the target. Names decide; shapes are checked.

    Args:
        target: Model, layer, module, variable, mapping of arrays, or a list of these; or the path of a file, whose
            arrays are replaced at once, with everything else in it as it was.
        values: Params (transposed by axis name between frameworks), a mapping by name (neutral or native names, in
            ``layout`` order), a list in ``parameters(target)`` order, or a file: its path, or the result of ``load``.
            A file is read straight into the parameters' memory where that is visible.
        where: Which parameters are meant. Default: all.
        layout: The axis order of values without axis names: "neutral" or "native". Default: neutral; a file without
            axis names has no default where the order matters.
        strict: True wants a value for each selected parameter; False takes a subset. An unknown key of a mapping is
            always an error; what a file has beyond the target is listed in the report.
        cast: True rounds to the parameter's dtype; False accepts another dtype only if no value changes.
        allow_nonfinite: True accepts NaN and infinity.
        names: ``{"0/*": "dense/0/*"}`` where the names of target and values differ (target glob: values' glob).
        part: Which part of a training run's file (``"model"``, ``"ema"``). Default: the one whose names fit.
        mismatched: "skip" leaves out values of another shape, and lists them in the report.
        adapt: ``{name or glob of the target: adapter}`` to bring values to the parameters' shapes: those of
            ``xweights.adapt`` (``Sum``, ``Resample``, ``Rows``, ...), or a list of them. ``Leave()`` keeps what the
            target has. Listed in the report.
        on_rank: The rank that has the values, for a model that several ranks hold: the others pass None, take their
            parts from it, and get a report of names alone. Default: every rank passes the same values.

    Returns:
        What was taken, and what was left in the file and in the model.

    Exact: the same bits, if nothing is adapted. The caller's arrays are never aliased; optimizer state is not touched.
    Raises SelectionError (missing, unknown, two parts or prefixes that fit), ShapeError, DtypeError, NonfiniteError,
    LayoutError, WriteError: all that is wrong at once, as one error that is of each of these kinds.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"b": np.zeros(2)}; report = xw.set_params(w, {"b": [1.0, 2.0]}); w["b"]
        array([1., 2.])
    """
    if is_path(target):
        if on_rank != "all":
            raise ArgumentError("on_rank= is for a model that several ranks hold\ngot: the path of a file")
        options: dict[str, Any] = {
            "where": where, "layout": layout, "strict": strict, "cast": cast, "allow_nonfinite": allow_nonfinite,
            "names": names, "part": part, "mismatched": mismatched, "adapt": adapt,
        }  # fmt: skip
        report: LoadReport = write_file(target, lambda file: set_params(file, values, **options))
        return report
    if layout not in (None, "neutral", "native"):
        raise ArgumentError(f'layout= is "neutral" or "native"\ngot: {layout!r}')
    if mismatched not in ("error", "skip"):
        raise ArgumentError(f'mismatched= is "error" or "skip"\ngot: {mismatched!r}')

    def set_all(everything: list[Parameter]) -> LoadReport:
        return _set_all(
            target, values, everything, where,
            layout=layout, strict=strict, cast=cast, allow_nonfinite=allow_nonfinite, names=names, part=part,
            mismatched=mismatched, adapt=adapt,
        )  # fmt: skip

    if on_rank != "all":
        options_alike = (layout, strict, cast, allow_nonfinite, names, part, mismatched)
        return set_params_on(target, on_rank, where, set_all, *options_alike)
    plan = open_kept(target)
    if plan is not None and names is None and part is None and adapt is None:
        if is_path(values) and plan.outline is not None:
            values = open_file(values)
        plainly = stream_plainly if isinstance(values, HasParts) else write_plainly
        written = plainly(plan, values, where, layout, allow_nonfinite=allow_nonfinite)
        if written is not None:
            return written
    return set_all(open_target(target) if plan is None else plan.everything)


def _set_all(
    target: Any,
    values: Any,
    everything: list[Parameter],
    where: WhereLike,
    *,
    layout: LayoutName | None,
    strict: bool,
    cast: bool,
    allow_nonfinite: bool,
    names: Names | None,
    part: str | None,
    mismatched: Literal["error", "skip"],
    adapt: Adapt | None,
) -> LoadReport:
    """Do what :func:`set_params` does to a target whose parameters these are."""
    with Vote(everything, "set_params", writing=True) as vote:
        if vote.group is not None:
            given = None if is_path(values) or isinstance(values, HasParts) else values
            vote.agree(open_name(values), given, layout, strict, cast, allow_nonfinite, names, part, mismatched)
        everything = vote.open_all(everything)
        chosen = vote.open(select(everything, where))
        hold_registry.check(chosen)
        problems = Problems("set_params can't write these values, and nothing was changed")
        adapters = read_adapters(adapt, chosen, problems)
        left = {identity for identity, adapting in adapters.items() if adapting.leaves}
        idle = find_idle_factors(everything) if strict else {}
        optional = left | idle.keys()
        found = find_values(
            target, values, chosen, everything,
            strict=strict, names=names, part=part, problems=problems, optional=optional,
        )  # fmt: skip
        refuse_missing_factors(found, chosen, idle, problems, strict=strict)
        order = values.layout if isinstance(values, Params) else layout
        by_identity = {p.identity(): p for p in chosen}
        writes: list[tuple[Parameter, Array]] = []
        sources: list[StreamedValue] = []
        skipped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        taken: dict[str, tuple[str, ...]] = {}
        adapted: dict[str, Adapted] = {}
        misfits: list[tuple[Pair, Parameter, str]] = []
        refuse_unused(adapters, found.pairs, problems)
        for pair in found.pairs:
            p = by_identity.get(pair.parameter.identity(), pair.parameter)
            adapting = adapters.get((pair.of or p).identity())
            if adapting is not None and adapting.leaves:
                found.left.update(dict.fromkeys(pair.keys, "Leave() keeps what the model has"))
                continue
            reason = p.refusal(writing=True)
            if reason is not None:
                problems.add(WriteError, f"{p.name!r} can't be written: {reason}")
                continue
            try:
                value = pair.values[0]
                if adapting is not None:
                    change = adapted_pair(pair, p, order, values, adapting)
                    adapted[p.name] = Adapted(change.how, change.before, change.shape)
                    array = p.layout.to_stored(change.compute())
                    writes.append((p, _check_value(array, p, cast, allow_nonfinite)))
                elif isinstance(value, Parameter) and pair.combine is None:
                    sources.append(StreamedValue(value, p, order))
                else:
                    writes.append((p, _check_value(_fit(pair, p, order, values), p, cast, allow_nonfinite)))
                check_tied(pair, problems)
                taken[p.name] = pair.keys
            except ShapeError as wrong:
                if adapting is not None:
                    problems.add(ShapeError, str(wrong))
                elif mismatched == "skip":
                    skipped[p.name] = (_shape_of(pair.values[0]), p.shape if order != "native" else p.layout.stored)
                else:
                    misfits.append((pair, p, str(wrong)))
            except XweightsError as wrong:
                problems.add(type(wrong), str(wrong))
        for position, (_, _, text) in enumerate(misfits):
            alike = [(pair, p) for pair, p, _ in misfits]
            suggested = "" if position else suggest_adapters(alike, chosen, order, values)
            problems.add(ShapeError, f"{text}{suggested}", fix='mismatched="skip" to leave them out')
        sources = cut_sources(sources, allow_nonfinite=allow_nonfinite)
        if not allow_nonfinite:
            scan_on_threads(sources)
        for late in (False, True):
            # Where anything is wrong, those that would be checked as they are written are checked now: all is said.
            if late and not problems:
                break
            for source in sources:
                if source.is_checked_late is late:
                    _note_wrong(problems, source.check, cast=cast, allow_nonfinite=allow_nonfinite)
        problems.check()
    homes = [p for p, _ in writes]
    arrays = copy_aliased(homes, [(array,) for _, array in writes])
    # A source that may still fail makes all writes fallible: it would fail between them.
    unsure = any(source.fallible for source in sources)
    targets = [*homes, *(source.p for source in sources)]
    risky = [p for p in targets if unsure or p.storage.fallible]
    with (
        alone(keys_of(targets)),
        defer_interrupts(),
        enter_guards([*chosen, *targets]),
        undo_on_error(risky),
        Outcome(vote.group if unsure or any(source.is_block for source in sources) else None),
    ):
        for position in order_fallible_first(homes):
            homes[position].write(arrays[position][0])
        unread = fill_on_threads(sources) if not any(source.p.storage.fallible for source in sources) else sources
        for source in sorted(unread, key=lambda source: not source.p.storage.fallible):
            if source.is_checked_late:
                _note_wrong(problems, source.write, cast=cast, allow_nonfinite=allow_nonfinite)
            else:
                source.write(cast=cast, allow_nonfinite=allow_nonfinite)
        problems.check()  # everything is undone then
    hold_registry.reapply(chosen)
    for p in chosen:
        if p.identity() in left:
            found.missing[p.name] = "Leave()"
    return found.report(taken, skipped, adapted)


def _note_wrong(problems: Problems, call: Callable[..., None], **options: bool) -> None:
    try:
        call(**options)
    except XweightsError as wrong:
        problems.add(type(wrong), str(wrong))


def _check_value(array: Array, p: Parameter, cast: bool, allow_nonfinite: bool) -> Array:
    """Return a value in the dtype of its parameter; raise if that would change it, or if it isn't finite."""
    if array.dtype != p.dtype:
        array = cast_exactly(array, p.dtype, what=repr(p.name), cast=cast)
    if not allow_nonfinite:
        check_finite(array, repr(p.name))
    return array


def _fit(pair: Pair, p: Parameter, order: LayoutName | None, values: Any) -> Array:
    """Return the value of a pair in the stored order of its parameter."""
    if pair.combine is not None:
        if order != "native" and not p.layout.is_identity:
            raise LayoutError(
                f"{p.name!r} is computed from {', '.join(map(repr, pair.keys))}, in the framework's own order\n"
                'Fix: layout="native"'
            )
        arrays = [v.read() if isinstance(v, Parameter) else host_array(v, what=repr(p.name)) for v in pair.values]
        return fit_value(pair.combine(arrays), p, "native", axes=None, gates=None)
    if order is None and pair.native and not p.layout.is_identity:
        raise LayoutError(
            f"{pair.keys[0]!r} is a name of the framework's own, and {p.name!r} isn't stored in neutral order\n"
            'Fix: layout="native" for values of the framework\'s own, layout="neutral" for Keras\' order'
        )
    axes = values.axes if isinstance(values, Params) else {}
    gates = values.gates if isinstance(values, Params) else {}
    key = pair.keys[0] if pair.keys else ""
    return fit_value(pair.values[0], p, order or "neutral", axes=axes.get(key), gates=gates.get(key))


def _shape_of(value: Any) -> tuple[int, ...]:
    return value.shape if isinstance(value, Parameter) else tuple(np.shape(value))
