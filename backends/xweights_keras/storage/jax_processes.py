"""Storage of Keras variables on JAX in one of several processes of ``jax.distributed``.

Each process reads and writes what its own devices have of a variable, after all of them agreed. A variable whose
devices are all of this process is read and written as in :mod:`xweights_keras.storage.jax`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from copy import copy
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from xweights.core.dtypes import Array
from xweights.core.groups import SINGLE
from xweights.core.layout import Layout, plain_layout
from xweights.core.shards import Ranges, Shard
from xweights.errors import HandoffError, WriteError
from xweights_keras.parts import Parts
from xweights_keras.storage.base import raw_value
from xweights_keras.storage.jax import JaxStorage
from xweights_keras.storage.jax_groups import cut_axes, process_group, ranges_of_processes


class ProcessStorage(JaxStorage):
    """Storage of the variables of a model that several processes train together.

    The one that adapters hand out is closed: what is cut between processes is refused to calls that don't vote first.
    """

    # No value of the global shape shares the memory of a block, and to read one to find out would be a collective.
    replaces = True

    def __init__(self, root: Any, statistics: frozenset[int], parts: Parts | None = None) -> None:
        super().__init__(root, statistics, parts)
        self.is_open = False
        self._others: dict[str, Any] = {}

    def opened(self) -> ProcessStorage:
        if self.is_open:
            return self
        if "opened" not in self._others:
            self._others["opened"] = copy(self)
            self._others["opened"].is_open = True
        opened: ProcessStorage = self._others["opened"]
        return opened

    def shard(self, handle: Any, layout: Layout) -> Shard:
        value = handle._value
        whole = tuple((0, length) for length in layout.stored)
        if not is_global(value):
            return Shard(layout, whole, SINGLE)
        return _shard_of(value.sharding, layout)

    def local(self, handle: Any) -> tuple[Any, Any]:
        if not is_global(handle._value):
            return self, handle
        if "block" not in self._others:
            self._others["block"] = block = BlockStorage(None, self.statistics, self.parts)
            block._root = self._root
        return self._others["block"], handle

    def whole(self, handle: Any, value: Array) -> tuple[Any, Any]:
        return JaxStorage(None, frozenset()), _Gathered(handle, value)

    def group_key(self, handle: Any) -> Hashable | None:
        return None  # the processes vote first

    def refusal(self, handle: Any, *, writing: bool) -> str | None:
        value = raw_value(handle)
        if not is_global(value) or value.is_deleted():
            return super().refusal(handle, writing=writing)
        ranges = ranges_of_processes(value.sharding, tuple(value.shape))
        if isinstance(ranges, str):
            return f"{ranges}\nFix: another mesh or LayoutMap, or edit it in one process"
        return None if self.is_open or len(set(ranges)) == 1 else _CLOSED

    def step_refusal(self, handle: Any) -> str | None:
        return _step_refusal(handle._value)

    def read(self, handle: Any) -> Array:
        if not is_global(raw_value(handle)):
            return super().read(handle)
        shard, block = self._open(handle), _read_block(handle._value)
        return block if shard.is_whole else shard.gather(block)

    def write(self, handle: Any, value: Array) -> None:
        if not is_global(raw_value(handle)):
            super().write(handle, value)
        else:
            _write_block(handle, self._open(handle).cut_stored(value))

    def _open(self, handle: Any) -> Shard:
        shard = self.shard(handle, plain_layout(tuple(handle._value.shape)))
        if not self.is_open and not shard.is_whole:
            raise WriteError(_CLOSED)
        return shard

    def native_array(self, handle: Any, *, tensor: bool = False) -> Any:
        if not is_global(raw_value(handle)):
            return super().native_array(handle, tensor=tensor)
        self._open(handle)
        storage, _ = self.local(handle)
        return storage.native_array(handle, tensor=tensor)

    def commit(self, handle: Any, native: Any, value: Any) -> None:
        if not is_global(raw_value(handle)):
            super().commit(handle, native, value)
        else:
            _write_block(handle, np.asarray(value))

    def backup(self, handle: Any) -> Any:
        if not is_global(raw_value(handle)):
            return super().backup(handle)
        return _back_up_block(handle)

    def restore(self, handle: Any, kept: Any) -> None:
        if not is_global(raw_value(handle)):
            super().restore(handle, kept)
        else:
            _write_block(handle, kept[1])


class BlockStorage(JaxStorage):
    """Storage of what the devices of this process have, as an array of its own; the handle is still the variable."""

    def group_key(self, handle: Any) -> Hashable | None:
        return None

    def refusal(self, handle: Any, *, writing: bool) -> str | None:
        value = raw_value(handle)
        if not is_global(value) or value.is_deleted():
            return super().refusal(handle, writing=writing)
        return None

    def step_refusal(self, handle: Any) -> str | None:
        return _step_refusal(handle._value)

    def read(self, handle: Any) -> Array:
        value = raw_value(handle)
        return _read_block(value) if is_global(value) else super().read(handle)

    def write(self, handle: Any, value: Array) -> None:
        _write_block(handle, value)

    def native_array(self, handle: Any, *, tensor: bool = False) -> Any:
        value = raw_value(handle)
        if not is_global(value):
            return super().native_array(handle, tensor=tensor)
        block = np.array(_read_block(value))
        return jax.device_put(block, jax.local_devices()[0]) if tensor else block

    def commit(self, handle: Any, native: Any, value: Any) -> None:
        if is_global(raw_value(handle)):
            _write_block(handle, np.asarray(value))
        else:
            super().commit(handle, native, value)

    def backup(self, handle: Any) -> Any:
        return _back_up_block(handle)

    def restore(self, handle: Any, kept: Any) -> None:
        _write_block(handle, kept[1])


class _Gathered:
    """A gathered copy of a variable, on one device of this process, with what storages ask of a variable."""

    def __init__(self, variable: Any, value: Array) -> None:
        self.path, self.trainable, self._dtype = variable.path, variable.trainable, variable._dtype
        self._value = jax.device_put(np.array(value), jax.local_devices()[0])

    def assign(self, value: Any) -> None:
        self._value = value


def is_global(value: Any) -> bool:
    """Return whether other processes have devices of an array, too."""
    return isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer) and not value.is_fully_addressable


@lru_cache(maxsize=65536)
def _shard_of(sharding: Any, layout: Layout) -> Shard:
    group, label = process_group(), str(getattr(sharding, "spec", sharding))
    ranges = ranges_of_processes(sharding, layout.stored)
    if isinstance(ranges, str):  # refused by name, once the processes vote
        return Shard(layout, tuple((0, 0) for _ in layout.stored), group, label=ranges)
    if len(set(ranges)) == 1:
        return Shard(layout, ranges[0], group, label=label)
    cut = cut_axes(ranges)
    groups = tuple(group if axis in cut else SINGLE for axis in range(len(layout.stored)))
    return Shard(layout, ranges[group.rank], group, group, groups, ranges.__getitem__, label)


def _step_refusal(value: Any) -> str | None:
    if not is_global(value) or _own_ranges(value) == tuple((0, length) for length in value.shape):
        return None
    return (
        f"it is cut between {jax.process_count()} processes, and the compiled step sees all of it at once\n"
        "Fix: a LayoutMap that cuts it between the devices of one process, or the verb after each epoch, in a callback"
    )


def _own_ranges(value: Any) -> Ranges:
    ranges = ranges_of_processes(value.sharding, tuple(value.shape))
    assert not isinstance(ranges, str)  # refused before
    return ranges[process_group().rank]


def _read_block(value: Any) -> Array:
    """Return what the devices of this process have, as one array."""
    ranges = _own_ranges(value)
    shape = tuple(last - first for first, last in ranges)
    parts = value.addressable_shards
    if tuple(parts[0].data.shape) == shape:
        return np.asarray(parts[0].data)
    block = np.empty(shape, value.dtype)
    for part in parts:
        block[_within(part.index, ranges, value.shape)] = np.asarray(part.data)
    return block


def _write_block(handle: Any, block: Array) -> None:
    """Give each device of this process its part of a block; the others' stay as they are."""
    old = handle._value
    ranges, shape = _own_ranges(old), tuple(old.shape)
    indices = old.sharding.addressable_devices_indices_map(shape)
    parts = [
        # A copy: JAX takes over memory that is aligned.
        jax.device_put(np.array(block[_within(index, ranges, shape)], order="C"), device)
        for device, index in indices.items()
    ]
    handle.assign(jax.make_array_from_single_device_arrays(shape, old.sharding, parts))


