"""The protocols that a backend keeps, and the door it comes in by.

Owns :class:`Ops`, :class:`Storage`, :class:`Adapter`, :class:`Backend`, :class:`Entry` and the look-up of backends.
Imports axes, errors and parameter. It knows no framework's name: a backend is found by the root package in
``type(x).__mro__``, matched with the entry points of the group ``xweights.backends`` *before* one is loaded,
so that a user of one framework never imports another.

Four small protocols, because they change for different reasons:

    Adapter   found by the type of the *target*:  which parameters it has and what they are called
    Storage   held by each parameter:             the one place that reads and lawfully writes a native array
    Ops       found by the type of the *array*:   the maths that rules are written in
    Backend   what an entry point loads:          hands out the other three
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np

from xweights.core.layout import Layout, Shape, layout_of, plain_layout
from xweights.core.parameter import Array, Parameter
from xweights.errors import BackendBrokenError, BackendMissingError, LayoutError

GROUP = "xweights.backends"
Function = TypeVar("Function", bound=Callable[..., Any])


class Ops(Protocol):
    """The array maths of one framework. Rules are written in nothing else, so they can be traced.

    *Edits* take the weights first and MAY reuse their memory: after ``y = ops.multiply(x, s)`` only ``y`` counts.
    The result has the dtype and shape of ``x``. Other operands are arrays made by :meth:`constant` (0-d for a
    number), of the dtype of ``x``, broadcast against it. Each is exact: the same bits on every backend.

    *Measures* never change their arguments.
    """

    name: str

    # edits
    def multiply(self, x: Any, y: Any) -> Any:
        """x * y, rounded once in the dtype of x."""

    def add(self, x: Any, y: Any) -> Any:
        """x + y, rounded once in the dtype of x."""

    def clip(self, x: Any, low: Any | None, high: Any | None) -> Any:
        """where(x < low, low, where(x > high, high, x)): NaN stays NaN, -0.0 stays -0.0."""

    def keep(self, x: Any, mask: Any) -> Any:
        """x where the bool mask is True, +0.0 elsewhere; moves bits, does no arithmetic."""

    def choose(self, x: Any, mask: Any, y: Any) -> Any:
        """x where the bool mask is True, y elsewhere; moves bits, does no arithmetic."""

    def fill(self, x: Any, value: Any) -> Any:
        """value, broadcast to the shape of x."""

    def set_at(self, x: Any, index: tuple[Any, ...], value: Any) -> Any:
        """x with x[index] = value. index: ints, slices and at most one bool array (NumPy), static while tracing."""

    def fence(self, x: Any) -> Any:
        """x, unchanged, through which no compiler may fuse arithmetic. A no-op in eager code."""

    # measures
    def sum_squares(self, x: Any, axes: tuple[int, ...] | None) -> Any:
        """Sum of squares in float64 over axes (kept with length 1), or over all (0-d) for None."""

    def largest_singular_value(self, x: Any) -> Any:
        """The largest singular value of a matrix, in float64, 0-d."""

    def rank(self, x: Any) -> Any:
        """The position (an integer) of each entry in the stable ascending order along the last axis; NaN goes last."""

    def abs(self, x: Any) -> Any: ...
    def sqrt(self, x: Any) -> Any: ...
    def divide(self, x: Any, y: Any) -> Any: ...
    def minimum(self, x: Any, y: Any) -> Any: ...
    def sum(self, x: Any, axes: tuple[int, ...]) -> Any:
        """Sum over axes, kept with length 1; in the dtype of x."""

    def matmul(self, x: Any, y: Any) -> Any:
        """The product of two matrices."""

    def greater(self, x: Any, y: Any) -> Any: ...
    def where(self, mask: Any, x: Any, y: Any) -> Any: ...
    def cast(self, x: Any, dtype: np.dtype[Any]) -> Any: ...
    def reshape(self, x: Any, shape: Shape) -> Any: ...
    def transpose(self, x: Any, order: tuple[int, ...]) -> Any: ...
    def concatenate(self, xs: Sequence[Any]) -> Any:
        """Join 1-D arrays."""

    def differentiable(
        self, value: Callable[..., Any], gradient: Callable[..., Sequence[Any]], tensors: Sequence[Any]
    ) -> Any:
        """value(*tensors), a number, whose gradient is gradient(upstream, *tensors): one for each tensor, of its dtype.

        Both functions are written in these ops. First derivatives only: a second one raises, or fails by itself.
        """

    def constant(self, value: Array, like: Any) -> Any:
        """A host array as an array of this framework, on the device of ``like``. May share memory: read only."""

    def buffer(self, value: Array, like: Any) -> Any:
        """Something of the framework that holds ``value`` and can be refilled between calls of a compiled step."""

    def refill(self, buffer: Any, value: Array) -> None:
        """Copy other numbers into a buffer, in eager code; a step compiled before must see them."""

    def current(self, buffer: Any) -> Any:
        """The array that a buffer holds now; traceable."""


class Storage(Protocol):
    """How one kind of native array is read and lawfully written. Every read and every write goes through here.

    ``handle`` is what a Parameter carries: the native variable, or a small object that finds it. Arrays are in
    *stored* order and shape; the core does the rest.
    """

    fallible: bool
    """True if a checked write can still fail (user code runs, device memory is needed): the core then backs up."""
    # May also have ``replaces = True``: a write puts a new buffer in the old one's place, and never writes into one
    # that somebody may still look at. The core then doesn't read the parameter to find out whether a value lies in it.
    # Or ``pieces(handle)`` and ``read_into(handle, out)``, where entries needn't all be in memory at once (filling.py).
    # And ``fresh = True``: what read() returns is nobody else's, so that it needn't be copied to be kept.

    def identity(self, handle: Any) -> Hashable:
        """Return a key that two handles share if they are one array, so that a tied array counts once."""

    def refusal(self, handle: Any, *, writing: bool) -> str | None:
        """Why this array can't be read or written (distributed, unallocated, quantized, read-only), or None."""

    def read(self, handle: Any) -> Array:
        """Return the values on the host, as a view where there can be one. Callers neither keep nor change it."""

    def write(self, handle: Any, value: Array) -> None:
        """Copy ``value`` (right shape and dtype, any strides) in; in place, and never aliasing it."""

    def leaf(self, handle: Any, *, native: bool = False) -> Any:
        """Return what :class:`Ops` work on: the quickest form, or (``native``) the framework's own tensor.

        It may be a writable view of the parameter; its ops may then edit it in place.
        """

    def tracked(self, handle: Any) -> Any:
        """Return the framework's own tensor, through which gradients reach the array. It is only read."""

    def put(self, handle: Any, leaf: Any, value: Any) -> None:
        """Keep the result of a rule that started from ``leaf``. ``value is leaf``: it was edited in place."""

    def guard(self) -> AbstractContextManager[Any]:
        """Return the context for edits of leaves (no gradient is recorded inside)."""

    def backup(self, handle: Any) -> Any:
        """Return what :meth:`restore` needs to bring these very bits back, whoever wrote in between."""

    def restore(self, handle: Any, kept: Any) -> None:
        """Undo every write since :meth:`backup`."""

    def trainable(self, handle: Any) -> bool:
        """Return whether the framework would train it."""

    def set_trainable(self, handle: Any, flag: bool) -> None:
        """Set whether the framework trains it; raise WriteError where that can't be done."""


