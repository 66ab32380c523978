"""Read a target: its parameters and their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from xweights.core.agreement import Vote
from xweights.core.blocks import aliased_values, any_overlap, copy_into
from xweights.core.dtypes import Array
from xweights.core.layout import LayoutName
from xweights.core.parameter import Parameter
from xweights.core.params import Params
from xweights.core.plan import Plan, Selection
from xweights.core.readings import words_of
from xweights.core.selection import WhereLike, select
from xweights.core.tables import render_html
from xweights.core.targets import open_eagerly, open_kept, open_target
from xweights.edit.one_to_one import fill_plainly
from xweights.errors import (
    ArgumentError,
    DtypeError,
    LayoutError,
    Problems,
    SelectionError,
    ShapeError,
    TraceError,
    WriteError,
    got_expected,
    near,
)

FIX = "\nFix: "
# PEFT's two modules around a model.
_PEFT = "base_model/model/"
# How many solutions NumPy tries before it takes memory for shared. (Its stubs know two values only.)
_EFFORT: Any = 1000


class _ParameterList(list[Parameter]):
    """A list that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        head = ["name", "axes", "shape", "dtype", "trainable"]
        rows = [
            [p.name, "?" if p.axes is None else ", ".join(p.axes), str(p.shape), p.dtype.name,
             "yes" if p.trainable else "no"]
            for p in self
        ]  # fmt: skip
        return render_html(head, rows)


def parameters(target: Any, *, where: WhereLike = ...) -> list[Parameter]:
    """Return the parameters of a target, in its order; a tied one once.

    Args:
        target: Model, layer, module, variable, mapping of arrays, or a list of these.
        where: Default: all (non-persistent buffers only by explicit name).

    Raises:
        TargetError, NotBuiltError: nothing can be reached.
        SelectionError: ``where`` selects nothing.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.parameters({"dense/kernel": np.ones((3, 2), np.float32)})
        [<Parameter 'dense/kernel' (?) = (3, 2) float32>]
    """
    return _ParameterList(select(open_target(target), where))


def get_params(
    target: Any,
    *,
    where: WhereLike = ...,
    layout: LayoutName = "neutral",
    copy: bool = True,
    out: Params | None = None,
    on_rank: int | Literal["all", "local"] = "all",
) -> Params:
    """Return the values as NumPy arrays with their axes and roles.

    Args:
        target: As for :func:`parameters`.
        where: Default: all.
        layout: "neutral" (Keras' axis order, whatever the framework) or "native" (as the framework stores it).
        copy: False gives read-only views without a copy where the framework can; they follow or miss later updates.
        out: Params of an earlier call, whose arrays are filled and which are returned: new memory takes longer than
            the copy.
        on_rank: Of a sharded model: "all", every rank gets whole arrays; a number, that rank alone, the others get an
            empty Params; "local", each rank what it has. All ranks make the call.

    Exact: the same bits, bfloat16 and float8 as ml_dtypes arrays.
    Raises TargetError, SelectionError, TraceError (inside a compiled step), WriteError (no memory behind it), and for
    ``out`` that doesn't fit SelectionError, ShapeError, DtypeError, LayoutError, with nothing written.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.get_params({"b": np.zeros(2)})["b"]
        array([0., 0.])
    """
    if layout not in ("neutral", "native"):
        raise ArgumentError(f'layout= is "neutral" or "native"\ngot: {layout!r}')
    if out is not None and not copy:
        raise ArgumentError("out= takes copies, and copy=False asks for views\nFix: leave one of them out")
    if on_rank != "all":
        if out is not None or not copy:
            raise ArgumentError(f"on_rank={on_rank!r} goes with neither out= nor copy=False\nFix: leave them out")
        from xweights.edit.read_shards import params_on

        return params_on(target, where, layout, on_rank, check_readable)
    plan = open_kept(target)
    selection = None if plan is None else select_kept(plan, where)
    likes: Sequence[Parameter]
    if selection is not None:
        likes, stored = selection.choice.likes, selection.read()
        is_own = [False] * len(stored)
    else:
        fix = "read before or after the step; inside, edit with a verb or apply(target, function, where=...)"
        likes, _ = select_for_reading(target, where, fix=fix, plan=plan)
        stored = [p.read() if copy else p.read().view() for p in likes]
        is_own = [p.storage.fresh for p in likes]
    if out is not None:
        if selection is None or not fill_plainly(out, selection, stored, layout):
            fill_params(out, likes, stored, layout)
        return out
    if copy:
        # K order: a copy in the stored order is one memcpy; its neutral view costs nothing.
        stored = [array if own else array.copy(order="K") for array, own in zip(stored, is_own, strict=True)]
    else:
        for array in stored:
            array.setflags(write=False)
    if layout == "native":
        arrays = {p.name: array for p, array in zip(likes, stored, strict=True)}
    else:
        arrays = {p.name: p.layout.to_neutral(array) for p, array in zip(likes, stored, strict=True)}
    if selection is None:
        return Params.of(likes, arrays, layout=layout)
    like = selection.choice.notes.get(("params", layout))
    if like is None:
        like = selection.choice.notes["params", layout] = Params.of(likes, {}, layout=layout)
    return like._with_arrays(arrays)


