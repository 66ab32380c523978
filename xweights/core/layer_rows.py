"""Rows of layer types by declaration: what `register_layer`, an entry point or a class itself says of its arrays.

A layer type is known by its qualified name, so that nothing has to be imported to teach it. A backend asks
:func:`declared_rows` for each class of a layer's method resolution order; subclasses inherit in that way.

Three places say it, the first of them that speaks of a class counts: the user (`register_layer`), the class
(``__xweights_layers__``), the package (the entry-point group ``xweights.layers``, where an entry point is called like
the root package of the classes).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from xweights.core.entry_points import entry_points_of
from xweights.core.layer_table import Entry
from xweights.core.layout import read_names
from xweights.errors import ArgumentError, LayoutError, Problems, got_expected

GROUP = "xweights.layers"
ATTRIBUTE = "__xweights_layers__"

Size = int | str
Gates = tuple[str, ...] | Mapping[str, tuple[str, ...]] | None

# The words for what an array is for: Keras 3's where it has one. Others are unknown until a row declares them.
_STANDARD = (
    r".*(kernel|bias|embeddings)(_[abkv]|_scale)?|gamma|beta|alpha|scale|token|moving_.*|renorm_.*|mean|variance|count|"
    r"num_batches_tracked|vector_u|concat_score_weight|parameter|state_decay|frequencies|quantization|range"
)


@dataclass(frozen=True, slots=True)
class LayerRows:
    """What was declared of one layer type: rows whose sizes are numbers or attributes of the layer."""

    kind: str
    rows: tuple[Entry, ...]
    sizes: Mapping[str, Size]

    def entries(self, layer: Any) -> tuple[Entry, ...]:
        """Return the rows for one layer of this type, its sizes read."""
        return self.entries_of(tuple(read_size(layer, size) for size in self.sizes.values()))

    def entries_of(self, lengths: tuple[int | None, ...]) -> tuple[Entry, ...]:
        """Return the rows for these sizes, in the order of :attr:`sizes`; None for one that the layer lacks."""
        sizes = {axis: length for axis, length in zip(self.sizes, lengths, strict=True) if length is not None}
        lacking = [f"{axis}={size!r}" for axis, size in self.sizes.items() if axis not in sizes]
        entries = []
        for row in self.rows:
            declared = row.declared
            if declared is not None and lacking:
                declared += f"\nno number in: {', '.join(lacking)}"
            entries.append(dataclasses.replace(row, sizes=dict(row.sizes) | sizes, declared=declared))
        return tuple(entries)


_registered: dict[str, LayerRows] = {}
_shipped: dict[str, LayerRows] = {}
_points: dict[str, Any] | None = None
_roles: set[str] = set()
_known: dict[str, bool] = {}
_listeners: list[Callable[[], None]] = []
_shipping: list[str] = []


def register_layer(
    kind: str,
    rows: Mapping[str, tuple[str | None, ...]] | None = None,
    /,
    *,
    heads: Size | None = None,
    groups: Size | None = None,
    sizes: Mapping[str, Size] | None = None,
    gates: Gates = None,
    replace: bool = False,
    **arrays: tuple[str | None, ...],
) -> None:
    """Teach a layer type: the roles and axes of its arrays, for this process and for subclasses too.

    ``xw.register_layer("transformers.pytorch_utils.Conv1D", weight=("kernel", "in out"), bias=("bias", "out"))``.
    The axes are those of :class:`xweights.Parameter`, in the stored order; ``"out in -> in out"`` says the neutral
    order too, ``"(head key) in -> in head key"`` splits a stored axis, ``1`` is an axis of length 1 that is left out,
    ``batch`` one that is kept, and ``"dim | 1 dim"`` is one of several. Exact: values never change.

    Args:
        kind: Qualified name of the class, where it is defined; nothing is imported.
        rows: The same as ``arrays``, for names that are no keywords (``"out_proj.weight"``, ``"heads"``).
        heads: Length of the axis ``head``, or the attribute of the layer that has it.
        groups: Length of the axis ``group``, or the attribute of the layer that has it.
        sizes: Lengths of other parts of a packed axis by name, or the attributes that have them.
        gates: Order of the parts along an axis ``gate*...`` or ``qkv``, for all arrays that have one, or by array.
        replace: Whether another declaration of the same type may be replaced.
        arrays: For each attribute that holds an array ``(name, axes)``: its neutral name inside the layer, the last
            part of which is the role, and its axes (None: unknown). ``(name, axes, role)`` where they differ.

    Raises:
        ArgumentError: a name or row of another form, or a type that has other rows already.
        LayoutError: axes that contradict themselves. Axes that don't fit an array raise it at the call that meets it.

    Example:
        >>> import xweights as xw
        >>> xw.register_layer("my_models.layers.Mixer", weight=("kernel", "in out"), bias=("bias", "out"))
    """
    options = {"heads": heads, "groups": groups, "sizes": sizes, "gates": gates}
    if rows is not None and not isinstance(rows, Mapping):
        raise ArgumentError(
            f"rows are a mapping\n{got_expected(repr(rows), 'a mapping from attributes to (name, axes)')}"
        )
    declared = _make(kind, dict(rows or {}) | arrays, options, f"register_layer({kind!r}, ...)")
    into = _shipped if _shipping else _registered
    known = into.get(kind)
    if known is not None and known != declared and not replace:
        raise ArgumentError(
            f"{kind!r} has other rows already\n{got_expected(_show(declared), _show(known))}\n"
            "Fix: leave one of the two out, or pass replace=True"
        )
    if known != declared:
        into[kind] = declared
        _forget()


def declared_rows(kind: type[Any]) -> LayerRows | None:
    """Return what was declared of a class itself (not of its bases), or None."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name in _registered:
        return _registered[name]
    carried = kind.__dict__.get(ATTRIBUTE)
    if carried is not None:
        return _carried(name, carried)
    _load_shipped(kind.__module__.partition(".")[0])
    return _shipped.get(name)


