"""Looking: which parameters a target has, and their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.params import LayoutName, Params
from xweights.core.selection import WhereLike, select
from xweights.core.targets import open_target, tracing
from xweights.errors import ArgumentError, Problems, TraceError, WriteError


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
    return select(open_target(target), where)


def get_params(target: Any, *, where: WhereLike = ..., layout: LayoutName = "neutral", copy: bool = True) -> Params:
    """Return the values as NumPy arrays that know their axes and roles.

    Args:
        target: As for :func:`parameters`.
        where: Default: all.
        layout: "neutral" (Keras' axis order, whatever the framework) or "native" (as the framework stores it).
        copy: False gives read-only views without a copy where the framework can; they follow or miss later updates.

    Exact: the very bits, bfloat16 and float8 as ml_dtypes arrays.
    Raises TargetError, SelectionError, TraceError (inside a compiled step), WriteError (no memory behind it).

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.get_params({"b": np.zeros(2)})["b"]
        array([0., 0.])
    """
    if layout not in ("neutral", "native"):
        raise ArgumentError(f'layout= is "neutral" or "native"\ngot: {layout!r}')
    if tracing(target):
        raise TraceError(
            "values can't be read on the host inside a compiled step\n"
            "Fix: read before or after the step; inside, edit with a verb or apply(target, function, where=...)"
        )
    chosen = select(open_target(target), where)
    check_readable(chosen)
    arrays = {}
    for p in chosen:
        array = p.read()
        if copy and not getattr(p.storage, "fresh", False):
            # K order: a copy in the stored order is one memcpy; its neutral view costs nothing.
            array = array.copy(order="K")
        elif not copy:
            array = array.view()
            array.flags.writeable = False
        arrays[p.name] = array if layout == "native" else p.layout.to_neutral(array)
    neutral = layout == "neutral"
    return Params._made(
        arrays,
        {p.name: p.layout.axes if neutral else p.layout.stored_axes for p in chosen},
        {p.name: p.role for p in chosen},
        {p.name: p.gates for p in chosen},
        layout,
    )


def check_readable(chosen: Sequence[Parameter]) -> None:
    """Refuse parameters whose values can't be seen from the host."""
    problems = Problems("these parameters can't be read")
    for p in chosen:
        reason = p.refusal(writing=False)
        if reason is not None:
            problems.add(WriteError, f"{p.name!r}: {reason}")
    problems.check()


def neutral_view(parameter: Parameter) -> Array:
    """Return a read-only look at one parameter in neutral order; don't keep it."""
    return parameter.layout.to_neutral(parameter.read())


def _opened(target: Any, where: WhereLike) -> list[Parameter]:
    if tracing(target):
        raise TraceError("values can't be read on the host inside a compiled step\nFix: look before or after the step")
    chosen = select(open_target(target), where)
    check_readable(chosen)
    return chosen