class Adapter(Protocol):
    """How one framework's targets are walked and named."""

    def parameters(self, target: Any) -> Sequence[Parameter]:
        """Return the parameters in definition order, a tied one once. Raise NotBuiltError for an unbuilt model."""


class HeldChain(Protocol):
    """The rules held on one parameter, as a backend sees them (the core's ``holds.Chain``)."""

    parameter: Parameter

    def apply(self) -> None:
        """Edit the parameter in place, in eager code or traced inline."""

    def apply_native(self) -> None:
        """Edit the framework's own tensor, traceable where a verb isn't."""

    def of(self, value: Any, ops: Ops) -> Any:
        """Return what becomes of a stored tensor of the framework, without writing."""

    def make_live(self) -> None:
        """Let compiled steps see operands that change; unless a backend calls it, ``of`` leaves those rules out."""


class StepState(Protocol):
    """The weights in the middle of a stateless training loop: neither variables nor storage can reach them."""

    def read(self, parameter: Parameter) -> Array:
        """Return the stored values of a held parameter."""

    def keep(self, parameter: Parameter, mask: Array) -> None:
        """Set the entries to +0.0 where the mask (stored order) is False."""


class Attachment(Protocol):
    """What keeps chains attached to a framework's update."""

    def check(self) -> None:
        """Raise StaleTrainFunctionError if a step went by without the chains."""

    def detach(self) -> None:
        """Restore the former state exactly; chains that others still hold stay attached by theirs."""


