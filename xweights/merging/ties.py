"""Tied parameters that another target has apart, as the embedding of a language model and its head.

Where one target has two arrays and another shares one between them, the shared one stands for both: the result has two,
whichever target comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from xweights.core.layout import Layout, plain_layout
from xweights.core.parameter import Parameter
from xweights.errors import SelectionError
from xweights.files.io.records import Record
from xweights.merging.inputs import MergeInput

_EMBEDDING, _KERNEL = ("vocab", "dim"), ("in", "out")


class _Name(NamedTuple):
    """A name of a parameter, and the framework's own for the same place where it is known."""

    neutral: str
    native: str | None


def separate_ties(inputs: Sequence[MergeInput]) -> None:
    """Give the first target a parameter for each array that another input has of a tied one."""
    _share_ties(inputs)
    first, others = inputs[0], inputs[1:]
    parameters: list[Parameter] = []
    for p in first.parameters:
        parameters += _separate(p, _list_names(first, p), others) if p.aliases else [p]
    first.replace_parameters(parameters)


def layout_as(p: Parameter, like: Parameter, *, tied: bool) -> Layout:
    """Return the layout that the array of ``p`` has where it stands for ``like``: a head is its embedding turned.

    ``tied``: it has the name of ``like`` as one of several, so that its axes are those of another layer.
    """
    own, other = p.layout, like.layout
    if tied and other.axes is None:
        return plain_layout(own.stored)
    if {own.axes, other.axes} == {_EMBEDDING, _KERNEL}:
        return Layout(own.stored, own.split, own.order[::-1], other.axes, other.outputs)
    return own


def _share_ties(inputs: Sequence[MergeInput]) -> None:
    """Give an array the names that it has in another input, where its own lacks them: a file may not know its ties."""
    # Names that were mapped for an input are those of another model.
    known = [merge_input for merge_input in inputs if merge_input.names is None]
    ties = {(p.name, *p.aliases): None for merge_input in known for p in merge_input.parameters if p.aliases}
    for merge_input in known:
        for names in ties:
            found = {id(p): p for name in names for p in merge_input.index.neutral.get(name, [])}
            if len(found) != 1:
                continue
            (p,) = found.values()
            lacking = tuple(name for name in names if name not in (p.name, *p.aliases))
            if lacking:
                renamed = p.replace(aliases=(*p.aliases, *lacking))
                merge_input.replace_parameters([renamed if q is p else q for q in merge_input.parameters])


def _list_names(merge_input: MergeInput, p: Parameter) -> list[_Name]:
    natives = merge_input.list_native_aliases(p)
    native_names = natives if len(natives) == len(p.aliases) else (None,) * len(p.aliases)
    return [_Name(p.name, p.native_name), *map(_Name, p.aliases, native_names)]


def _separate(p: Parameter, names: Sequence[_Name], others: Sequence[MergeInput]) -> list[Parameter]:
    """Return the parameter, or one for each group of its names that every input has as one array."""
    groups: list[tuple[list[_Name], list[Parameter | None]]] = []
    for name in names:
        found = [_find(merge_input, name) for merge_input in others]
        for members, known in groups:
            if all(a is None or b is None or a is b for a, b in zip(known, found, strict=True)):
                members.append(name)
                known[:] = [a or b for a, b in zip(known, found, strict=True)]
                break
        else:
            groups.append(([name], found))
    if len(groups) == 1:
        return [p]
    own = groups[0][0]
    parts = [_narrow(p, own)]
    for members, found in groups[1:]:
        # Another target's parameter that is no tied one knows what layer has this name.
        like = next((q for q in found if q is not None and q.name not in {n.neutral for n in own}), None)
        parts.append(_stand_in(p, members, like))
    return parts


def _find(merge_input: MergeInput, name: _Name) -> Parameter | None:
    try:
        return merge_input.find_name(name.neutral, name.native)
    except SelectionError:  # raised again where the parameters are paired
        return None


def _narrow(p: Parameter, names: Sequence[_Name]) -> Parameter:
    """Return a tied parameter under some of its names; the first is its name."""
    name, *aliases = names
    native = name.native or name.neutral
    handle = p.handle
    natives = tuple(alias.native for alias in aliases if alias.native is not None)
    if isinstance(handle, Record):
        key = native if handle.key_in_part == p.native_name else name.neutral
        handle = replace(handle, key=key, inner=None, metadata=replace(handle.metadata, native_aliases=natives))
    found: Parameter = p.replace(
        name=name.neutral, native_name=native, handle=handle,
        aliases=tuple(alias.neutral for alias in aliases), native_aliases=natives,
    )  # fmt: skip
    return found


def _stand_in(p: Parameter, names: Sequence[_Name], like: Parameter | None) -> Parameter:
    """Return a tied parameter under other ones of its names, as the parameter of the layer that has them."""
    if like is None:
        return _narrow(p, names)
    named = [names[0]._replace(native=names[0].native or like.native_name), *names[1:]]
    found = _narrow(p, named)
    return found.replace(layout=layout_as(p, like, tied=True), role=like.role, layer=like.layer, gates=like.gates)