def select_kept(plan: Plan, where: WhereLike) -> Selection | None:
    """Return the selected parameters if their plan is kept; None if it isn't."""
    if plan.outline is None:
        return None
    selection = plan.select(where)
    # Whatever is in a group can be read.
    check_readable([selection.parameters[position] for position in selection.choice.singles])
    return selection


def fill_params(out: Params, likes: Sequence[Parameter], stored: Sequence[Array], layout: LayoutName) -> None:
    """Copy values into the arrays of Params, or raise everything that doesn't fit and copy nothing."""
    problems = Problems("out= doesn't fit these parameters, and nothing was written")
    if out.layout != layout:
        problems.add(LayoutError, f"out= is in {out.layout} order, and layout={layout!r}")
    arrays: list[tuple[Array, Array]] = []
    names = {p.name for p in likes}
    for name in out:
        if name not in names:
            problems.add(SelectionError, f"out= has {name!r}, which isn't selected\n{near(name, names)}")
    out_axes, out_gates = out.axes, out.gates
    for p, value in zip(likes, stored, strict=True):
        if p.name not in out:
            problems.add(SelectionError, f"out= has no array for {p.name!r}\n{near(p.name, out)}")
            continue
        home = out[p.name]
        axes = p.layout.axes if layout == "neutral" else p.layout.stored_axes
        # What is returned would say of the values what is true of those before.
        for what, has, wanted in (("axes", out_axes[p.name], axes), ("gates", out_gates[p.name], p.gates)):
            if has != wanted and None not in (has, wanted):
                problems.add(LayoutError, f"the {what} of out[{p.name!r}]\n{got_expected(has, wanted)}")
        neutral = value if layout == "native" else p.layout.to_neutral(value)
        if home.shape != neutral.shape:
            problems.add(ShapeError, f"out[{p.name!r}]\n{got_expected(home.shape, neutral.shape)}")
        elif home.dtype != neutral.dtype:
            problems.add(DtypeError, f"out[{p.name!r}]\n{got_expected(home.dtype.name, neutral.dtype.name)}")
        elif not home.flags.writeable:
            problems.add(WriteError, f"out[{p.name!r}] is read-only", fix="Params that get_params() returned as copies")
        arrays.append((home, neutral))
    for position in () if problems else _find_shared([home for home, _ in arrays], stored):
        problems.add(
            WriteError, f"out[{likes[position].name!r}] shares memory with another array of out= or the target"
        )
    problems.check()
    for home, value in arrays:
        copy_into(home, value)


def _find_shared(homes: Sequence[Array], stored: Sequence[Array]) -> list[int]:
    """Return the positions of arrays that can't be filled without changing another one, or a value."""
    arrays = [*homes, *stored]
    if not any_overlap(arrays):
        return []
    suspects = sorted(aliased_values(list(enumerate(homes)), arrays))
    # Spans that overlap may still be of columns that lie between each other.
    return [
        at
        for at in suspects
        if any(np.may_share_memory(homes[at], other, _EFFORT) for place, other in enumerate(arrays) if place != at)
    ]


