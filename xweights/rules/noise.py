"""Random numbers with the same bytes in every framework.

They come from NumPy's Philox on the host, keyed by (seed, neutral name, step) and drawn in neutral order, so they
don't depend on the framework, on the other parameters, or on the order of calls. float16 and bfloat16 are drawn in
float32 and rounded. (Framework generators can't do this: a float32 Box-Muller differs between NumPy, torch and
TensorFlow in 18-25 % of all values, and a scaling that a compiler fuses in 52 %.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from xweights.core.blocks import BLOCK, blocks
from xweights.core.casting import as_number, is_number, round_to
from xweights.core.dtypes import Array
from xweights.core.names import Names, renamer
from xweights.core.parameter import Parameter
from xweights.core.protocols import Ops
from xweights.errors import ArgumentError
from xweights.rules.base import Rule, need_floating

# Entries of a block that is added across the order in which the weights are stored, so that a row of them meets many
# rows of numbers at once; entries by which rows of numbers then lie apart; and the shortest axis to walk along. Adding
# to 2048 x 2048 transposed entries took 2.5 ns for each, as against 5 without the distance, and 13 for drawing one.
ACROSS = BLOCK << 2
_APART = 16
_SHORTEST = 16

_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)


def generator(seed: int, name: str, step: int = 0) -> np.random.Generator:
    """Return the generator for one parameter.

    Example:
        >>> from xweights.rules.noise import generator
        >>> generator(0, "dense/kernel").bit_generator.__class__.__name__
        'Philox'
    """
    import hashlib  # loads OpenSSL, which takes a tenth of the time of importing NumPy

    digest = hashlib.blake2b(f"{seed}\0{step}\0{name}".encode(), digest_size=16).digest()
    key = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    # Philox(key=key) asks the system for random bits that it doesn't use: 44 us, and this way 11.
    seed_sequence, start = _fresh_state()
    bits = np.random.Philox(seed_sequence)
    state: Any = {**start, "state": {"counter": np.zeros(4, np.uint64), "key": key}}
    bits.state = state
    return np.random.Generator(bits)


@lru_cache(maxsize=1)
def _fresh_state() -> tuple[np.random.SeedSequence, dict[str, Any]]:
    seed_sequence = np.random.SeedSequence(0)
    return seed_sequence, dict(np.random.Philox(seed_sequence).state)


def drawing_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in which numbers for ``dtype`` are drawn."""
    return _DOUBLE if dtype.char == "d" else _SINGLE


def _factor(std: Any, dtype: np.dtype[Any]) -> Array:
    """Return a standard deviation rounded to ``dtype``."""
    # Rounding takes as long as drawing a thousand numbers.
    return as_number(std, dtype) if isinstance(std, np.ndarray) or not std else _rounded(std, dtype)


_rounded = lru_cache(maxsize=64)(as_number)


def _across(w: Array) -> tuple[int, ...]:
    """Return the axes, that one last along which weights lie closest together, if it is no short one."""
    long = [axis for axis, length in enumerate(w.shape) if length >= _SHORTEST] or range(w.ndim)
    inner = min(long, key=lambda axis: abs(w.strides[axis]))
    return (*(axis for axis in range(w.ndim) if axis != inner), inner)


def check_seed(seed: Any) -> None:
    """Refuse a seed that isn't a whole number: a forgotten seed would make the numbers different each time."""
    if isinstance(seed, (bool, np.bool_)) or not isinstance(seed, (int, np.integer)):
        raise ArgumentError(f"seed= must be an int: the same seed gives the same numbers everywhere\ngot: {seed!r}")


