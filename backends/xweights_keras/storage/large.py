"""Large Keras variables on JAX, edited one by one by compiled code, each in the memory of one that was edited before.

JAX never writes into an array, and fresh memory costs three times what an edit in place does. To donate the array that
is edited would save it, but takes the array away from whoever reads it meanwhile. So an array is donated after it was
replaced in its variable, when nobody else can get hold of it any more, and only if nobody has it: neither the same
object, nor another array that shares its buffer (what ``jax.device_put`` and ``addressable_shards`` return), nor a view
in NumPy.

What XLA allocated itself a training step can donate again. It copies what it took over from NumPy: a step that donates
12 arrays of 4.2 million float32 takes 11 ms after this, and 84 after an edit on the host.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import suppress
from operator import methodcaller
from typing import Any

import jax
import jax.numpy as jnp

# Who has an array is asked for some of them at a time: it means to look at all arrays that there are.
_ARRAYS = 4
_BYTES = 1 << 24
# What is kept from call to call, of all shapes.
_MOST_BYTES = 1 << 27

_find_buffer = methodcaller("unsafe_buffer_pointer")
_spare: dict[Hashable, list[Any]] = {}


def edit_large(compiled: Any, handles: Sequence[Any], operands: Sequence[Any], positions: Sequence[int]) -> None:
    """Edit variables of one shape and dtype by a function of memory, the array, and its operands."""
    key, size, shape, dtype = _describe(handles[0]._value)
    spare = [array for array in _spare.pop(key, []) if not array.is_deleted()]
    step = max(1, min(_ARRAYS, _BYTES // size))
    for first in range(0, len(handles), step):
        batch = handles[first : first + step]
        old = [handle._value for handle in batch]
        new = []
        for value, position in zip(old, positions[first : first + step], strict=True):
            own = [operand[position] if isinstance(operand, list) else operand for operand in operands]
            new.append(compiled(spare.pop() if spare else jnp.empty(shape, dtype), value, *own))
        del value
        if any(isinstance(operand, list) for operand in operands):
            # JAX may still read the caller's arrays, which may change as soon as this returns.
            jax.block_until_ready(new)  # type: ignore[no-untyped-call]
        for handle, value in zip(batch, new, strict=True):
            handle._direct_assign(value)
        del new, value
        spare += [value for value in _take_unshared(old) if _describe(value)[0] == key]
    _keep(key, spare[:step])


def _describe(value: Any) -> tuple[Hashable, int, Any, Any]:
    """Return what arrays have in common that may take each other's place, and size, shape and dtype."""
    return (value.shape, value.dtype, value.sharding, value.committed), value.nbytes, value.shape, value.dtype


def _keep(key: Hashable, arrays: list[Any]) -> None:
    if not arrays:
        return
    _spare[key] = arrays
    while sum(array.nbytes for kept in list(_spare.values()) for array in kept) > _MOST_BYTES:
        with suppress(StopIteration, RuntimeError):  # another thread was faster
            _spare.pop(next(iter(_spare)), None)


def _take_unshared(arrays: list[Any]) -> list[Any]:
    """Return those of some arrays that nobody has but this list, which is empty then."""
    if not _counts_references():
        return []
    alone = [array for array, count in _count(arrays) if count == _ALONE and array._npy_value is None]
    if not alone:
        return []
    live = jax.live_arrays("cpu")  # type: ignore[no-untyped-call]
    try:
        buffers = Counter(map(_find_buffer, live))
    except (RuntimeError, ValueError):  # some are on several devices, or deleted
        try:
            buffers = Counter(buffer for array in live for buffer in _buffers(array))
        except (RuntimeError, ValueError):  # one was deleted meanwhile, or has no address
            return []
    return [array for array in alone if buffers[array.unsafe_buffer_pointer()] == 1]


def _buffers(array: Any) -> list[int]:
    if array.is_deleted():
        return []
    if len(array.sharding.device_set) == 1:
        return [array.unsafe_buffer_pointer()]
    return [shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards]


def _count(objects: list[Any]) -> Iterator[tuple[Any, int]]:
    """Yield objects, which leave the list, with the number of references to each."""
    while objects:
        one = objects.pop()
        yield one, sys.getrefcount(one)


def _counts_references() -> bool:
    """Return whether references are counted exactly: not where threads run without Python's lock."""
    return not hasattr(sys, "_is_gil_enabled") or bool(sys._is_gil_enabled())


# What is counted for an object that nobody else has.
_ALONE = next(count for _, count in _count([object()]))
