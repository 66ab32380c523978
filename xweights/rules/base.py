"""Rules: small frozen objects, each a pure function ``w -> w'`` written in ``ops.*`` and axis names only.

Rules get traced: no ``.item()``, no data-dependent ``if``, nothing of NumPy on weights. Anything else that a rule
needs (numbers, masks, deltas) is prepared on the host by :meth:`Rule.operands`, before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from xweights.core.casting import as_number, is_number
from xweights.core.dtypes import Array, is_complex
from xweights.core.numpy_backend import NumpyOps
from xweights.core.parameter import Parameter
from xweights.core.protocols import Ops
from xweights.core.records import record
from xweights.core.selection import DEFAULT_EDITED, Where, WhereLike
from xweights.core.values import operand
from xweights.errors import ArgumentError, DtypeError, ShapeError

FLOAT64 = np.dtype(np.float64)

# What arguments of rules, and of their verbs, may be.
Per = str | tuple[str, ...]
Scope = Literal["each", "global"]
Initializer = str | Callable[..., Any]


class Rule:
    """A change of one parameter's weights.

    Subclass it to make a rule of your own: define :meth:`__call__`, and :meth:`operands` if it needs more than ``w``.

    Example:
        >>> import numpy as np, xweights as xw
        >>> class Halve(xw.Rule):
        ...     def operands(self, parameter): return (np.asarray(0.5, parameter.dtype),)
        ...     def __call__(self, w, ops, parameter, half, shared=None): return ops.multiply(w, half)
        >>> w = {"w": np.array([2.0])}; xw.apply(w, Halve(), where=...); w["w"]
        array([1.])
    """

    exact: bool = True
    """True: bit-identical on every backend. False: equal within the rtol that its docstring states."""
    joint: bool = False
    """True: :meth:`measure` looks at all selected parameters together, before any is changed."""
    default_where: ClassVar[Where | None] = DEFAULT_EDITED
    """The selection of its verb and of `edit_file` where no ``where=`` is given; None: ``where=`` is required."""
    random: bool = False
    """True: draws on the host, so a compiled step needs ``bound.draw(step)``; operands can't fail after check."""

    elementwise: ClassVar[bool] = False
    """True: :meth:`__call__` looks at ``w`` and the operands only, entry by entry, and uses edits of ``ops`` only.

    It may then be called once for many arrays in their stored order, and ``parameter`` is any of them.
    """
    reads_weights: ClassVar[bool] = False
    """True: :meth:`operands` reads the weights, and doesn't only look at names, axes, shapes and dtypes."""

    @property
    def takes_long(self) -> bool:
        """True if :meth:`operands` draws as many numbers as there are weights: several threads then share the work."""
        return False

    @property
    def by_dtype(self) -> bool:
        """True if :meth:`check` and :meth:`operands` look at a parameter's dtype only: called once for each dtype."""
        return False

    @property
    def operand_by_name(self) -> tuple[Any, np.dtype[Any] | None] | None:
        """What was passed as the only operand and its dtype (None: the weights'), if an array of it needs no check.

        That is, if :meth:`check` and :meth:`operands` accept every array of that dtype and of the parameter's shape.
        """
        return None

    def check(self, parameter: Parameter) -> None:
        """Raise the errors that :meth:`operands` doesn't find."""

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        """Return the host arrays that the rule needs, checked against the parameter; raise if one is wrong."""
        return ()

    def measure(
        self, ws: Sequence[Any], ops: Ops, parameters: Sequence[Parameter], operands: Sequence[tuple[Any, ...]]
    ) -> Any:
        """Return a joint rule's measure of all weights: one value for ``shared``, or a list of one per parameter."""
        return None

    def measure_on_host(self, parameters: Sequence[Parameter]) -> Any:
        """Return the same in eager code, where a rule may have a faster way."""
        views = [p.layout.to_neutral(p.read()) for p in parameters]
        return self.measure(views, NumpyOps(), parameters, [self.operands(p) for p in parameters])

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        """Return the new weights. ``w`` is in neutral axis order; edits of ``ops`` may reuse its memory."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__")

    def on_host(self, w: Array, parameter: Parameter) -> bool:
        """Edit a writable host view in place if there is a faster way than ``__call__``; return whether it did."""
        return False

    def __repr__(self) -> str:
        if not is_dataclass(self):
            return f"{type(self).__name__}()"
        # A default is an attribute of the class. (Field.default is a sentinel where there is none, which torch.compile,
        # in which UseBindError shows a rule, can't trace.)
        kind = type(self)
        names = [field.name for field in fields(self)]
        changed = [n for n in names if not hasattr(kind, n) or getattr(self, n) is not getattr(kind, n)]
        return f"{kind.__name__}({', '.join(f'{name}={_short(getattr(self, name))}' for name in changed)})"


def where_of(rule: Rule, where: WhereLike | None, call: str, *, default: bool = True) -> WhereLike:
    """Return ``where``, or the rule's default if that counts; raise ArgumentError where neither says it."""
    chosen = rule.default_where if where is None and default else where
    if chosen is None:
        raise ArgumentError(
            f"{call} with {rule!r} has no default selection: where= is required\nFix: where='*/kernel', or ... for all"
        )
    return chosen


