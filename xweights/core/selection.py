"""Turn ``where=`` into a printable predicate, and select parameters with it.

A glob matches neutral names (``*`` anything, ``/`` included; ``?`` one character; a leading ``*/`` also at the root).
A name without wildcards may be neutral or native. Everything combines with ``&``, ``|`` and ``~``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Union

from xweights.core.dtypes import is_complex
from xweights.core.identities import keys_of
from xweights.core.names import NameIndex, find_named, glob_matcher, is_glob
from xweights.core.parameter import Parameter
from xweights.core.records import record
from xweights.core.tied_names import all_layers_of, first_layer, refuse_contradictions
from xweights.errors import ArgumentError, Problems, SelectionError, got_expected, near, shown

WhereLike = Union[str, "Where", Callable[[Parameter], bool], Iterable[Any], Parameter, Any]


class Where:
    """A printable predicate on parameters; ``&``, ``|`` and ``~`` combine it with anything ``where=`` takes.

    Example:
        >>> import numpy as np, xweights as xw
        >>> where = "encoder/*" & ~xw.role("bias")
        >>> [p.name for p in xw.parameters({"encoder/bias": np.ones(1), "encoder/kernel": np.ones(1)}, where=where)]
        ['encoder/kernel']
    """

    def picks(self, everything: Sequence[Parameter]) -> set[int]:
        """Return the ``id`` of each parameter of ``everything`` that this selects."""
        return {id(p) for p in everything if self.matches(p)}

    def matches(self, parameter: Parameter) -> bool:
        raise NotImplementedError(f"{type(self).__name__} must define matches or picks")

    def parts(self) -> Sequence[Where]:
        """Return the parts, each of which must select something; together they select the same as the whole."""
        return (self,)

    def __and__(self, other: Any) -> Where:
        return Both(self, to_where(other))

    def __rand__(self, other: Any) -> Where:
        return Both(to_where(other), self)

    def __or__(self, other: Any) -> Where:
        return Either((self, to_where(other)))

    def __ror__(self, other: Any) -> Where:
        return Either((to_where(other), self))

    def __invert__(self) -> Where:
        return Except(self)


@record(frozen=True)
class Everything(Where):
    """All parameters but hidden ones, which only an explicit name selects."""

    def matches(self, parameter: Parameter) -> bool:
        return not parameter.hidden

    def __repr__(self) -> str:
        return "..."


@record(frozen=True)
class Glob(Where):
    """Neutral names by glob; without a wildcard one name, neutral or native."""

    pattern: str

    def picks(self, everything: Sequence[Parameter]) -> set[int]:
        if is_glob(self.pattern):
            match = glob_matcher(self.pattern)
            return {id(p) for p in everything if not p.hidden and any(map(match, (p.name, *p.aliases)))}
        return {id(p) for p in find_named(self.pattern, everything)}

    def __repr__(self) -> str:
        return repr(self.pattern)


@record(frozen=True)
class NativeName(Where):
    """The framework's own names, by glob."""

    pattern: str

    def matches(self, parameter: Parameter) -> bool:
        names = (parameter.native_name, *parameter.native_aliases)
        if is_glob(self.pattern):
            return not parameter.hidden and any(map(glob_matcher(self.pattern), names))
        return self.pattern in names

    def __repr__(self) -> str:
        return f"native({self.pattern!r})"


@record(frozen=True)
class Role(Where):
    """Roles, each by glob."""

    names: tuple[str, ...]

    def matches(self, parameter: Parameter) -> bool:
        return not parameter.hidden and any(glob_matcher(name)(parameter.role) for name in self.names)

    def __repr__(self) -> str:
        return f"role({', '.join(map(repr, self.names))})"


@record(frozen=True)
class Layer(Where):
    """The i-th layer that has weights, or layers by glob."""

    which: int | str

    def picks(self, everything: Sequence[Parameter]) -> set[int]:
        if isinstance(self.which, str):
            match = glob_matcher(self.which)
            return {id(p) for p in everything if not p.hidden and any(map(match, all_layers_of(p)))}
        layers = layers_of(everything)
        if not -len(layers) <= self.which < len(layers):
            return set()
        chosen = layers[self.which]
        return {id(p) for p in everything if first_layer(p) == chosen and not p.hidden}

    def __repr__(self) -> str:
        return f"layer({self.which!r})"


@record(frozen=True)
class Trainable(Where):
    """Parameters that the framework would train, as of now."""

    def matches(self, parameter: Parameter) -> bool:
        return not parameter.hidden and parameter.trainable

    def __repr__(self) -> str:
        return "trainable()"


