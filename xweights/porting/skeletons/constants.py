"""Arrays of numbers as source code: by the rule that makes them where there is one, or by their bytes."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np

from xweights.core.dtypes import Array

# What a constant may take in the source code: 200 lines.
_LONGEST = 24_000
TABLE = '''def table(text, dtype, shape):
    """Return an array that is written as compressed bytes."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype).reshape(shape)'''


def code_of_array(array: Array) -> str | None:
    """Return NumPy code of an array; None if it would be too long. Code that starts with "table(" needs TABLE."""
    dtype = str(array.dtype)
    flat = array.ravel()
    if flat.size and (flat == flat[0]).all():
        return f"np.full({array.shape}, {_number(flat[0])}, {dtype!r})"
    if flat.size > 2 and array.dtype.kind in "iu":
        steps = np.arange(flat.size, dtype=array.dtype) * (flat[1] - flat[0]) + flat[0]
        if np.array_equal(steps, flat):
            return _shaped(f"np.arange({flat[0]}, {flat[-1] + (flat[1] - flat[0])}, {flat[1] - flat[0]})", array)
    if array.ndim >= 2:
        matrix = array.reshape(-1, array.shape[-1])
        for name, shape in (("tril", np.tril), ("triu", np.triu)):
            for offset in (0, 1, -1):
                low, high = matrix[-1, 0], matrix[0, -1]
                inside, outside = (low, high) if name == "tril" else (high, low)
                if np.array_equal(np.where(shape(np.ones(matrix.shape, bool), offset), inside, outside), matrix):
                    mask = f"np.{name}(np.ones({matrix.shape}, bool), {offset})"
                    return _shaped(f"np.where({mask}, {_number(inside)}, {_number(outside)})", array)
    if flat.size <= 64:
        return f"np.array([{', '.join(_number(value) for value in flat)}], {dtype!r}).reshape({array.shape})"
    text = base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 9)).decode()
    return None if len(text) > _LONGEST else f"table({text!r}, {dtype!r}, {array.shape})"


def _shaped(code: str, array: Array) -> str:
    return f"{code}.astype({str(array.dtype)!r}).reshape({array.shape})"


def _number(value: Any) -> str:
    number = value.item()
    if isinstance(number, float) and not np.isfinite(number):
        return f'float("{number}")'
    return repr(number)