def _short(value: Any) -> str:
    if getattr(value, "shape", None):
        return f"<array {value.shape}>"
    if hasattr(value, "keys"):
        shown = ", ".join(f"{key!r}: {_short(value[key])}" for key in list(value)[:3])
        return "{" + shown + (", ..." if len(value) > 3 else "") + "}"
    return repr(value)


def need_real(parameter: Parameter, what: str) -> None:
    """Refuse a complex parameter."""
    if is_complex(parameter.dtype):
        raise DtypeError(
            f"{what} is for real numbers, and {parameter.name!r} is {parameter.dtype.name}\n"
            "Fix: leave it out with where=, or say what becomes of both parts: apply(target, function, where=...)"
        )


def need_floating(parameter: Parameter, what: str) -> None:
    """Refuse a complex, integer or bool parameter."""
    need_real(parameter, what)
    if not parameter.floating:
        raise DtypeError(f"{what} is for floating-point parameters\n{parameter.name!r} is {parameter.dtype.name}")


@record(frozen=True, eq=False, repr=False)
class Function(Rule):
    """A user's function of the native tensor, in neutral axis order. As exact as the function is."""

    default_where = None
    function: Callable[[Any], Any]
    exact = False

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        new = self.function(w)
        name = getattr(self.function, "__name__", repr(self.function))
        if new is None:
            raise ArgumentError(f"{name} returned None for {parameter.name!r}\nFix: return the new tensor")
        if isinstance(new, np.generic):  # NumPy's result of arithmetic on a 0-d array
            new = np.asarray(new)
        if is_number(new) and not isinstance(new, np.ndarray):
            new = as_number(new, parameter.dtype, what=f"what {name} returned")
        if not hasattr(new, "shape") or not hasattr(new, "dtype"):
            raise ArgumentError(
                f"{name} returned no tensor for {parameter.name!r}\n"
                f"got: {type(new).__module__}.{type(new).__qualname__}\nFix: return the new tensor"
            )
        if isinstance(new, np.ndarray) and not isinstance(w, np.ndarray):
            new = ops.constant(operand(new, parameter, what=f"what {name} returned"), w)
        if tuple(new.shape) != parameter.shape:
            raise ShapeError(
                f"{name} changed the shape of {parameter.name!r}\n"
                f"got:      {tuple(new.shape)}\nexpected: {parameter.shape}"
            )
        if new.dtype != w.dtype:
            raise DtypeError(
                f"{name} changed the dtype of {parameter.name!r}\ngot:      {new.dtype}\nexpected: {w.dtype}\n"
                "Fix: cast inside the function"
            )
        return new


def is_foreign(rule: Rule) -> bool:
    """Return True for a rule from outside xweights, which may fail halfway and must run as it is."""
    return type(rule).__module__.partition(".")[0] != __name__.partition(".")[0] or isinstance(rule, Function)
