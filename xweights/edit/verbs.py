"""The editing verbs, each one line over a rule.

Every verb takes a target first: a model, layer, module or variable of an installed framework, a mapping of arrays, or
a list of these. ``where=`` selects (a glob, a name, ``role(...)``, ``layer(...)``, a function, a list, ``...``);
nothing is written unless everything can be written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xweights.core.names import Names
from xweights.core.selection import WhereLike
from xweights.core.values import refuse_nonfinite
from xweights.edit.apply import run
from xweights.errors import SelectionError
from xweights.rules.base import Initializer, Per, Scope
from xweights.rules.elementwise import Add, Clip, Fill, Mask, NonNegative, Scale


def fill(target: Any, value: Any, *, where: WhereLike | None = None, allow_nonfinite: bool = False) -> None:
    """Set every selected entry to ``value``.

    Args:
        target: What holds the weights.
        value: A number, an array that broadcasts to the neutral shape, or a mapping of these by name.
        where: Default: trainable floating-point parameters.
        allow_nonfinite: Take NaN and infinity, too.

    Exact. Raises SelectionError, ShapeError, DtypeError, NonfiniteError, WriteError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"b": np.zeros(2)}; xw.fill(w, 1.0); w["b"]
        array([1., 1.])
    """
    refuse_nonfinite(value, "value", allow=allow_nonfinite)
    run(target, Fill(value), where=_default_to_names(value, where), call="fill")


def scale(target: Any, factor: Any, *, where: WhereLike | None = None, allow_nonfinite: bool = False) -> None:
    """Multiply the selected entries by ``factor``.

    Args:
        target: What holds the weights.
        factor: A number, an array that broadcasts to the neutral shape, or a mapping of these by name.
        where: Default: trainable floating-point parameters.
        allow_nonfinite: Take NaN and infinity, too.

    Exact (subnormals aside). Raises SelectionError, ShapeError, DtypeError, NonfiniteError, WriteError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"b": np.ones(2)}; xw.scale(w, 0.9); w["b"]
        array([0.9, 0.9])
    """
    refuse_nonfinite(factor, "factor", allow=allow_nonfinite)
    run(target, Scale(factor), where=_default_to_names(factor, where), call="scale")


def add(target: Any, delta: Any, *, where: WhereLike | None = None, allow_nonfinite: bool = False) -> None:
    """Add ``delta`` to the selected entries.

    Args:
        target: What holds the weights.
        delta: A number, an array that broadcasts to the neutral shape, or a mapping of these by name.
        where: Default: trainable floating-point parameters; with a mapping: the names in it.
        allow_nonfinite: Take NaN and infinity, too.

    Exact (subnormals aside). Raises SelectionError, ShapeError, DtypeError, NonfiniteError, WriteError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"b": np.ones(2)}; xw.add(w, {"b": np.array([0.5, -0.5])}); w["b"]
        array([1.5, 0.5])
    """
    refuse_nonfinite(delta, "delta", allow=allow_nonfinite)
    run(target, Add(delta), where=_default_to_names(delta, where), call="add")


def clip(target: Any, low: Any = None, high: Any = None, *, where: WhereLike | None = None) -> None:
    """Bring every selected entry into [low, high]; NaN stays NaN.

    Args:
        target: What holds the weights.
        low: A number, an array, a mapping by name, or None for no bound.
        high: The same.
        where: Default: trainable floating-point parameters.

    Exact: ``where(w < low, low, where(w > high, high, w))``, so -0.0 stays -0.0.
    Raises ArgumentError if low > high, SelectionError, ShapeError, DtypeError, WriteError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"b": np.array([-3.0, 0.5])}; xw.clip(w, -1, 1); w["b"]
        array([-1. ,  0.5])
    """
    run(target, Clip(low, high), where=where, call="clip")


def clip_norm(target: Any, max: float, *, scope: Scope = "each", where: WhereLike | None = None) -> None:
    """Scale each parameter, or all together, down to an L2 norm of at most ``max``.

    Args:
        target: What holds the weights.
        max: The largest norm, > 0.
        scope: "each" parameter by itself, or "global": one norm over all of them.
        where: Default: trainable floating-point parameters.

    Close (rtol 1e-6): norms are accumulated in float64. Pascanu et al., ICML 2013.
    Raises ArgumentError, SelectionError, DtypeError, WriteError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"b": np.array([3.0, 4.0])}; xw.clip_norm(w, 1.0); w["b"]
        array([0.6, 0.8])
    """
    from xweights.rules.norms import ClipNorm

    run(target, ClipNorm(max, scope), where=where, call="clip_norm")


def max_norm(target: Any, max: float, *, per: Per, where: WhereLike | None = None) -> None:
    """Scale each unit down to an L2 norm of at most ``max``; a unit within the bound keeps its bits.

    Args:
        target: What holds the weights.
        max: The largest norm, > 0.
        per: The axis (or axes) that number the units: "out" is one per output, over all other axes.
        where: Default: kernels and embeddings.

    Close (rtol 1e-6): norms are accumulated in float64. Srebro & Shraibman, COLT 2005.
    Raises ArgumentError, LayoutError (no such axis, or axes unknown), SelectionError, WriteError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = xw.Params({"d/kernel": np.array([[3.0, 0.1], [4.0, 0.2]])}, axes={"d/kernel": ("in", "out")})
        >>> xw.max_norm(w, 1.0, per="out"); w["d/kernel"]
        array([[0.6, 0.1],
               [0.8, 0.2]])
    """
    from xweights.rules.norms import MaxNorm

    run(target, MaxNorm(max, per), where=where, call="max_norm")


def unit_norm(target: Any, *, per: Per, where: WhereLike | None = None) -> None:
    """Scale each unit to an L2 norm of 1; a zero unit stays zero.

    Args:
        target: What holds the weights.
        per: The axis (or axes) that number the units.
        where: Default: kernels and embeddings.

    Close (rtol 1e-6). Raises ArgumentError, LayoutError, SelectionError, WriteError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = xw.Params({"d/kernel": np.array([[3.0], [4.0]])}, axes={"d/kernel": ("in", "out")})
        >>> xw.unit_norm(w, per="out"); w["d/kernel"].ravel()
        array([0.6, 0.8])
    """
    from xweights.rules.norms import UnitNorm

    run(target, UnitNorm(per), where=where, call="unit_norm")


def non_negative(target: Any, *, where: WhereLike | None = None) -> None:
    """Set the selected negative entries to +0.0; -0.0 and NaN stay.

    Args:
        target: What holds the weights.
        where: Default: trainable floating-point parameters.

    Exact. Raises SelectionError, WriteError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"b": np.array([-3.0, 0.5])}; xw.non_negative(w); w["b"]
        array([0. , 0.5])
    """
    run(target, NonNegative(), where=where, call="non_negative")


def spectral_norm(target: Any, max: float, *, where: WhereLike | None = None) -> None:
    """Scale each kernel down to a largest singular value of at most ``max``.

    Args:
        target: What holds the weights.
        max: The largest singular value, > 0; the matrix is (all other axes, ``out``).
        where: Default: kernels and embeddings.

    Close (rtol 1e-5): a full decomposition in float64. Yoshida & Miyato, arXiv:1705.10941.
    Raises ArgumentError, LayoutError, ShapeError, SelectionError, WriteError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"d/kernel": np.diag([4.0, 1.0])}; xw.spectral_norm(w, 2.0); w["d/kernel"].diagonal()
        array([2. , 0.5])
    """
    from xweights.rules.norms import SpectralNorm

    run(target, SpectralNorm(max), where=where, call="spectral_norm")


def noise(
    target: Any,
    std: float | None = None,
    *,
    low: float | None = None,
    high: float | None = None,
    seed: int,
    step: int = 0,
    where: WhereLike | None = None,
    names: Names | None = None,
) -> None:
    """Add random numbers: normal with ``std``, or uniform between ``low`` and ``high``.

    Args:
        target: What holds the weights.
        std: Standard deviation, >= 0.
        low: Lower bound of uniform noise instead.
        high: Its upper bound, reached by rounding only.
        seed: With the neutral name and ``step`` it decides the numbers, the same on every framework.
        step: Another step gives other numbers.
        where: Default: trainable floating-point parameters.
        names: ``{"0/*": "dense/0/*"}``: draw under a twin's names, to get the twin's numbers.

    Exact: drawn and scaled on the host, in neutral order. Inside a compiled step, bind it first and call
    ``bound.draw(step)`` before each step. Raises ArgumentError, SelectionError, DtypeError, UseBindError, WriteError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"b": np.zeros(2, np.float32)}; xw.noise(w, 0.1, seed=0); bool(w["b"].all())
        True
    """
    from xweights.rules.noise import Noise

    rule = Noise(std, low, high, seed, step, names)
    run(target, rule, where=where, call="noise")


def init(
    target: Any,
    initializer: Initializer,
    *,
    seed: int,
    where: WhereLike | None = None,
    names: Names | None = None,
    **options: Any,
) -> None:
    """Replace the selected weights by initial ones, with the same bytes in every framework.

    Args:
        target: What holds the weights.
        initializer: "zeros", "ones", "constant" (value=), "uniform" (low=, high=), "normal" and "truncated_normal"
            (mean=, std=), "orthogonal" and "identity" (gain=), "variance_scaling" (scale=, mode=, distribution=) or
            one of its names: glorot/xavier, he/kaiming, lecun, each with _uniform or _normal; or a function
            ``(shape, generator, **options) -> array`` in neutral order.
        seed: With the neutral name it decides the numbers.
        where: Default: kernels and embeddings.
        names: ``{"0/*": "dense/0/*"}``: draw under a twin's names, to get the twin's numbers.
        **options: The initializer's.

    Exact. torch's kaiming_normal and xavier_normal are not truncated, Keras' he_normal and glorot_normal are: both are
    here under their own names. Fans are counted by axis names. Glorot & Bengio, AISTATS 2010; He et al., ICCV 2015;
    Saxe et al., arXiv:1312.6120. Raises ArgumentError, LayoutError, ShapeError, SelectionError, WriteError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"d/kernel": np.zeros((2, 2))}; xw.init(w, "identity", seed=0); w["d/kernel"]
        array([[1., 0.],
               [0., 1.]])
    """
    from xweights.rules.initializers import Init

    run(target, Init(initializer, seed, options, names), where=where, call="init")


def mask(target: Any, keep: Any, *, where: WhereLike | None = None) -> None:
    """Keep the entries where ``keep`` is True; the others become +0.0, also where they were NaN or negative.

    Args:
        target: What holds the weights.
        keep: A bool array of the neutral shape, or a mapping of these by name (what :func:`prune` returns).
        where: Default: with a mapping, the names in it; else kernels and embeddings.

    Exact, for subnormals and NaN payloads too: bits are moved, not multiplied.
    Raises SelectionError, ShapeError, DtypeError, WriteError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"d/kernel": np.array([1.0, -2.0])}; xw.mask(w, {"d/kernel": np.array([True, False])}); w["d/kernel"]
        array([1., 0.])
    """
    run(target, Mask(keep), where=_default_to_names(keep, where), call="mask")


def set_entries(target: Any, index: Any, value: Any, *, where: WhereLike, allow_nonfinite: bool = False) -> None:
    """Set single entries, rows or blocks of the selected parameters to ``value``.

    Args:
        target: What holds the weights.
        index: In neutral order: a tuple of ints and slices, {"in": 0, "out": slice(3)} by axis names, or a bool array
            of the parameter's shape.
        value: A number, or an array that broadcasts to the indexed part.
        where: Which parameters; required.
        allow_nonfinite: Take NaN and infinity, too.

    Exact. Raises SelectionError (also if the index selects no entry), ShapeError, LayoutError, DtypeError,
    NonfiniteError, WriteError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"d/kernel": np.zeros((2, 2))}; xw.set_entries(w, (0, 0), 1.0, where="d/kernel"); w["d/kernel"]
        array([[1., 0.],
               [0., 0.]])
    """
    from xweights.rules.entries import SetEntries

    refuse_nonfinite(value, "value", allow=allow_nonfinite)
    run(target, SetEntries(index, value), where=where, call="set_entries")


def _default_to_names(value: Any, where: WhereLike | None) -> WhereLike | None:
    """Return ``where``, or the names in a mapping of values if ``where`` is None."""
    if where is None and isinstance(value, Mapping):
        if not value:
            raise SelectionError("an empty mapping of values selects nothing")
        return list(value)
    return where