@record(frozen=True)
class Inexact(Where):
    """Floating-point and complex parameters: what training changes by small steps."""

    def matches(self, parameter: Parameter) -> bool:
        return not parameter.hidden and (parameter.floating or is_complex(parameter.dtype))


@record(frozen=True)
class Predicate(Where):
    """Parameters for which a user's function is true."""

    function: Callable[[Parameter], bool]

    def matches(self, parameter: Parameter) -> bool:
        return not parameter.hidden and bool(self.function(parameter))

    def __repr__(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))


@record(frozen=True, eq=False)
class These(Where):
    """Given parameters, by full neutral name."""

    names: tuple[str, ...]

    def matches(self, parameter: Parameter) -> bool:
        return parameter.name in self.names

    def __repr__(self) -> str:
        return repr(list(self.names))


@record(frozen=True, eq=False)
class Objects(Where):
    """The parameters that a framework's own object has, a module, a layer, a variable or a tensor, by identity."""

    text: str
    keys: frozenset[Any]

    def matches(self, parameter: Parameter) -> bool:
        return parameter.identity() in self.keys

    def __repr__(self) -> str:
        return self.text


@record(frozen=True)
class Both(Where):
    """Parameters that two predicates both select."""

    left: Where
    right: Where

    def picks(self, everything: Sequence[Parameter]) -> set[int]:
        return self.left.picks(everything) & self.right.picks(everything)

    def __repr__(self) -> str:
        return f"({self.left!r} & {self.right!r})"


@record(frozen=True)
class Either(Where):
    """Parameters that any of several predicates selects."""

    these: tuple[Where, ...]

    def picks(self, everything: Sequence[Parameter]) -> set[int]:
        return set().union(*pick_each(self.these, everything))

    def parts(self) -> Sequence[Where]:
        return [part for where in self.these for part in where.parts()]

    def __repr__(self) -> str:
        return "(" + " | ".join(map(repr, self.these)) + ")"


@record(frozen=True)
class Except(Where):
    """All parameters that aren't hidden, but those that a predicate selects, by whichever of their names."""

    this: Where

    def picks(self, everything: Sequence[Parameter]) -> set[int]:
        return Everything().picks(everything) - self.this.picks(everything)

    def __repr__(self) -> str:
        return f"~{self.this!r}"


def role(*names: str) -> Where:
    """Select parameters by role: ``role("kernel")``, ``role("kernel", "embeddings")``, ``role("*kernel")``.

    Example:
        >>> import xweights as xw
        >>> xw.role("kernel") & ~xw.layer(0)
        (role('kernel') & ~layer(0))
    """
    if not names or not all(isinstance(name, str) for name in names):
        raise ArgumentError(f"role() takes role names\ngot: {names!r}\nFix: role('kernel')")
    return Role(names)


def layer(which: int | str) -> Where:
    """Select the i-th layer that has weights (negative: from the end), or layers by a glob on their path.

    Example:
        >>> import xweights as xw
        >>> xw.layer(-1)
        layer(-1)
    """
    if isinstance(which, bool) or not isinstance(which, (int, str)):
        raise ArgumentError(f"layer() takes an index or a glob\ngot: {which!r}\nFix: layer(0) or layer('encoder/*')")
    return Layer(which)


def trainable() -> Where:
    """Select the parameters that the framework would train, as of now.

    Example:
        >>> import xweights as xw
        >>> xw.trainable() & "*/kernel"
        (trainable() & '*/kernel')
    """
    return Trainable()


def native(pattern: str) -> Where:
    """Select by glob on the framework's own names: ``native("encoder.*.weight")``.

    Example:
        >>> import xweights as xw
        >>> xw.native("*.weight")
        native('*.weight')
    """
    if not isinstance(pattern, str):
        raise ArgumentError(f"native() takes a glob\n{got_expected(shown(pattern), 'a str')}\nFix: native('*.weight')")
    return NativeName(pattern)