def is_known_role(role: str) -> bool:
    """Return True for a standard word, or a role that some row declared."""
    if role not in _known:
        _known[role] = role in _roles or re.fullmatch(_STANDARD, role) is not None
    return _known[role]


def on_change(function: Callable[[], None]) -> None:
    """Have ``function`` called whenever the declared rows change, so that a backend can drop what it derived."""
    _listeners.append(function)


def read_size(layer: Any, size: Size) -> int | None:
    """Return a number, or the one at an attribute of the layer (``config.heads``, ``kernel_size.0``); else None."""
    value: Any = size
    if isinstance(size, str):
        value = layer
        for part in size.split("."):
            if part.isdecimal():
                index = int(part)
                value = value[index] if isinstance(value, (list, tuple)) and index < len(value) else None
            else:
                value = getattr(value, part, None)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _make(kind: str, rows: Mapping[str, Any], options: Mapping[str, Any], said: str) -> LayerRows:
    if not isinstance(kind, str) or "." not in kind or not all(part.isidentifier() for part in _parts(kind)):
        raise ArgumentError(
            "a layer type is given by the qualified name of its class\n"
            f"{got_expected(repr(kind), 'package.module.Class')}\n"
            "Fix: f'{cls.__module__}.{cls.__qualname__}'"
        )
    problems = Problems(f"{said} can't be understood")
    if not rows:
        problems.add(ArgumentError, "it has no rows", fix="weight=('kernel', 'in out')")
    sizes = dict(_read_sizes(options, problems))
    gates = options.get("gates")
    entries = []
    for attribute, row in rows.items():
        entry = _read_row(attribute, row, gates, sizes, said, problems)
        if entry is not None:
            entries.append(entry)
    if isinstance(gates, Mapping):
        for attribute in gates:
            if attribute not in rows:
                problems.add(ArgumentError, f"gates= speaks of {attribute!r}, for which there is no row")
    names = [entry.name for entry in entries]
    for name in {name for name in names if names.count(name) > 1}:
        fix = "give them names of their own, and one role as the third part of a row: (name, axes, role)"
        problems.add(ArgumentError, f"two arrays would be called {name!r}", fix=fix)
    problems.check()
    for entry in entries:
        _roles.add(entry.role or entry.name.rpartition("/")[2])
    _known.clear()
    return LayerRows(kind, tuple(entries), sizes)


