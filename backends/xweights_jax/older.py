"""What JAX before 0.7.2 needs to compute in 64 bits in a compiled step.

It lowers a step when ``enable_x64`` is over already, and makes every 64-bit constant of the step 32 bits wide then.
So constants come into the step as halves, and are joined there; what makes such constants itself runs on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import numpy as np

from xweights.core.dtypes import Array

NARROWS_CONSTANTS: bool = jax.__version_info__ < (0, 7, 2)
_TWO_HALVES: Any = cast("Any", jax.ShapeDtypeStruct)((2,), np.uint32)


def widened(value: Any) -> Any:
    """Return a 64-bit constant as halves that the compiled step joins; anything else as it is."""
    if isinstance(value, jax.core.Tracer) or not isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return value
    if value.dtype not in (np.float64, np.int64, np.uint64):
        return value
    return jax.lax.bitcast_convert_type(_halves(np.asarray(value)), value.dtype)


def measured_on_host(measure: Callable[[Array], Array], x: Any) -> Any:
    """Return what a measure of NumPy says of a traced array: one number in float64."""
    # Callbacks, too, take and return no more than 32 bits.
    halves = jax.lax.bitcast_convert_type(x.astype(np.float64), np.uint32)
    number = jax.pure_callback(
        lambda of: _halves(measure(np.asarray(of).view(np.float64)[..., 0])),
        _TWO_HALVES,
        halves,
        vmap_method="sequential",
    )
    return jax.lax.bitcast_convert_type(number, np.float64)


def _halves(value: Array) -> Array:
    return np.frombuffer(value.tobytes(), np.uint32).reshape(*value.shape, 2)