class HoldAttachment(Attachment, Protocol):
    """What keeps the chains of one hold attached."""

    def let_go(self, chains: Sequence[HeldChain]) -> None:
        """Detach some of the chains."""


@runtime_checkable
class Regularizing(Protocol):
    """What a backend keeps besides, if its models put together the loss that they are trained by (Keras' ``fit``)."""

    def regularize(
        self, parameters: Sequence[Parameter], penalty: Callable[[Parameter, Any], Any], *, target: Any
    ) -> Attachment:
        """Have the model add ``penalty(parameter, native tensor)`` for each of these to its loss from now on."""


Tracing = Literal["no", "inline", "refuse"]


@runtime_checkable
class Backend(Protocol):
    """What an entry point of the group ``xweights.backends`` loads."""

    name: str
    # May also have ``file_names = "native"``: other readers of its weight files expect the framework's own names; and
    # ``file_layout(target)``: (key, parameter or array) of all that its framework wants to find in an HDF5 file.

    def adapter(self, target: Any) -> Adapter | None:
        """Return the adapter for a target of this framework, or None if it holds no weights."""

    def is_tensor(self, value: Any) -> bool:
        """Return True for a bare tensor: an array, and no target."""

    def storage(self, variable: Any) -> Storage:
        """Return the storage for a native variable of this framework, for adapters of models built on top of it."""

    def to_host(self, value: Any) -> Array:
        """Return a tensor or variable of this framework as a NumPy array (a view where there can be one)."""

    def ops(self, array: Any) -> Ops:
        """Return the ops for an array of this framework."""

    def tracing(self) -> Tracing:
        """Return "no" in eager code, "inline" where a verb may be traced, "refuse" where it must be bound first."""

    def attach(
        self,
        chains: Sequence[HeldChain],
        *,
        target: Any,
        optimizer: Any,
        after_step: Callable[[Any], None] | None = None,
    ) -> HoldAttachment | None:
        """Have the framework's own update apply these chains after each step; None where it has no such place.

        ``after_step`` is then called on the host after each step, with None, or with a ``StepState`` where the weights
        are out of reach in their variables. Raise HoldError if ``optimizer`` doesn't train one of the parameters. A
        may come again with another hold.
        """

    def compiled(self, function: Callable[[], None]) -> Callable[[], None]:
        """Return a quicker equivalent of a bound step for calls from eager code, or the function itself."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of a layer table: what a layer calls one of its arrays, and what it is.

    ``native`` is the attribute (``weight_ih_l0``), ``name`` the neutral path inside the layer (``l0/kernel``) whose
    last part is the role, ``pattern`` the axes as :func:`xweights.core.layout.layout_of` reads them (None: unknown).
    ``outputs``: which axes the layer's output has, where their names don't say it.
    """

    native: str
    name: str
    pattern: str | None
    sizes: Mapping[str, int] = field(default_factory=dict)
    gates: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None

    def layout(self, shape: Shape) -> Layout:
        """Return the layout for an array of the stored ``shape``; without axes where the pattern doesn't fit."""
        if self.pattern is None:
            return plain_layout(shape)
        try:
            layout = layout_of(self.pattern, shape, **self.sizes)
            return layout if self.outputs is None else replace(layout, outputs=self.outputs)
        except LayoutError:
            # A subclass may have changed the array's shape: its axes are then unknown, which is never a guess.
            return plain_layout(shape)


