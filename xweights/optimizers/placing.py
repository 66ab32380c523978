"""Place a state that tells its parameters by position, or by a framework's own names, among the parameters of a model.

Positions are matched by order, with the shapes as a check: those of all groups one after the other, as the model has
its parameters; or each group in the model's order, where the shapes leave only one way to divide them. Nothing is
guessed: what doesn't fit, or fits with the groups in another order as well, is refused with the list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.layout import Shape
from xweights.core.parameter import Parameter
from xweights.core.readings import find_readings
from xweights.errors import HandoffError, Problems, near
from xweights.optimizers.initial_state import initial_slots
from xweights.optimizers.state import OptimizerGroup, OptimizerState

_SHOWN = 12
# Groups of many layers can be divided in more ways than can be counted; then they are taken to fit in several.
_MOST_STEPS = 200_000


class Candidate(NamedTuple):
    """Parameters that the positions of a state may stand for, and what to call them.

    ``groups``: one list for each group of the state, or a single one for all groups together.
    """

    title: str
    groups: list[list[Parameter]]


def candidates(
    order: Sequence[Parameter], groups: Sequence[Sequence[Parameter]], chosen: Sequence[Parameter] | None
) -> list[Candidate]:
    """Return what the positions of a state may stand for, the surest first.

    Args:
        order: The parameters that can be trained, in the order in which an optimizer takes them.
        groups: Those of an optimizer that was made as the saved one was; [] if there is none.
        chosen: Those that were named as the saved optimizer's, in any order; None if nothing was said.
    """
    if chosen is not None:
        picked = {id(p) for p in chosen}
        return [Candidate("those selected by where=", [[p for p in order if id(p) in picked]])]
    found = [Candidate("those of the optimizer", [list(group) for group in groups])] if groups else []
    found.append(Candidate("all of the model's", [list(order)]))
    trainable = [p for p in order if p.trainable]
    if len(trainable) < len(order):
        found.append(Candidate("the trainable ones of the model", [trainable]))
    return found


def place(state: OptimizerState, found: Sequence[Candidate], order: Sequence[Parameter]) -> OptimizerState:
    """Return a state with the neutral names of a model's parameters, and its slots in neutral order.

    Raises HandoffError with the list of what doesn't fit.
    """
    assert state.saved is not None
    shapes = {key: shape_of(slots) for key, slots in state.slots.items()}
    problems = Problems(f"the optimizer state in {state.saved.label} doesn't fit the model, and nothing was changed")
    if state.saved.named:
        placed, note = _by_name(state, shapes, order, problems)
    else:
        placed, note = _by_position(state, shapes, found, problems)
    problems.check()
    kept = _leave_out_frozen(state, placed, problems)
    problems.check()
    return _rename(state, kept, [note, *_note_left(placed, kept)])


def shape_of(slots: Mapping[str, Array]) -> Shape | None:
    """Return the shape of a parameter from its slots, as it is stored; None if none of them has it."""
    shapes = [value.shape for value in slots.values() if value.ndim]
    if not shapes or len({len(shape) for shape in shapes}) > 1:
        return None
    return tuple(map(max, zip(*shapes, strict=True)))  # those of rows and columns together


def match(groups: Sequence[Sequence[Shape | None]], shapes: Sequence[Shape]) -> list[list[int]] | None:
    """Return for each group the indices of its parameters; None if the groups don't fit, or in several ways.

    Args:
        groups: For each group the shapes of its parameters, None for those that aren't known.
        shapes: Those of the model, in its order.

    Example:
        >>> match([[(2, 2), (3, 2)], [(2,), (3,)]], [(2, 2), (2,), (3, 2), (3,)])
        [[0, 2], [1, 3]]
    """
    flat = [shape for group in groups for shape in group]
    if len(flat) != len(shapes):
        return None
    if all(_agree(a, b) for a, b in zip(flat, shapes, strict=True)):
        if _count_orders(groups, shapes) > 1:
            return None
        numbers = iter(range(len(flat)))
        return [[next(numbers) for _ in group] for group in groups]
    return _divide(groups, shapes) if len(groups) > 1 else None


def _count_orders(groups: Sequence[Sequence[Shape | None]], shapes: Sequence[Shape]) -> int:
    """Return in how many orders the groups, one after the other, fit the model's shapes; 2 for more."""
    found = steps = 0
    # Which groups are left: they say how many parameters are taken. A group of none is like any other of none.
    todo = [tuple(index for index, group in enumerate(groups) if group)]
    while todo and found < 2:
        left = todo.pop()
        start = len(shapes) - sum(len(groups[index]) for index in left)
        found += not left
        for index in left:
            steps += 1
            wanted = shapes[start : start + len(groups[index])]
            if all(_agree(a, b) for a, b in zip(groups[index], wanted, strict=True)):
                todo.append(tuple(other for other in left if other != index))
        if steps > _MOST_STEPS:
            return 2
    return found


