"""Random numbers with the same bytes in every framework.

They come from NumPy's Philox on the host, keyed by (seed, neutral name, step) and drawn in neutral order, so they
don't depend on the framework, on the other parameters, or on the order of calls. float16 and bfloat16 are drawn in
float32 and rounded. (Framework generators can't do this: a float32 Box-Muller differs between NumPy, torch and
TensorFlow in 18-25 % of all values, and a scaling that a compiler fuses in 52 %.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xweights.core.blocks import align_pieces, blocks
from xweights.core.casting import as_number, is_number, round_to
from xweights.core.dtypes import Array
from xweights.core.names import Names, renamer
from xweights.core.parameter import Parameter
from xweights.core.protocols import Ops
from xweights.errors import ArgumentError
from xweights.rules.base import Rule, need_floating


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
    return np.random.Generator(np.random.Philox(key=key))


def drawing_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in which numbers for ``dtype`` are drawn."""
    return np.dtype(np.float64) if dtype.name == "float64" else np.dtype(np.float32)


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
            if getattr(self, name) is not None:
                as_number(getattr(self, name), parameter.dtype, what=name)

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        return (self.delta(parameter),)

    def delta(self, parameter: Parameter) -> Array:
        """Return the numbers for one parameter, in neutral order and its dtype."""
        whole = np.empty(parameter.shape, parameter.dtype)
        for block, part in self.parts(parameter):
            whole[block] = part
        return whole

    def parts(self, parameter: Parameter) -> Any:
        """Yield (slices, numbers) in neutral order, block by block."""
        dtype = drawing_dtype(parameter.dtype)
        source = generator(self.seed, renamer(self.names)(parameter.name), self.step)
        factor = None if self.std is None else as_number(self.std, dtype)
        for block in blocks(parameter.shape):
            shape = tuple(cut.stop - cut.start for cut in block)
            if factor is not None:
                part = source.standard_normal(shape, dtype=dtype.type)
                part = np.multiply(part, factor, out=part) if shape else np.asarray(part * factor)
            else:
                part = np.asarray(source.random(shape, dtype=dtype.type))
                # In float64, rounded once: some compilers would fuse a float32 product and sum.
                part = round_to(self.low + (self.high - self.low) * part.astype(np.float64), parameter.dtype)  # type: ignore[operator]
            yield block, np.asarray(part).astype(parameter.dtype, copy=False)

    def on_host(self, w: Array, parameter: Parameter) -> bool:
        for block, part in self.parts(parameter):
            piece = w[block] if block else w
            for weights, numbers in align_pieces(piece, part):
                np.add(weights, numbers, out=weights)
        return True

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        return ops.add(w, operands[0])
