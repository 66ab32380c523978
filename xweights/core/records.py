"""Small frozen classes with fields, made without compiling anything at import."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import MISSING, FrozenInstanceError, dataclass, fields
from operator import attrgetter
from types import FunctionType
from typing import TYPE_CHECKING, Any

__all__ = ["record"]


def _plain_initializers(finish: Callable[[Any], Any]) -> tuple[FunctionType, ...]:
    """Return ``__init__`` for none, one, two and three fields, under the names a, b and c."""

    def none(self: Any) -> None:
        finish(self)

    def one(self: Any, a: Any) -> None:
        object.__setattr__(self, "a", a)
        finish(self)

    def two(self: Any, a: Any, b: Any) -> None:
        object.__setattr__(self, "a", a)
        object.__setattr__(self, "b", b)
        finish(self)

    def three(self: Any, a: Any, b: Any, c: Any) -> None:
        object.__setattr__(self, "a", a)
        object.__setattr__(self, "b", b)
        object.__setattr__(self, "c", c)
        finish(self)

    return none, one, two, three  # type: ignore[return-value] # what a def makes is a FunctionType


def _make_record(kind: Any, eq: bool, repr: bool) -> Any:
    dataclass(init=False, repr=False, eq=False)(kind)  # the fields, by which `replace` and others know it
    kind.__dataclass_params__.frozen = True  # a frozen class may inherit from it
    names = tuple(field.name for field in fields(kind))

    def read_few(self: Any) -> tuple[Any, ...]:
        return tuple([getattr(self, name) for name in names])

    values: Callable[[Any], tuple[Any, ...]] = attrgetter(*names) if len(names) > 1 else read_few

    def equals(self: Any, other: Any) -> bool:
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    def hash_of(self: Any) -> int:
        return hash(values(self))

    def show(self: Any) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__qualname__}({shown})"

    def refuse_setting(self: Any, name: str, value: Any) -> None:
        if type(self) is kind or name in names:
            raise FrozenInstanceError(f"cannot assign to field {name!r}")
        super(kind, self).__setattr__(name, value)

    def refuse_deleting(self: Any, name: str) -> None:
        if type(self) is kind or name in names:
            raise FrozenInstanceError(f"cannot delete field {name!r}")
        super(kind, self).__delattr__(name)

    methods: dict[str, Any] = {
        "__init__": _initializer(kind),
        "__setattr__": refuse_setting,
        "__delattr__": refuse_deleting,
    }
    if eq:
        methods |= {"__eq__": equals, "__hash__": hash_of}
    if repr and "__repr__" not in vars(kind):
        methods["__repr__"] = show
    for name, method in methods.items():
        method.__name__, method.__qualname__ = name, f"{kind.__qualname__}.{name}"
        setattr(kind, name, method)
    return kind


def _initializer(kind: type[Any]) -> FunctionType:
    """Return ``__init__`` with the names and defaults of a class' fields."""
    own = fields(kind)
    names = tuple(field.name for field in own)
    if len(own) > 3 or any(not one.init or one.kw_only or one.default_factory is not MISSING for one in own):
        raise TypeError(
            f"a record has at most three plain fields\nFix: @dataclass(frozen=True) for {kind.__qualname__}"
        )
    written = _plain_initializers(_check if hasattr(kind, "__post_init__") else _leave)[len(own)]
    new_names = dict(zip("abc", names, strict=False))
    code = written.__code__.replace(
        co_name="__init__",
        co_varnames=("self", *names),
        co_consts=tuple(new_names.get(one, one) for one in written.__code__.co_consts),
    )
    defaults = tuple(field.default for field in own if field.default is not MISSING)
    # With the globals of the class' own module, in which its annotations are looked up.
    made = FunctionType(code, vars(sys.modules[kind.__module__]), "__init__", defaults, written.__closure__)
    made.__annotations__ = {field.name: field.type for field in own} | {"return": None}
    return made


# Functions in Python, which torch.compile can trace.
def _check(made: Any) -> None:
    made.__post_init__()


def _leave(made: Any) -> None:
    pass


if TYPE_CHECKING:
    from dataclasses import dataclass as record
else:

    def record(*, frozen: bool, eq: bool = True, repr: bool = True) -> Callable[[type], type]:
        """Make of a class with at most three fields what ``dataclass(frozen=True)`` makes of it.

        `dataclass` writes each method as text and compiles it, which takes 0.3 ms a class: 40 % of what the first use
        of a verb took. The methods here are compiled already (0.04 ms), and instances are as quick to make.
        """
        if not frozen:
            raise TypeError("a record is frozen")
        return lambda kind: _make_record(kind, eq, repr)