def _divide(groups: Sequence[Sequence[Shape | None]], shapes: Sequence[Shape]) -> list[list[int]] | None:
    """Return the only way in which groups, each in order, make up the model's order; None if it isn't the only one."""
    # Ways to come from each state (how many parameters of each group are taken) to the end, from the back, 2 for more.
    start = (0,) * len(groups)
    layers: list[dict[tuple[int, ...], list[int]]] = [{start: []}]
    steps = 0
    for shape in shapes:
        following: dict[tuple[int, ...], list[int]] = {}
        for taken in layers[-1]:
            for index, group in enumerate(groups):
                steps += 1
                if taken[index] < len(group) and _agree(group[taken[index]], shape):
                    after = (*taken[:index], taken[index] + 1, *taken[index + 1 :])
                    following.setdefault(after, []).append(index)
        if not following or steps > _MOST_STEPS:
            return None
        layers.append(following)
    end = tuple(map(len, groups))
    found: list[list[int]] = [[] for _ in groups]
    for position in range(len(shapes), 0, -1):
        sources = layers[position].get(end, [])
        if len(sources) != 1:
            return None
        (index,) = sources
        found[index].append(position - 1)
        end = (*end[:index], end[index] - 1, *end[index + 1 :])
    return [indices[::-1] for indices in found]


def _agree(known: Shape | None, shape: Shape) -> bool:
    return known is None or known == shape


def _by_position(
    state: OptimizerState, shapes: Mapping[str, Shape | None], found: Sequence[Candidate], problems: Problems
) -> tuple[dict[str, Parameter], str]:
    """Return the parameter of each position, and how they were matched; add a problem if they don't fit."""
    wanted = [[shapes.get(name) for name in group.names] for group in state.groups]
    unlike = len({repr((group.hyper, group.variant)) for group in state.groups}) > 1
    for title, parts in found:
        flat = [p for part in parts for p in part]
        if len(parts) > 1 and [len(part) for part in parts] != [len(group) for group in wanted]:
            continue
        if len(parts) == 1 and len(wanted) > 1 and unlike and not all(any(group) for group in wanted):
            continue  # nothing says which parameters have which settings
        if len(parts) > 1:
            fits = match([[shape for group in wanted for shape in group]], [p.layout.stored for p in flat])
            indices = None if fits is None else fits[0]
        else:
            divided = match(wanted, [p.layout.stored for p in flat])
            indices = None if divided is None else [index for group in divided for index in group]
        if indices is not None:
            placed = {name: flat[index] for name, index in zip(state.names, indices, strict=True)}
            return placed, f"matched by order with {title}: {_list_pairs(placed)}"
    _refuse(state, wanted, shapes, found, problems)
    return {}, ""


def _refuse(
    state: OptimizerState,
    wanted: Sequence[Sequence[Shape | None]],
    shapes: Mapping[str, Shape | None],
    found: Sequence[Candidate],
    problems: Problems,
) -> None:
    count = len(state.names)
    sizes = [(title, sum(map(len, parts))) for title, parts in found]
    fix = "where=, the parameters that it had; or rule=optimizer, one that was made in the same way"
    same = [candidate for candidate, (_, size) in zip(found, sizes, strict=True) if size == count]
    best = same[0] if same else found[-1]
    flat = [p for part in best.groups for p in part]
    rows = []
    for position in range(max(count, len(flat))):
        name = state.names[position] if position < count else None
        p = flat[position] if position < len(flat) else None
        known = None if name is None else shapes.get(name)
        if not same or p is None or name is None or not _agree(known, p.layout.stored):
            left = "nothing" if name is None else f"position {name}, {known or 'of unknown shape'}"
            rows.append(f"  {left} against {'nothing' if p is None else f'{p.name!r} {p.layout.stored}'}")
    more = [f"  ... and {len(rows) - _SHOWN} more"] if len(rows) > _SHOWN else []
    listed = "\n".join([*rows[:_SHOWN], *more])
    expected = ", or ".join(f"{size} ({title})" for title, size in sizes)
    if not same:
        text = f"it has another number of parameters\ngot:      {count}\nexpected: {expected}\n{listed}"
    elif len(wanted) > 1:
        sizes_of = ", ".join(str(len(group)) for group in wanted)
        text = f"its {len(wanted)} groups (of {sizes_of} parameters) fit the order of the model's in no way, or several"
        text = f"{text}\n{listed}".rstrip()
        fix = "rule=optimizer, one that was made in the same way: its groups tell which parameters they have"
    else:
        text = f"the shapes of {len(rows)} of {count} positions contradict\n{listed}"
    problems.add(HandoffError, text, fix=fix)