_registered: dict[str, Backend] = {}
_loaded: dict[str, Backend] = {}
_points: dict[str, Any] | None = None
_by_type: dict[type[Any], Backend | None] = {}


def register(door: str, backend: Backend) -> None:
    """Register a backend in this process for the root package ``door``, before any entry point.

    Example:
        >>> from xweights.core.backend import register
        >>> register.__name__
        'register'
    """
    if not isinstance(backend, Backend):
        words = sorted(word for word in dir(Backend) if not word.startswith("_") and not hasattr(backend, word))
        raise BackendBrokenError(
            f"{backend!r} is no backend\nmissing: {', '.join(words) or 'name'}\n"
            "Fix: give it the attributes of xweights.backend.Backend"
        )
    _registered[door] = backend
    _by_type.clear()


def doors() -> dict[str, str]:
    """Return the installed doors and the object each would load: ``{"torch": "xweights_torch:backend", ...}``."""
    found = {name: point.value for name, point in _entry_points().items()}
    return found | {name: f"{type(one).__module__}:{type(one).__qualname__}" for name, one in _registered.items()}


def roots(kind: type[Any]) -> Iterator[str]:
    """Yield the root packages of a type's bases, nearest first."""
    for base in kind.__mro__:
        yield base.__module__.partition(".")[0]


def backend_for(value: Any) -> Backend | None:
    """Return the backend whose framework made ``value``, loading it if need be; None if no door matches."""
    kind = type(value)
    if kind not in _by_type:
        known = _registered.keys() | _entry_points().keys()
        door = next((root for root in roots(kind) if root in known), None)
        _by_type[kind] = None if door is None else load(door)
    return _by_type[kind]


def load(door: str) -> Backend:
    """Return the backend behind a door; raise BackendBrokenError if it is installed and can't be imported."""
    if door in _registered:
        return _registered[door]
    if door not in _loaded:
        points = _entry_points()
        if door not in points:
            raise BackendMissingError(
                f"no backend for {door!r} is installed\n"
                f"installed: {', '.join(sorted(doors())) or 'none'}\n"
                f"Fix: python -m pip install 'xweights-nn[{door}]' (in a checkout: python -m pip install -e .)"
            )
        try:
            backend = points[door].load()
        except Exception as cause:
            raise BackendBrokenError(
                f"the backend {points[door].value!r} for {door!r} is installed but can't be imported\n"
                f"cause: {type(cause).__name__}: {cause}\n"
                f"Fix: make `python -c 'import {door}'` work, or reinstall with "
                f"python -m pip install 'xweights-nn[{door}]'"
            ) from cause
        if not isinstance(backend, Backend):
            raise BackendBrokenError(
                f"{points[door].value!r} is no backend\n"
                f"Fix: it must be an object with the methods of xweights.backend.Backend"
            )
        _loaded[door] = backend
    return _loaded[door]


def loaded() -> list[Backend]:
    """Return the backends that are in use so far."""
    return [*_registered.values(), *_loaded.values()]


def _entry_points() -> dict[str, Any]:
    global _points
    if _points is None:
        from importlib.metadata import entry_points

        _points = {point.name: point for point in entry_points(group=GROUP)}
    return _points
