"""`merge`: merge many targets into one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

from xweights.core import hold_registry
from xweights.core.agreement import Vote, open_shard
from xweights.core.layout import LayoutName
from xweights.core.names import Names
from xweights.core.parameter import Parameter
from xweights.core.params import Params
from xweights.core.selection import WhereLike
from xweights.core.targets import tracing
from xweights.edit.adapting import Adapt
from xweights.edit.load_report import Adapted
from xweights.edit.serve import work_on_one_rank
from xweights.edit.write import set_params
from xweights.errors import ArgumentError, LayoutError, Problems, TraceError
from xweights.merging.engine import MergeEngine, find_unit_axes
from xweights.merging.groups import Group
from xweights.merging.inputs import MergeInput, has_parts, list_inputs, settle_names
from xweights.merging.methods import Method
from xweights.merging.options import Settings, find_method
from xweights.merging.outputs import merge_in_memory, stream_out
from xweights.merging.pairing import group_parameters
from xweights.merging.prefixes import read_prefixes
from xweights.merging.report import MergeReport
from xweights.merging.shards import View, list_shared, merge_on_ranks, serve_by
from xweights.merging.ties import separate_ties


@overload
def merge(
    targets: Sequence[Any],
    method: str = "average",
    *,
    base: Any = None,
    where: WhereLike = ...,
    names: Names | Sequence[Names | None] | None = None,
    layout: LayoutName | None = None,
    part: str | None = None,
    into: None = None,
    out: None = None,
    rest: Literal["keep", "drop"] = "keep",
    cast: bool = False,
    allow_nonfinite: bool = False,
    durable: bool = True,
    adapt: Adapt | Sequence[Adapt | None] | None = None,
    **options: Any,
) -> Params: ...
@overload
def merge(
    targets: Sequence[Any],
    method: str = "average",
    *,
    base: Any = None,
    where: WhereLike = ...,
    names: Names | Sequence[Names | None] | None = None,
    layout: LayoutName | None = None,
    part: str | None = None,
    into: None = None,
    out: str | os.PathLike[str],
    rest: Literal["keep", "drop"] = "keep",
    cast: bool = False,
    allow_nonfinite: bool = False,
    durable: bool = True,
    adapt: Adapt | Sequence[Adapt | None] | None = None,
    **options: Any,
) -> MergeReport: ...
@overload
def merge(
    targets: Sequence[Any],
    method: str = "average",
    *,
    base: Any = None,
    where: WhereLike = ...,
    names: Names | Sequence[Names | None] | None = None,
    layout: LayoutName | None = None,
    part: str | None = None,
    into: Any,
    out: None = None,
    rest: Literal["keep", "drop"] = "keep",
    cast: bool = False,
    allow_nonfinite: bool = False,
    durable: bool = True,
    adapt: Adapt | Sequence[Adapt | None] | None = None,
    **options: Any,
) -> None: ...
def merge(
    targets: Sequence[Any],
    method: str = "average",
    *,
    base: Any = None,
    where: WhereLike = ...,
    names: Names | Sequence[Names | None] | None = None,
    layout: LayoutName | None = None,
    part: str | None = None,
    into: Any = None,
    out: str | os.PathLike[str] | None = None,
    rest: Literal["keep", "drop"] = "keep",
    cast: bool = False,
    allow_nonfinite: bool = False,
    durable: bool = True,
    adapt: Adapt | Sequence[Adapt | None] | None = None,
    **options: Any,
) -> Params | MergeReport | None:
    """Merge models, checkpoints, paths and mappings, of any framework and mixed, into one.

    Args:
        targets: A list of the targets to merge. They pair by neutral name, and by axis name within a parameter; the
            result has the names, axes and dtypes of the first. An array that one target ties to another, as the head of
            a language model to its embedding, stands for both where another target has two.
        method: "average", "lerp", "slerp", "ema", "model_stock", "task_arithmetic", "ties", "dare_linear", "dare_ties",
            "della", "della_linear", "breadcrumbs" or "breadcrumbs_ties": see docs/merging.md for formulas and sources.
        base: The target that task vectors start from, for the methods from "model_stock" on.
        where: Which parameters of the first target; the others are left out of the result. Default: all.
        names: ``{glob in the first target: glob in the others}`` where names differ, for targets that don't have the
            first one's names; or a list with a mapping or None for each target but the first, then base, then into.
            Also the key of randomness. Prefixes of wrappers (``module.``, ``_orig_mod.``) are seen through without it.
        layout: The layout of arrays of unknown axes that meet arrays of known ones: "neutral", or "native": as those
            are stored, which is what is taken for files under the framework's own names.
        part: Which part of the files of training runs is merged ("ema"): see :func:`xweights.parts`. Default: the one
            that holds weights; several are refused.
        into: A target to write the result to, in place and all or nothing; holds are reapplied, as by
            :func:`xweights.set_params`.
        out: A path to stream the result to, a block at a time; an existing file is replaced at the end.
        rest: What becomes of the rest of the first file (an optimizer, an epoch, a model's configuration), if ``out``
            has its format: "keep" leaves every byte of it as it is, and so do parameters that ``where`` leaves out;
            "drop" writes the merged weights alone, as in any other format.
        cast: True also merges different dtypes; the result is rounded once to the dtype of ``into``, else of the first.
        allow_nonfinite: True also merges NaN and infinity.
        durable: With ``out``, as for :func:`xweights.save`.
        adapt: ``{name or glob of the first target: adapter}`` to bring the other targets' parameters to the first one's
            shapes, as for :func:`xweights.set_params`; or a list with a mapping or None for each target but the first,
            then base. ``Rows(old=its tokens, new=tokens of the first, init="keep")`` merges the rows of two
            vocabularies that both have, and keeps the first one's others; ``Leave()`` keeps the first one's parameter.
        **options: Those of the method: weights=, t=, decay=, scale= (any number), density= and gamma= (0 to 1: shares
            of entries), epsilon= (0 to 0.5), normalize=, rescale= ("density", "l1" or None), per= (axes that number the
            units), seed= (an int). weights, density, gamma and epsilon also take a number for each target, and all
            numbers a mapping of where to these, as in ``weights={"*": (1, 1), "head/*": (0, 1)}``: the last that
            matches counts.

    Returns:
        Params in new memory; None with ``into``; a :class:`MergeReport` with ``out``, which says what became of the
        rest of the first file.

    Exact across frameworks: computed on the host in float32 (float64 for float64), sums in float64, and rounded once.
    "average" of equal targets gives exactly the same bits. Integers and bools aren't merged: they have to be equal;
    counters (``num_batches_tracked``) are the first one's.
    Raises SelectionError, ShapeError, DtypeError, LayoutError, NonfiniteError, ArgumentError, WriteError, TargetError:
    everything that is wrong at once, with nothing changed.

    Example:
        >>> import numpy as np, xweights as xw
        >>> a, b = {"w": np.array([1.0, 3.0])}, {"w": np.array([3.0, 5.0])}; xw.merge([a, b], weights=(3, 1))["w"]
        array([1.5, 3.5])
    """
    if not isinstance(targets, (list, tuple)) or not targets:
        raise ArgumentError(f"targets= is a list of targets\ngot: {type(targets).__name__}\nFix: merge([a, b], ...)")
    if into is not None and out is not None:
        raise ArgumentError("into= and out= can't both be given\nFix: merge into the target, then save it")
    if isinstance(into, (str, os.PathLike)):
        raise ArgumentError(f"into= is a target that is written in place\ngot: the path {os.fspath(into)!r}\nFix: out=")
    if layout not in (None, "neutral", "native"):
        raise ArgumentError(f'layout= is "neutral", "native" or None\ngot: {layout!r}')
    if rest not in ("keep", "drop"):
        raise ArgumentError(f'rest= is "keep" or "drop"\ngot: {rest!r}')
    spec = find_method(method)
    asked = _Asked(spec, method, targets, base, into, where, names, layout, part, cast, adapt, options)
    shared = list_shared([*targets, base, into])
    if shared:
        return _merge_shared(asked, shared, out, rest, allow_nonfinite=allow_nonfinite, durable=durable)
    prepared = _prepare(asked, allow_nonfinite=allow_nonfinite)
    if out is not None:
        return prepared.write_file(out, rest, durable=durable)
    result = merge_in_memory(prepared.engine, prepared.groups, named_by_into=into is not None)
    prepared.engine.problems.check()
    if into is None:
        return result
    set_params(into, result, strict=False, allow_nonfinite=allow_nonfinite)
    return None


@dataclass
class _Asked:
    """What a call of `merge` asks for."""

    spec: Method
    method: str
    targets: Sequence[Any]
    base: Any
    into: Any
    where: WhereLike
    names: Any
    layout: LayoutName | None
    part: str | None
    cast: bool
    adapt: Any
    options: dict[str, Any]


@dataclass
class _Prepared:
    """A merge of which everything has been checked that follows from names, shapes and dtypes."""

    engine: MergeEngine
    groups: Sequence[Group]
    first: MergeInput
    readings: Mapping[str, str]
    adapted: Mapping[str, Mapping[str, Adapted]]

    def write_file(self, out: str | os.PathLike[str], rest: str, *, durable: bool) -> MergeReport:
        """Stream the result to a file."""
        report = stream_out(self.engine, self.groups, self.first, out, durable, rest, self.readings)
        return replace(report, adapted=self.adapted)


def _prepare(asked: _Asked, *, allow_nonfinite: bool, view: View | None = None) -> _Prepared:
    """Open everything, pair it, and raise all that is wrong; ``view``: see `MergeInput.open`."""
    inputs = list_inputs(asked.targets, asked.base, asked.into, asked.names, asked.part)
    if any(tracing(merge_input.target) for merge_input in inputs):
        raise TraceError("merging reads values on the host\nFix: call it before or after the compiled step")
    problems = Problems("these can't be merged, and nothing was changed")
    for merge_input in inputs:
        merge_input.open(problems, view)
    problems.check()
    if asked.part is not None and not any(has_parts(merge_input.target) for merge_input in inputs):
        raise ArgumentError(
            f"part= names a part of a training run's file, and none of these has any\ngot: {asked.part!r}"
        )
    settle_names(inputs, problems)
    readings = read_prefixes(inputs, problems)
    problems.check()
    separate_ties(inputs)
    count = len(asked.targets)
    _check_counts(asked.spec, asked.method, count, asked.base, problems)
    settings = Settings(asked.spec, asked.options, count, inputs[0].parameters, problems)
    groups, adapted = group_parameters(inputs, count, asked.where, asked.layout, asked.cast, problems, asked.adapt)
    if asked.spec.units:
        _check_unit_axes(groups, asked.options.get("per"), problems)
    problems.check()
    engine = MergeEngine(asked.spec, settings, problems, allow_nonfinite)
    return _Prepared(engine, groups, inputs[0], readings, adapted)


def _merge_shared(
    asked: _Asked,
    shared: Sequence[Parameter],
    out: str | os.PathLike[str] | None,
    rest: str,
    *,
    allow_nonfinite: bool,
    durable: bool,
) -> Params | MergeReport | None:
    """Merge where some of the models are on several ranks, which all make this call."""
    with Vote(shared, "merge", writing=True) as vote:
        plain = (asked.names, asked.layout, asked.part, asked.cast, allow_nonfinite, rest, durable)
        shown = f"{asked.method}, {len(asked.targets)} targets, out={out!r}, {asked.options}"
        vote.agree(shown, shown, len(asked.targets), asked.base is None, asked.into is None, *plain)
        opened = vote.open(shared)
        prepared = _prepare(asked, allow_nonfinite=allow_nonfinite, view=open_shard)
        if asked.into is not None:
            hold_registry.check([group.into for group in prepared.groups if group.into is not None])
    ranks = vote.group
    assert ranks is not None
    if out is None:
        return merge_on_ranks(prepared.engine, prepared.groups, ranks, has_into=asked.into is not None)
    reports: list[MergeReport] = []

    def write(served: list[Parameter]) -> None:
        view = serve_by(shared, served)
        reports.append(
            _prepare(asked, allow_nonfinite=allow_nonfinite, view=view).write_file(out, rest, durable=durable)
        )

    work_on_one_rank(ranks, opened, write)
    return reports[0] if reports else MergeReport(os.fspath(out), len(prepared.groups), readings=prepared.readings)


def _check_counts(method: Method, name: str, count: int, base: Any, problems: Problems) -> None:
    if count < method.min_targets or count > (method.max_targets or count):
        wanted = (
            f"{method.min_targets} targets"
            if method.max_targets == method.min_targets
            else f"at least {method.min_targets} targets"
        )
        problems.add(ArgumentError, f"{name!r} merges {wanted}\ngot: {count}")
    if method.base and base is None:
        problems.add(ArgumentError, f"{name!r} needs base=, the target that the others were trained from")
    if base is not None and not method.base:
        problems.add(ArgumentError, f"{name!r} has no base", fix="put it among the targets, or choose another method")


def _check_unit_axes(groups: Sequence[Group], per: Any, problems: Problems) -> None:
    for group in groups:
        try:
            find_unit_axes(group, per)
        except LayoutError as wrong:
            problems.add(LayoutError, str(wrong))