def _by_name(
    state: OptimizerState, shapes: Mapping[str, Shape | None], order: Sequence[Parameter], problems: Problems
) -> tuple[dict[str, Parameter], str]:
    """Return the parameter of each name in the file; add problems for names and shapes that don't fit."""
    by_native = {p.native_name: index for index, p in enumerate(order)}
    readings = find_readings(state.names, by_native)
    if len(readings) > 1:
        ways = "\n".join(f"  {reading}" for reading in readings[:_SHOWN])
        problems.add(HandoffError, f"its names fit the model in {len(readings)} ways\n{ways}")
        return {}, ""
    pairs = {} if not readings else {key: order[by_native[name]] for name, key in readings[0].pairs.items()}
    placed = {name: pairs[name] for name in state.names if name in pairs}
    strange = [name for name in state.names if name not in pairs]
    for name in strange[:_SHOWN]:
        problems.add(HandoffError, f"the model has no {name!r}\n{near(name, by_native)}")
    if len(strange) > _SHOWN:
        problems.add(HandoffError, f"the model hasn't {len(strange) - _SHOWN} more, either")
    for name, p in placed.items():
        if not _agree(shapes.get(name), p.layout.stored):
            text = f"the slots of {name!r} have another shape\ngot:      {shapes[name]}\nexpected: {p.layout.stored}"
            problems.add(HandoffError, text)
    return placed, f"matched by the names in the file: {_list_pairs(placed)}"


def _list_pairs(placed: Mapping[str, Parameter]) -> str:
    shown = ", ".join(f"{key} is {p.name}" for key, p in list(placed.items())[:_SHOWN])
    return shown + (f", and {len(placed) - _SHOWN} more" if len(placed) > _SHOWN else "")


def _leave_out_frozen(
    state: OptimizerState, placed: Mapping[str, Parameter], problems: Problems
) -> dict[str, Parameter]:
    """Return the parameters that have a state; refuse those that are trained and were never updated."""
    if not state.slots or not state.updates:
        return dict(placed)
    fresh = [p for key, p in placed.items() if key not in state.slots]
    late = [p.name for p in fresh if p.trainable]
    if late:
        names = ", ".join(map(repr, late[:_SHOWN])) + (", ..." if len(late) > _SHOWN else "")
        problems.add(
            HandoffError,
            f"{len(late)} trained parameters were never updated in the file, and others {state.updates} times: {names}",
            fix="requires_grad_(False) for them while the state is set, or an optimizer of their own",
        )
    return {key: p for key, p in placed.items() if key in state.slots}


def _note_left(placed: Mapping[str, Parameter], kept: Mapping[str, Parameter]) -> list[str]:
    left = [p.name for key, p in placed.items() if key not in kept]
    more = f", and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
    return [f"frozen, and never updated in the file: {', '.join(left[:_SHOWN])}{more}"] if left else []


def _rename(state: OptimizerState, placed: Mapping[str, Parameter], notes: Sequence[str]) -> OptimizerState:
    groups = []
    slots: dict[str, Mapping[str, Array]] = {}
    factored: dict[str, tuple[int, int]] = {}
    dtypes: dict[str, str] = {}
    for group in state.groups:
        members = [(key, placed[key]) for key in group.names if key in placed]
        for key, p in members:
            own = state.slots.get(key)
            slots[p.name] = _start(group, p) if own is None else _to_neutral(p, own)
            dtypes[p.name] = state.dtypes.get(key, p.dtype.name)
            if group.rule == "adafactor" and len(p.shape) > 1:
                axes = state.factored.get(key, (len(p.shape) - 2, len(p.shape) - 1))
                factored[p.name] = (p.layout.inverse[axes[0]], p.layout.inverse[axes[1]])
        if members:
            groups.append(replace(group, names=tuple(p.name for _, p in members)))
    lines = (*notes, *state.notes)
    return replace(state, groups=tuple(groups), slots=slots, dtypes=dtypes, factored=factored, notes=lines, saved=None)


def _to_neutral(p: Parameter, slots: Mapping[str, Array]) -> dict[str, Array]:
    """Return the slots of one parameter in neutral order; averages of rows and columns have kept every axis."""
    neutral = {}
    for slot, value in slots.items():
        if value.ndim == 0:
            neutral[slot] = value
        elif slot in ("row", "column"):
            same = value.ndim == len(p.layout.order)
            neutral[slot] = np.ascontiguousarray(value.transpose(p.layout.order)) if same else value
        else:
            neutral[slot] = np.ascontiguousarray(p.layout.to_neutral(value))
    return neutral


def _start(group: OptimizerGroup, p: Parameter) -> dict[str, Any]:
    """Return the slots of a parameter before its first update."""
    slots = initial_slots(group, p)
    for slot, axis in (("row", -1), ("column", -2)):
        if slot in slots:
            averaged = p.layout.inverse[len(p.shape) + axis]
            shape = tuple(1 if position == averaged else n for position, n in enumerate(p.shape))
            slots[slot] = np.zeros(shape, p.dtype)
    return slots