def _within(index: Any, ranges: Ranges, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return a device's index in the whole array as one in the block."""
    return tuple(
        slice(part.indices(length)[0] - first, part.indices(length)[1] - first)
        for part, (first, _), length in zip(index, ranges, shape, strict=True)
    )


def read_slot_block(variable: Any, handle: Any, name: str) -> Array:
    """Return what this process has of an optimizer's variable for the parameter ``name``, whose variable is given."""
    _refuse_other_cut(variable, handle, name)
    value = variable._value
    return np.array(_read_block(value) if is_global(value) else np.asarray(value))


def write_slot_block(variable: Any, handle: Any, name: str, block: Array) -> None:
    """Write what this process has of an optimizer's variable."""
    _refuse_other_cut(variable, handle, name)
    if not is_global(variable._value):
        variable.assign(block.reshape(tuple(variable.shape)))
        return
    lengths = [last - first for first, last in _own_ranges(variable._value)]
    _write_block(variable, block.reshape(lengths).astype(variable._value.dtype, copy=False))


def back_up_devices(variable: Any) -> Callable[[], None]:
    """Return a function that gives the devices of this process what they have of a variable now."""
    old = variable._value
    kept = [(np.array(part.data), part.device) for part in old.addressable_shards]

    def restore() -> None:
        parts = [jax.device_put(value.copy(), device) for value, device in kept]
        variable.assign(jax.make_array_from_single_device_arrays(old.shape, old.sharding, parts))

    return restore


def _refuse_other_cut(variable: Any, handle: Any, name: str) -> None:
    if tuple(variable.shape) and _ranges_of_all(variable._value) != _ranges_of_all(handle._value):
        raise HandoffError(
            f"the optimizer's {variable.path!r} isn't cut between the processes of jax.distributed as {name!r} is\n"
            "Fix: an optimizer of Keras' own whose slots have the shapes of their parameters (Adam, SGD), made while\n"
            "the distribution is set; or its state before the model is distributed"
        )


def _ranges_of_all(value: Any) -> Any:
    """Return the blocks of all processes; None if each has all of an array."""
    if not is_global(value):
        return None
    ranges = ranges_of_processes(value.sharding, tuple(value.shape))
    return ranges if isinstance(ranges, str) or len(set(ranges)) > 1 else None


def _back_up_block(handle: Any) -> Any:
    # The array is kept as well as a copy, so that its memory isn't reused by a step that donates it.
    return handle._value, np.array(_read_block(handle._value))


_CLOSED = (
    "it is cut between processes of jax.distributed, and this call doesn't work on parts\n"
    "Fix: make the call on xweights.get_params(model), which has whole arrays in every process"
)