def to_where(value: WhereLike) -> Where:
    """Return the predicate that ``where=value`` means."""
    if isinstance(value, Where):
        return value
    if value is ...:
        return Everything()
    if isinstance(value, str):
        return Glob(value)
    if isinstance(value, Parameter):
        return These((value.name, *value.aliases))
    if isinstance(value, (list, tuple, set, frozenset)):
        if not value:
            raise SelectionError("where= is an empty list: it selects nothing\nFix: give at least one name")
        return Either(tuple(to_where(part) for part in value))
    keys = keys_of(value)
    if keys is not None:
        return Objects(f"<{type(value).__name__}>", keys)
    if callable(value) and not isinstance(value, type):
        return Predicate(value)
    expected = (
        "a glob, a name, role(...), layer(...), trainable(), native(...), a module, layer, variable or parameter, "
        "a function of a parameter, a list of these, or ..."
    )
    fix = "\nFix: where=list(...): it is read more than once" if isinstance(value, Iterator) else ""
    raise ArgumentError(f"where= can't be understood\n{got_expected(shown(value), expected)}{fix}")


class Default(Both):
    """The default of a verb's ``where=``, printed as the public expression that means nearly the same."""

    words: str

    def __init__(self, left: Where, right: Where, words: str) -> None:
        super().__init__(left, right)
        self.words = words

    def __repr__(self) -> str:
        return self.words


DEFAULT_EDITED: Where = Default(Trainable(), Inexact(), "xweights.trainable()")
DEFAULT_KERNELS: Where = Default(Role(("*kernel", "embeddings")), Inexact(), "xweights.role('*kernel', 'embeddings')")


def select(everything: Sequence[Parameter], where: WhereLike) -> list[Parameter]:
    """Return the parameters that ``where`` selects, in the target's order; raise if a part of it selects none."""
    predicate = to_where(where)
    if isinstance(predicate, Everything):
        return [p for p in everything if not p.hidden]
    parts = predicate.parts()
    picked_ids = list(pick_each(parts, everything))
    # The parts together select the same as the whole: asking that too would double the work.
    picked = picked_ids[0].union(*picked_ids[1:])
    if _excepts(predicate):
        refuse_contradictions(predicate, everything, picked)
    if not all(picked_ids):
        problems = Problems(f"where={predicate!r} selects nothing in this target")
        for part, ids in zip(parts, picked_ids, strict=True):
            if not ids:
                problems.add(SelectionError, *_explain_empty(part, everything))
        problems.check()
    if predicate is DEFAULT_KERNELS:
        from xweights.core.unknown_roles import warn_of_unknown_roles

        warn_of_unknown_roles([p for p in everything if id(p) not in picked])
    return [p for p in everything if id(p) in picked]


def _excepts(where: Where) -> bool:
    """Return True if a predicate leaves something out."""
    if isinstance(where, Both):
        return _excepts(where.left) or _excepts(where.right)
    if isinstance(where, Either):
        return any(map(_excepts, where.these))
    return isinstance(where, Except)


def pick_each(parts: Sequence[Where], everything: Sequence[Parameter]) -> Iterator[set[int]]:
    """Yield the ids that each part picks; full names are looked up: comparing 1,000 with 1,000 took 0.4 s."""
    index = NameIndex(everything)
    for part in parts:
        if isinstance(part, Glob) and not is_glob(part.pattern):
            yield {id(p) for p in find_named(part.pattern, index)}
        else:
            yield part.picks(everything)


def layers_of(everything: Sequence[Parameter]) -> list[str]:
    """Return the paths of the layers that have weights, in order."""
    return list(dict.fromkeys(first_layer(p) for p in everything if not p.hidden))


def _explain_empty(part: Where, everything: Sequence[Parameter]) -> tuple[str]:
    visible = [p for p in everything if not p.hidden]
    if not visible:
        return ("the target has no parameters at all",)
    if isinstance(part, Glob):
        from xweights.core.unmatched_names import explain_name

        return (explain_name(repr(part), part.pattern, visible),)
    if isinstance(part, Objects):
        problem = f"{part!r}: none of the target's parameters is one of its {len(part.keys)} parameters"
        return (f"{problem}\nFix: a part of the target itself, or a name: {visible[0].name!r}",)
    if isinstance(part, NativeName):
        natives = [name for p in visible for name in (p.native_name, *p.native_aliases)]
        return (f"{part!r} matches no native name\n{near(part.pattern, natives)}",)
    if isinstance(part, Role):
        return (f"{part!r}: no parameter has this role\nRoles here: {', '.join(sorted({p.role for p in visible}))}",)
    if isinstance(part, Layer):
        paths = layers_of(visible)
        shown = ", ".join(f"{i}: {path or '(the target itself)'}" for i, path in enumerate(paths[:8]))
        return (f"{part!r}: there are {len(paths)} layers with weights\n{shown}{', ...' if len(paths) > 8 else ''}",)
    return (f"{part!r} is true for none of the {len(visible)} parameters",)
