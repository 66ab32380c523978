"""`merge_lora`: merge LoRA factors into the weights that they add to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from xweights.core import hold_registry
from xweights.core.backend import Backend, MergesFactors
from xweights.core.dtypes import Array
from xweights.core.names import Names
from xweights.core.parameter import Parameter
from xweights.core.registry import backend_of
from xweights.core.selection import WhereLike, select
from xweights.core.targets import open_eagerly
from xweights.edit.guards import defer_interrupts, enter_guards, order_fallible_first, undo_on_error
from xweights.edit.read import effective_array
from xweights.errors import ArgumentError, NonfiniteError, Problems, SelectionError, TraceError, WriteError
from xweights.files.edit.replace_arrays import can_replace_arrays, replace_arrays
from xweights.files.io.arrays_to_write import array_to_write
from xweights.files.load import Checkpoint
from xweights.files.save import keys_of, write_arrays
from xweights.merging.inputs import open_part
from xweights.merging.lora.match import Change, find_changes, iter_nonfinite
from xweights.merging.lora.read_adapter import read_adapter
from xweights.merging.lora.report import LoraReport

_TRACED = TraceError("merging reads values on the host\nFix: call it before or after the compiled step")


def merge_lora(
    target: Any,
    adapter: Any = None,
    *,
    where: WhereLike = ...,
    names: Names | None = None,
    alpha: float | None = None,
    out: str | os.PathLike[str] | None = None,
    part: str | None = None,
    durable: bool = True,
) -> LoraReport:
    """Merge an adapter's factors into the weights that they add to: ``w + scaling * (B @ A)``.

    Args:
        target: A live model or a mapping of arrays, which is changed in place; or a file of weights (a path, a folder,
            the result of ``load``), of which ``out`` becomes a copy with merged weights.
        adapter: The folder that PEFT saved (``adapter_model.safetensors`` beside ``adapter_config.json``) or its file;
            factors by Keras' names (``dense/lora_kernel_a``), in a mapping or a file; or what
            :func:`xweights.extract_lora` returned. Default: the model's own factors, of LoRA-enabled Keras layers or of
            PEFT's active adapters. Keras layers are plain ones afterwards, and a compiled model wants ``compile``
            again; PEFT's layers count as merged (``model.unmerge_adapter()`` undoes it).
        where: Which weights of the target; the report lists what that leaves out of the adapter.
        names: ``{glob of the target: glob of the adapter's base}`` where their names differ. Prefixes of wrappers
            (``base_model.model.``, ``base_layer``, ``module.``) are seen through without it.
        alpha: Of factors by Keras' names, which don't state it: they count ``alpha / rank`` times. Default: once.
        out: Where the merged file goes; its ending determines the format. In the format of the base, everything else
            in the file stays as it is.
        part: Which part of a training run's file, as for :func:`xweights.load`.
        durable: With ``out``, as for :func:`xweights.save`.

    Returns:
        What was merged, and what the adapter had of its own in the place of a weight.

    Exact: the bits of PEFT's ``merge_and_unload`` in a live torch model, of ``layer.kernel`` in Keras. Of arrays and
    files those of PEFT on a CPU for matrices of 16 rows and columns or more and ranks up to 192 (measured), else within
    rounding; close: DoRA. Adapters of other kinds, and settings that change the arithmetic, are refused by name.
    Raises RefusedFileError, DamagedFileError, FileAccessError, SelectionError (another base), ShapeError, DtypeError
    (a quantised base), NonfiniteError, WriteError, ArgumentError: all at once, with nothing changed.

    Example:
        >>> import numpy as np, xweights as xw
        >>> model = {"dense/kernel": np.zeros((3, 2), np.float32)}
        >>> factors = {"dense/lora_kernel_a": np.ones((3, 1)), "dense/lora_kernel_b": np.full((1, 2), 0.5)}
        >>> report = xw.merge_lora(model, factors); model["dense/kernel"][0]
        array([0.5, 0.5], dtype=float32)
    """
    opened = open_part(target, part)
    everything = open_eagerly(opened, _TRACED)
    is_file = isinstance(opened, Checkpoint)
    _check_call(opened, adapter, out, alpha)
    if adapter is None:
        return _merge_own(opened, everything, where)
    found = read_adapter(adapter, alpha)
    label = repr(Path(opened.path).name) if is_file else "the target"
    problems = Problems(f"{found.label} can't be merged, and nothing was changed")
    chosen = {id(p) for p in select(everything, where)}
    changes = find_changes(found, everything, names, label, problems)
    left_out = tuple(name for name, change in changes.items() if id(change.parameter) not in chosen)
    kept = [change for name, change in changes.items() if name not in left_out]
    if changes and not kept:
        problems.add(SelectionError, f"where={where!r} selects no weight that {found.label} changes")
    if not is_file:
        for change in kept:
            reason = change.parameter.refusal(writing=True)
            if reason is not None:
                problems.add(WriteError, f"{change.parameter.name!r} can't be written: {reason}")
    problems.check()
    if is_file:
        _write_file(opened, everything, kept, os.fspath(out or ""), durable)
    else:
        _write_live(kept, problems)
    return LoraReport(
        found.label,
        {c.parameter.name: c.rank for c in kept if c.merges},
        tuple(c.parameter.name for c in kept if c.whole is not None),
        left_out,
        os.fspath(out) if is_file and out is not None else "",
    )


def _check_call(target: Any, adapter: Any, out: Any, alpha: Any) -> None:
    is_file = isinstance(target, Checkpoint)
    if is_file and adapter is None:
        raise ArgumentError("a file has no factors of its own in use\nFix: merge_lora(file, adapter, out=...)")
    if is_file and out is None:
        raise ArgumentError(f"the target is a file, which isn't changed\nFix: out={target.path!r} to replace it")
    if not is_file and out is not None:
        raise ArgumentError(
            "out= is for the copy of a file\nFix: merge into the model, then xweights.save(model, path)"
        )
    if alpha is not None and (isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not np.isfinite(alpha)):
        raise ArgumentError(f"alpha= is a number\ngot: {alpha!r}")


def _merge_own(target: Any, everything: Sequence[Parameter], where: WhereLike) -> LoraReport:
    """Merge the factors that a live model's layers use."""
    chosen = [p for p in select(everything, where) if not p.is_part() and p.edit_refusal() is not None]
    if not chosen:
        fix = 'merge_lora(model, "folder of an adapter") for one that the model doesn\'t use'
        raise SelectionError(f"no selected weight has LoRA factors or an adapter that is in use\nFix: {fix}")
    problems = Problems("these can't be merged, and nothing was changed")
    groups: dict[str, tuple[Backend, list[Parameter]]] = {}
    for p in chosen:
        backend = backend_of(p)
        merged = effective_array(p)
        if merged is None or not isinstance(backend, MergesFactors) or backend is None:
            reason = (p.edit_refusal() or "").partition("\nFix: ")[0]
            problems.add(WriteError, f"{p.name!r}: {reason}", fix="leave it out with where=")
            continue
        _note_nonfinite(p, merged, problems)
        groups.setdefault(backend.name, (backend, []))[1].append(p)
    hold_registry.check(chosen)
    problems.check()
    with defer_interrupts(), enter_guards(chosen):
        for backend, parameters in groups.values():
            assert isinstance(backend, MergesFactors)
            backend.merge_factors(parameters, target)
    hold_registry.reapply(chosen)
    return LoraReport("the model's own factors", dict.fromkeys((p.name for p in chosen), 0))


def _note_nonfinite(p: Parameter, merged: Array, problems: Problems) -> None:
    wrong = merged.size - int(np.count_nonzero(np.isfinite(merged)))
    if wrong:
        problems.add(NonfiniteError, _nonfinite(p, wrong))


def _nonfinite(p: Parameter, wrong: int) -> str:
    return f"{p.name!r}: {wrong:,} of {p.size:,} merged entries aren't finite in {p.dtype.name}"


def _write_live(changes: Sequence[Change], problems: Problems) -> None:
    """Write the merged weights; they are computed twice, so that all are known to be finite before one is written."""
    parameters = [change.parameter for change in changes]
    hold_registry.check(parameters)
    for p, wrong in iter_nonfinite(changes):
        problems.add(NonfiniteError, _nonfinite(p, wrong))
    problems.check()
    risky = [p for p in parameters if p.storage.fallible]
    with defer_interrupts(), enter_guards(parameters), undo_on_error(risky):
        for position in order_fallible_first(parameters):
            parameters[position].write(changes[position].compute())
    hold_registry.reapply(parameters)


def _write_file(
    base: Checkpoint, everything: Sequence[Parameter], changes: Sequence[Change], out: str, durable: bool
) -> None:
    """Write a copy of the base with merged weights, one at a time; an error leaves the old file."""
    by_id = {id(change.parameter): change for change in changes}
    if can_replace_arrays(base, out):
        positions = {id(p.handle): at for at, p in enumerate(base.__xweights_parameters__())}
        values = {positions[id(change.parameter.handle)]: partial(_compute, change) for change in changes}
        replace_arrays(base, values, out, durable=durable)
        return
    keys = keys_of(base, everything)
    arrays = [
        array_to_write(p, key=key, pieces=_pieces(by_id.get(id(p)))) for p, key in zip(everything, keys, strict=True)
    ]
    write_arrays(arrays, out, metadata=base.metadata or None, durable=durable)


def _pieces(change: Change | None) -> Any:
    return None if change is None else lambda: [_compute(change)]


def _compute(change: Change) -> Array:
    """Return a merged weight for a file; raise if it isn't finite."""
    merged, problems = change.compute(), Problems("this can't be merged, and no file was changed")
    _note_nonfinite(change.parameter, merged, problems)
    problems.check()
    return merged
