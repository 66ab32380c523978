"""Storage of the variables of ``tf.distribute.MirroredStrategy``, of which each replica has a copy.

``variable.handle`` is the first copy's, so that a write through it reaches one replica and leaves the others as they
were. Outside of ``strategy.run`` every copy is written, and the first one is read. Inside of it, and in the update of
``fit``, each replica reads and writes its own, as the strategy's own ``assign`` does.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import tensorflow as tf

from xweights.core.dtypes import Array
from xweights_tensorflow.graphs import mark_settled
from xweights_tensorflow.storage import VARIABLES, VariableStorage, host_view

_SUPPORTED = (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy)


def is_replicated(variable: Any) -> bool:
    """Return whether a variable was made by a strategy of ``tf.distribute`` that copies or spreads it."""
    return isinstance(variable, tf.distribute.DistributedValues) or is_of_server(variable)


def is_of_server(variable: Any) -> bool:
    """Return whether a variable is one that ParameterServerStrategy or CentralStorageStrategy made."""
    return type(variable).__module__.endswith(".ps_values")


def is_in_replica() -> bool:
    """Return whether this code runs once for each replica: inside of ``strategy.run``."""
    return bool(tf.distribute.has_strategy() and not tf.distribute.in_cross_replica_context())


class MirroredStorage(VariableStorage):
    """Storage of variables with one copy on each device of a strategy; the handle is the variable that has them all."""

    def refusal(self, handle: Any, *, writing: bool) -> str | None:
        if is_of_server(handle):
            return (
                "it is kept by a parameter server, or on one device for all (ParameterServerStrategy, "
                "CentralStorageStrategy)\nFix: MirroredStrategy, or edit its checkpoint"
            )
        strategy = handle.distribute_strategy
        if not isinstance(strategy, _SUPPORTED):
            return f"it is distributed by {type(strategy).__name__}; of these MirroredStrategy is supported"
        if strategy.num_replicas_in_sync != len(handle.values):
            return (
                f"other processes have {strategy.num_replicas_in_sync - len(handle.values)} of its "
                f"{strategy.num_replicas_in_sync} copies (MultiWorkerMirroredStrategy)\n"
                "Fix: edit the model before it is distributed, or load its checkpoint in one process"
            )
        if handle.aggregation == tf.VariableAggregation.SUM and _is_on_read(handle):
            return "its value is the sum over all replicas (ON_READ, SUM), and none of them has it"
        if is_in_replica():
            own = tf.distribute.get_strategy() is strategy
            return None if own else "this is inside of strategy.run of another strategy than the one that made it"
        if _is_in_update(handle):
            return (
                "this is inside of strategy.extended.update, which runs once for each copy\n"
                "Fix: call it in merge_call, or outside of strategy.run"
            )
        for copy in handle.values:
            reason = VARIABLES.refusal(copy, writing=writing)
            if reason is not None:
                return reason
        # Statistics may differ: each replica has seen other data.
        if handle.trainable and tf.executing_eagerly() and not _are_copies_equal(handle):
            return (
                f"its {len(handle.values)} replicas have different values\n"
                "Fix: variable.assign(variable.numpy()) gives all of them those of the first"
            )
        return None

    def group_key(self, handle: Any) -> Hashable | None:
        return None  # its copies are on several devices

    def read(self, handle: Any) -> Array:
        return VARIABLES.read(_copies_here(handle)[0]) if _has_one_value(handle) else host_view(handle.read_value())

    def write(self, handle: Any, value: Array) -> None:
        for copy in _copies_here(handle):
            VARIABLES.write(copy, value)

    def native_array(self, handle: Any, *, tensor: bool = False) -> Any:
        if not _has_one_value(handle):
            return mark_settled(handle.read_value())
        return VARIABLES.native_array(_copies_here(handle)[0], tensor=tensor)

    def tracked(self, handle: Any) -> Any:
        return handle.read_value()

    def commit(self, handle: Any, native: Any, value: Any) -> None:
        for copy in _copies_here(handle):
            VARIABLES.commit(copy, None, value)  # all, since the others' statistics may differ

    def backup(self, handle: Any) -> Any:
        return [(copy, VARIABLES.backup(copy)) for copy in _copies_here(handle)]

    def restore(self, handle: Any, kept: Any) -> None:
        for copy, value in kept:
            VARIABLES.restore(copy, value)


def _copies_here(handle: Any) -> list[Any]:
    """Return the copies that code here writes: this replica's own, or all of them."""
    return [_own_copy(handle)] if is_in_replica() else list(handle.values)


def _own_copy(handle: Any) -> Any:
    own = handle.handle  # that of this replica, in its context alone
    return next(copy for copy in handle.values if copy.handle is own)


def _is_in_update(handle: Any) -> bool:
    """Return whether this is the function of ``strategy.extended.update``, which isn't in ``strategy.run``."""
    if not tf.distribute.has_strategy():
        return False
    try:
        return handle.handle is not None
    except ValueError:  # "not available outside the replica context or a `tf.distribute.Strategy.update()` call"
        return False


def _is_on_read(handle: Any) -> bool:
    return bool(handle.synchronization == tf.VariableSynchronization.ON_READ)


def _has_one_value(handle: Any) -> bool:
    """Return whether the first copy is the variable's value; of one that is averaged when read, TensorFlow has that."""
    if is_in_replica() or not _is_on_read(handle) or handle.aggregation != tf.VariableAggregation.MEAN:
        return True
    return tf.executing_eagerly() and _are_copies_equal(handle)


def _are_copies_equal(handle: Any) -> bool:
    first, *others = (VARIABLES.read(copy).reshape(-1).view(np.uint8) for copy in handle.values)
    return all(np.array_equal(first, other) for other in others)


MIRRORED = MirroredStorage()


def storage_for(variable: Any) -> VariableStorage:
    """Return the storage of a variable: of one with a copy on each device, or of a plain one."""
    return MIRRORED if is_replicated(variable) else VARIABLES
