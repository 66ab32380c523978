"""Values of an optimizer's variables: whole, or this process' block where those that they belong to are cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter


def read_slot(variable: Any, p: Parameter) -> Array:
    """Return a copy of a slot of ``p``; raise HandoffError if other processes have other parts of it than of ``p``."""
    if keras.backend.backend() == "jax":
        from xweights_keras.storage.jax_processes import is_global, read_slot_block

        if is_global(variable._value) or is_global(p.handle._value):
            return read_slot_block(variable, p.handle, p.name)
    return np.array(keras.ops.convert_to_numpy(variable))


def write_slot(variable: Any, p: Parameter, value: Array) -> None:
    """Write a slot of ``p``, or this process' block of it; raise HandoffError as :func:`read_slot`."""
    if keras.backend.backend() == "jax":
        from xweights_keras.storage.jax_processes import is_global, write_slot_block

        if is_global(variable._value) or is_global(p.handle._value):
            write_slot_block(variable, p.handle, p.name, value)
            return
    variable.assign(value.reshape(tuple(variable.shape)))


def back_up_slot(variable: Any) -> Callable[[], None]:
    """Return a function that gives a variable of an optimizer its present value back."""
    if keras.backend.backend() == "jax":
        from xweights_keras.storage.jax_processes import back_up_devices, is_global

        if is_global(variable._value):
            return back_up_devices(variable)
    value = np.array(keras.ops.convert_to_numpy(variable))

    def restore() -> None:
        variable.assign(value)

    return restore