def effective_params(target: Any, *, where: WhereLike = ..., layout: LayoutName = "neutral") -> Params:
    """Return the weights that the layers compute with: each base with its LoRA factors or adapter merged in.

    :func:`get_params` has the base and the factors as they are. Here the base has the value in use; factors, and
    originals whose copy is in use, are left out. Names are those of the model without adapters (``fc/kernel``, not
    ``base_model/model/fc/base_layer/kernel``), so that ``set_params(plain_model, effective_params(model))`` merges.

    Args:
        target: As for :func:`parameters`.
        where: Which of these weights, by the names that :func:`parameters` has. Default: all.
        layout: As for :func:`get_params`.

    Exact: the bits of ``layer.kernel`` in Keras and of PEFT's own ``merge``; all others as :func:`get_params` has them.
    A forward pass that multiplies by the factors one after the other agrees within rounding.
    Raises TargetError, SelectionError, TraceError, WriteError (an array in use that can't be computed).

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.effective_params({"b": np.zeros(2)})["b"]
        array([0., 0.])
    """
    if layout not in ("neutral", "native"):
        raise ArgumentError(f'layout= is "neutral" or "native"\ngot: {layout!r}')
    refused = TraceError("values can't be read on the host inside a compiled step\nFix: read before or after the step")
    everything = open_eagerly(target, refused)
    chosen = select([p for p in everything if not p.is_part()], where)
    check_readable(chosen)
    if len(chosen) < len(everything) and any(p.is_part() for p in everything):
        chosen = _name_plainly(chosen)
    problems = Problems("what these layers compute with can't be read")
    arrays: dict[str, Array] = {}
    for p in chosen:
        array = effective_array(p)
        if array is None:
            reason = p.edit_refusal() or ""
            problems.add(WriteError, f"{p.name!r}: {reason.partition(FIX)[0]}", fix="narrow where= to the others")
        else:
            arrays[p.name] = array if layout == "native" else p.layout.to_neutral(array)
    problems.check()
    return Params.of(chosen, arrays, layout=layout)


def _name_plainly(chosen: Sequence[Parameter]) -> list[Parameter]:
    """Return the parameters without the words in their names that wrappers of adapters add, where they stay apart."""
    names = ["/".join(words_of(p.name)) for p in chosen]
    if all(name.startswith(_PEFT) for name in names):
        names = [name.removeprefix(_PEFT) for name in names]
    if len(set(names)) < len(names):
        return list(chosen)
    return [p.replace(name=name, aliases=()) for p, name in zip(chosen, names, strict=True)]


def effective_array(p: Parameter) -> Array | None:
    """Return a new array, in stored order, of what a layer computes with in place of a parameter; None if unknown."""
    if p.edit_refusal() is None:
        return p.read() if p.storage.fresh else p.read().copy(order="K")
    value = p.effective()
    if value is None or value.dtype.itemsize >= p.dtype.itemsize:
        return value
    # Under mixed precision Keras computes in a narrower dtype than it stores, whose values the wider one has too.
    return value.astype(p.dtype)


def check_readable(chosen: Sequence[Parameter]) -> None:
    """Refuse parameters whose values can't be read on the host."""
    problems = Problems("these parameters can't be read")
    for p in chosen:
        reason = p.refusal(writing=False)
        if reason is not None:
            problems.add(WriteError, f"{p.name!r}: {reason}")
    problems.check()


def neutral_view(parameter: Parameter) -> Array:
    """Return the values of one parameter in neutral order; callers neither keep nor change them."""
    return parameter.layout.to_neutral(parameter.read())


def open_for_reading(target: Any, where: WhereLike, *, fix: str = "look before or after the step") -> list[Parameter]:
    """Return the selected parameters, whose values can be read; raise TraceError inside a compiled step."""
    return select_for_reading(target, where, fix=fix)[0]


def select_for_reading(
    target: Any, where: WhereLike, *, fix: str = "look before or after the step", plan: Plan | None = None
) -> tuple[list[Parameter], list[Parameter]]:
    """Return the selected parameters as :func:`open_for_reading` does, and all of them; of a plan if there is one."""
    refused = TraceError(f"values can't be read on the host inside a compiled step\nFix: {fix}")
    everything = open_eagerly(target, refused) if plan is None else plan.everything
    with Vote(everything, "a call that reads", writing=False) as vote:
        everything = vote.open_all(everything)
        chosen = vote.open(select(everything, where))
        check_readable(chosen)
    return chosen, everything