@dataclass(frozen=True, eq=False, repr=False)
class Noise(Rule):
    """Add random numbers: normal with ``std``, or uniform between ``low`` and ``high``. Exact.

    The numbers are scaled on the host, in the parameter's dtype, so that the framework only adds.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"w": np.zeros(2)}; step = xw.bind(w, xw.Noise(0.1, seed=7), where="w")
        >>> step.draw(1); step(); bool(w["w"].all())
        True
    """

    std: float | None = None
    low: float | None = None
    high: float | None = None
    seed: int = 0
    step: int = 0
    names: Names | None = None
    random = True

    def __post_init__(self) -> None:
        check_seed(self.seed)
        renamer(self.names)
        if isinstance(self.step, (bool, np.bool_)) or not isinstance(self.step, (int, np.integer)):
            raise ArgumentError(f"step= must be an int\ngot: {self.step!r}")
        uniform = self.low is not None or self.high is not None
        if uniform == (self.std is not None):
            raise ArgumentError("noise takes either std= (normal) or low= and high= (uniform)")
        if uniform:
            if not (is_number(self.low) and is_number(self.high)):
                raise ArgumentError(
                    f"uniform noise needs both low= and high=\ngot: low={self.low!r}, high={self.high!r}"
                )
            assert self.low is not None and self.high is not None
            if not self.low < self.high or math.isinf(self.high - self.low):
                raise ArgumentError(
                    f"low must be smaller than high, both finite\ngot: low={self.low!r}, high={self.high!r}"
                )
        elif not is_number(self.std) or not 0 <= float(self.std or 0.0) < math.inf:
            raise ArgumentError(f"std= must be a number >= 0\ngot: {self.std!r}")

    def at(self, step: int) -> Noise:
        """Return the same noise for another step."""
        return replace(self, step=step)

    def check(self, parameter: Parameter) -> None:
        need_floating(parameter, "noise")
        for name in ("std", "low", "high"):
            number = getattr(self, name)
            if number is not None and not isinstance(number, np.ndarray):
                _rounded(number, parameter.dtype, what=name)
            elif number is not None:
                as_number(number, parameter.dtype, what=name)

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        return (self.delta(parameter),)

    def delta(self, parameter: Parameter) -> Array:
        """Return the numbers for one parameter, in neutral order and its dtype."""
        whole = np.empty(parameter.shape, parameter.dtype)
        for block, part in self.parts(parameter):
            whole[block] = part
        return whole

    def parts(
        self, parameter: Parameter, entries: int = BLOCK, *, padded: bool = False
    ) -> Iterator[tuple[tuple[slice, ...], Array]]:
        """Yield (slices, numbers) in neutral order, block by block; the numbers are valid until the next block.

        ``padded``: the rows of the numbers lie apart, so that reading across them doesn't meet the same lines of the
        cache again and again.
        """
        dtype = drawing_dtype(parameter.dtype)
        source = generator(self.seed, renamer(self.names)(parameter.name), self.step)
        factor = None if self.std is None else _factor(self.std, dtype)
        # New memory for each block would cost a tenth of the draw, and the first block is the largest.
        scratch = rows = np.empty(0, dtype)
        for block in blocks(parameter.shape, entries):
            shape = tuple(cut.stop - cut.start for cut in block)
            size = math.prod(shape)
            if not scratch.size:
                scratch = np.empty(size, dtype)
                if padded:
                    rows = np.empty((*shape[:-1], shape[-1] + _APART), parameter.dtype)[..., : shape[-1]]
            part = scratch[:size].reshape(shape)
            if factor is not None:
                source.standard_normal(dtype=dtype.type, out=part)
                out = rows[tuple(map(slice, shape))] if padded and dtype == parameter.dtype else part
                part = np.multiply(part, factor, out=out)
            else:
                source.random(dtype=dtype.type, out=part)
                # In float64, rounded once: some compilers would fuse a float32 product and sum.
                wide = np.asarray(self.low + (self.high - self.low) * part.astype(np.float64))  # type: ignore[operator]
                part = round_to(wide, parameter.dtype)
            yield block, part.astype(parameter.dtype, copy=False)

    def on_host(self, w: Array, parameter: Parameter) -> bool:
        across = w.ndim > 1 and not w.flags.c_contiguous
        order = _across(w) if across else tuple(range(w.ndim))
        with np.errstate(all="ignore"):  # of this thread: each has its own
            for block, part in self.parts(parameter, ACROSS if across else BLOCK, padded=across):
                cut: tuple[Any, ...] = (*block, ...)
                piece = w[cut].transpose(order)
                np.add(piece, part.transpose(order), out=piece)
        return True

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        return ops.add(w, operands[0])
