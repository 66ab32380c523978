"""Many Keras variables on JAX, read, written and edited in a few compiled calls.

A call of a compiled function costs more than the work on a small array, so each takes a batch of arrays; of large ones
each takes one. It is compiled once for each rule, dtype and shape, which takes as long as editing a thousand small
arrays on the host, or some hundred MiB of large ones: the first are edited that way.

The array that is edited is never donated, since another thread may read it. What XLA made a training step can donate
afterwards; what JAX took over from NumPy it copies: a step that donates 12 arrays of 4.2 million float32 takes 11 ms
after a compiled edit, and 84 after one on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from operator import attrgetter, methodcaller
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from keras.src.backend.common.stateless_scope import get_stateless_scope

from xweights.core.dispatch import edit_each, ops_for
from xweights.core.dtypes import Array
from xweights.core.expressions import Expression, record, replay
from xweights.core.protocols import Storage
from xweights_keras.storage.base import KerasStorage

# Arrays of this many bytes and more are edited one by one: a call costs little beside them.
LARGE = 1 << 18
# How many bytes of large arrays of one shape are edited on the host, by one rule, until compiled code has saved what it
# costs: 0.05 s, where the next step that donates 16 MiB takes 5 ms longer after an edit on the host.
ENOUGH_BYTES = 1 << 28
# How many arrays of one shape are edited on the host, by one rule, until compiled code has saved what it costs.
ENOUGH = 1_000
# How many arrays one call takes: 1,000 arrays of 10,000 entries take 22 ms of processor time 10 at a time, 16 at 25, 10
# at 100, and 9 all at once, which takes 3 s to compile; to compile 100 takes 0.05 s longer than 25.
_BATCHES = (100, 10, 1)

_wait_for: Any = jax.block_until_ready
_counts: dict[Hashable, int] = {}
_compiled: dict[Hashable, Any] = {}
_value: Callable[[Any], Any] = attrgetter("_value")
_facts = (type, attrgetter("dtype"), attrgetter("shape"), methodcaller("is_deleted"))


class JaxGroups(KerasStorage):
    """The methods of :class:`~xweights.core.protocols.GroupStorage` for variables on JAX; a base of their storage."""

    def group_key(self, handle: Any) -> Hashable | None:
        value = handle._value
        if get_stateless_scope() is not None or not isinstance(value, jax.Array) or isinstance(value, jax.core.Tracer):
            return None
        if value.is_deleted() or value.dtype.isbuiltin != 1 or value.dtype.kind not in "fiu":
            return None
        devices = tuple(value.devices())
        return devices if len(devices) == 1 and devices[0].platform == "cpu" else None

    def group_state(self, handles: Sequence[Any]) -> list[Hashable]:
        values = list(map(_value, handles))
        kinds = set(map(type, values))
        if not all(issubclass(kind, jax.Array) and not issubclass(kind, jax.core.Tracer) for kind in kinds):
            return ["traced"] * len(values)
        facts = zip(*(map(fact, values) for fact in _facts), strict=True)
        if _is_one_device():
            return list(facts)
        return [(*own, frozenset(value.devices())) for own, value in zip(facts, values, strict=True)]

    def read_group(self, handles: Sequence[Any]) -> list[Array]:
        if get_stateless_scope() is not None:
            return [_whole(self).read(handle) for handle in handles]
        return [np.asarray(value).view() for value in map(_value, handles)]

    def write_group(self, handles: Sequence[Any], values: Sequence[Array]) -> None:
        for position in _edit_compiled(_COPY, handles, [list(values)]):
            _whole(self).write(handles[position], values[position])

    def apply_group(
        self,
        edit: Callable[..., Any],
        handles: Sequence[Any],
        operands: Sequence[Any],
        views: Sequence[Array] | None = None,
    ) -> None:
        left = _edit_compiled(record(edit, len(operands)), handles, operands)
        edit_each(_whole(self), edit, handles, operands, left, tensor=get_stateless_scope() is not None)


def _whole(storage: JaxGroups) -> Storage:
    """Return a storage as what it is: a class that has these methods and all others."""
    return cast("Storage", storage)


def _edit_compiled(expression: Expression, handles: Sequence[Any], operands: Sequence[Any]) -> Sequence[int]:
    """Edit arrays of one shape in batches, large ones one by one, if it pays; return the positions of all others."""
    everything = range(len(handles))
    if get_stateless_scope() is not None:
        return everything
    are_lists = [isinstance(operand, list) for operand in operands]
    lists = [operand for operand in operands if isinstance(operand, list)]
    alike: dict[tuple[tuple[int, ...], np.dtype[Any]], list[int]] = {}
    for position, (shape, dtype) in enumerate([(value.shape, value.dtype) for value in map(_value, handles)]):
        if all(arrays[position].shape == shape for arrays in lists):
            alike.setdefault((shape, dtype), []).append(position)
    done: set[int] = set()
    for (shape, dtype), positions in alike.items():
        size = math.prod(shape) * dtype.itemsize
        is_large = size >= LARGE
        if is_large and expression == _COPY:
            continue
        key = (expression, *are_lists, (shape, dtype))
        _counts[key] = _counts.get(key, 0) + len(positions) * (size if is_large else 1)
        if _counts[key] < (ENOUGH_BYTES if is_large else ENOUGH):
            continue
        kind = (expression, *are_lists)
        if kind not in _compiled:
            _compiled[kind] = _compile(expression, are_lists)
        for own in [[position] for position in positions] if is_large else [positions]:
            _run(_compiled[kind], [handles[position] for position in own], operands, own, wait=is_large)
        done.update(positions)
    return [position for position in everything if position not in done]


def _run(
    compiled: Any, handles: Sequence[Any], operands: Sequence[Any], positions: Sequence[int], *, wait: bool
) -> None:
    """Edit variables of one shape and dtype; ``wait`` until it is done, lest the memory of many is taken at once."""
    new: list[Any] = []
    for size in _BATCHES:
        while len(handles) - len(new) >= size:
            batch = slice(len(new), len(new) + size)
            own = [_take(operand, positions[batch]) for operand in operands]
            new += compiled(list(map(_value, handles[batch])), *own)
    if wait or any(isinstance(operand, list) for operand in operands):
        # JAX may still read the caller's arrays, which may change as soon as this returns.
        _wait_for(new)
    for handle, value in zip(handles, new, strict=True):
        handle._direct_assign(value)


def _take(operand: Any, positions: Sequence[int]) -> Any:
    """Return what a batch gets of an operand."""
    if not isinstance(operand, list):
        return operand
    own = [operand[position] for position in positions]
    # To pass an array costs more than to copy a small mask. Of numbers a compiler may change bits as it takes them out.
    return np.stack(own) if len(own) > 1 and own[0].dtype == np.bool_ else own


# New memory with the entries of an operand.
_COPY: Expression = ("copy", 0)


def _compile(expression: Expression, are_lists: Sequence[bool]) -> Any:
    """Return a compiled function of a list of arrays, and of numbers for all of them or a list for each operand."""

    def edit_all(ws: list[Any], *operands: Any) -> list[Any]:
        new = []
        for at, w in enumerate(ws):
            own = [operand[at] if is_list else operand for operand, is_list in zip(operands, are_lists, strict=True)]
            new.append(jnp.copy(own[0]) if expression == _COPY else replay(expression, w, ops_for(w), own))
        return new

    return jax.jit(edit_all)


def _is_one_device() -> bool:
    devices = jax.devices()
    return len(devices) == 1 and devices[0].platform == "cpu"