def _read_sizes(options: Mapping[str, Any], problems: Problems) -> list[tuple[str, Size]]:
    sizes = options.get("sizes") or {}
    if not isinstance(sizes, Mapping):
        problems.add(ArgumentError, f"sizes= is a mapping from axes to lengths or attributes\ngot: {sizes!r}")
        return []
    pairs = [("head", options.get("heads")), ("group", options.get("groups")), *sizes.items()]
    found = []
    for axis, size in pairs:
        if size is None:
            continue
        if isinstance(size, bool) or not isinstance(size, (int, str)) or (isinstance(size, int) and size < 1):
            text = f"the length of {axis!r} is a number or the name of an attribute\ngot: {size!r}"
            problems.add(ArgumentError, text)
        else:
            found.append((axis, size))
    return found


def _read_row(
    attribute: Any, row: Any, gates: Any, sizes: Mapping[str, Size], said: str, problems: Problems
) -> Entry | None:
    wrong = not isinstance(attribute, str) or not isinstance(row, tuple) or not 2 <= len(row) <= 3
    if (
        wrong
        or not isinstance(row[0], str)
        or not row[0].strip("/")
        or not all(part is None or isinstance(part, str) for part in row[1:])
    ):
        expected = "(name, axes) or (name, axes, role), such as ('kernel', 'in out')"
        problems.add(ArgumentError, f"the row of {attribute!r} has another form\n{got_expected(repr(row), expected)}")
        return None
    name, pattern, role = (*row, None)[:3]
    order = gates.get(attribute) if isinstance(gates, Mapping) else gates
    if order is not None and (not isinstance(order, tuple) or not all(isinstance(gate, str) for gate in order)):
        problems.add(ArgumentError, f"gates are a tuple of names\ngot: {order!r}")
        order = None
    axes: set[str] = set()
    for alternative in (pattern or "").split("|") if pattern is not None else ():
        try:
            axes |= set(read_names(alternative.strip()))
        except LayoutError as misfit:
            problems.add(LayoutError, f"the axes of {attribute!r}: {misfit}")
    packed = [axis for axis in axes if axis == "qkv" or axis.startswith("gate")]
    if not packed:
        order = None
    fixed = {axis: len(order) for axis in packed if axis not in sizes and "*" not in axis} if order else {}
    shown = ", ".join(map(repr, row))
    return Entry(attribute, name, pattern, fixed, order, None, role, f"{said}: {attribute}=({shown})")


def _carried(name: str, carried: Any) -> LayerRows:
    said = f"{name}.{ATTRIBUTE}"
    if not isinstance(carried, Mapping):
        raise ArgumentError(
            f"{said} can't be understood\n{got_expected(repr(carried), 'a mapping from attributes to (name, axes)')}"
        )
    options = {key: carried[key] for key in ("heads", "groups", "sizes", "gates") if key in carried}
    # A class made in a function has a qualified name with <locals> in it, which nobody has to spell here.
    rows = {key: row for key, row in carried.items() if key not in options}
    return _make("carried.Rows", rows, options, said)


def _load_shipped(root: str) -> None:
    global _points
    if _points is None:
        _points = entry_points_of(GROUP)
    point = _points.pop(root, None)
    if point is None:
        return
    _shipping.append(root)
    try:
        shipped = point.load()
        if callable(shipped):
            shipped = shipped() or {}
        for kind, rows in shipped.items():
            options = {key: rows[key] for key in ("heads", "groups", "sizes", "gates") if key in rows}
            register_layer(kind, {key: row for key, row in rows.items() if key not in options}, **options)
    except Exception as cause:
        _points[root] = point
        raise LayoutError(
            f"the layer rows that {point.value!r} ships for {root!r} can't be used\n"
            f"cause: {type(cause).__name__}: {cause}\n"
            f"Fix: update the package, or leave its rows out: what is registered by hand counts first"
        ) from cause
    finally:
        _shipping.pop()


def _forget() -> None:
    for function in _listeners:
        function()


def _parts(kind: str) -> list[str]:
    return [part for part in kind.split(".") if part != "<locals>"]


def _show(declared: LayerRows) -> str:
    rows = [f"{row.native}=({row.name!r}, {row.pattern!r})" for row in declared.rows]
    return ", ".join([*rows, *(f"{axis}: {size!r}" for axis, size in declared.sizes.items())])
