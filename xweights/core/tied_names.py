"""The further names of tied parameters: what is selected by one of them, and left out by another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from xweights.core.parameter import Parameter
from xweights.errors import Problems, SelectionError


class OneName(Parameter):
    """A tied parameter under one of its further names only; it is only asked what selects it."""

    __slots__ = ("tied",)

    tied: Parameter


def refuse_contradictions(where: Any, everything: Sequence[Parameter], picked: set[int]) -> None:
    """Refuse what leaves a tied parameter out by one of its names, and would take it by another.

    The parameter is one array: whoever freezes everything but ``lm_head/*`` and whoever freezes everything but the
    head expect different things of the embedding that it is tied to.
    """
    tied = [p for p in everything if (p.aliases or p.native_aliases) and id(p) not in picked]
    if not tied:
        return
    by_name = {id(p): _by_each_name(p) for p in tied}
    selected: set[int] = set()
    for number in range(max(map(len, by_name.values()))):
        named = {key: names[min(number, len(names) - 1)] for key, names in by_name.items()}
        selected |= where.picks([named.get(id(p), p) for p in everything])
    problems = Problems(f"where={where!r} takes a tied parameter by one of its names, and leaves it out by another")
    for names in by_name.values():
        taken = [p for p in names if id(p) in selected]
        left = [p for p in names if id(p) not in selected]
        if taken:
            leave = "".join(f" & ~xweights.native({p.native_name!r})" for p in taken)
            problems.add(
                SelectionError,
                f"taken as:    {_show_names(taken)}\nleft out as: {_show_names(left)}",
                fix=f"where | {taken[0].name!r} takes it, where{leave} leaves it out",
            )
    problems.check()


def _show_names(parameters: Sequence[Parameter]) -> str:
    natives = [f" (native {p.native_name!r})" if p.native_name != p.name else "" for p in parameters]
    return ", ".join(f"{p.name!r}{native}" for p, native in zip(parameters, natives, strict=True))


def _by_each_name(p: Parameter) -> list[Parameter]:
    """Return the parameter under each of its names alone, the first one first."""
    first = p.replace(aliases=(), native_aliases=())
    by_name = [first]
    for name, native_name in zip_longest(p.aliases, p.native_aliases):
        named = {"name": name or p.name, "native_name": native_name or p.native_name}
        one = OneName(**{slot: getattr(first, slot) for slot in Parameter.__slots__} | named)
        one.layer, one.tied = _layer_of(p, one.name), p
        by_name.append(one)
    return by_name


def all_layers_of(p: Parameter) -> list[str]:
    """Return the layers that the parameter is in, by each of its names."""
    return [p.layer, *(_layer_of(p, alias) for alias in p.aliases)]


def _layer_of(p: Parameter, alias: str) -> str:
    """Return the layer that one of the parameter's names is in; of a composite, the composite."""
    inside = p.name[len(p.layer) :]
    return p.layer if alias == p.name else alias.removesuffix(inside) if alias.endswith(inside) else _parent(alias)


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def first_layer(p: Parameter) -> str:
    """Return the layer of the parameter's first name: by their numbers, layers have it once."""
    return p.tied.layer if isinstance(p, OneName) else p.layer
