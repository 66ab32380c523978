"""Proof of a skeleton: it is built, gets the original's weights and computes the same, twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from xweights.core.dtypes import Array
from xweights.errors import PortError
from xweights.porting.skeletons.graph import Reading
from xweights.porting.skeletons.orders import inverse
from xweights.porting.skeletons.samples import map_arrays, resize
from xweights.porting.skeletons.weights import Written

# Of the largest output. Deep networks of 32 bits differ by 1e-6 to 3e-5 between two frameworks; a setting that is wrong
# changes outputs by 1e-3 and more.
TOLERANCE = 3e-4
_OTHER_BATCH = 3
_FIX = "Fix: take the code with verify=False and correct it; xw.verify names the layer where two models part"


class Twins(Protocol):
    """How a framework's twins are run and filled."""

    def run_twin(self, twin: Any, inputs: Any) -> list[Array]:
        """Call a twin in inference mode and return its outputs; the first call builds it."""

    def fill_twin(self, twin: Any, arrays: Mapping[str, Array]) -> None:
        """Set a twin's parameters by their attributes, such as "head.kernel"."""


def prove(reading: Reading, written: Written, twins: Twins, sample: Any) -> None:
    """Raise PortError with the reason unless the code runs and computes what the original does.

    The weights are written to the places that the writer noted: the search of ``port`` isn't needed. Fresh weights hide
    much (zeros, ones, a scale of 1e-6), so that it is done again with other weights, and another number of examples;
    the original isn't changed.
    """
    space: dict[str, Any] = {}
    arrays = {name: read() for name, read in reading.arrays.items()}
    changed = _other_weights(arrays)
    twin = None
    for weights, examples in ((None, sample), (changed, resize(sample, _OTHER_BATCH))):
        inputs = _placed(examples, written)
        try:
            if twin is None:
                # The code is the writer's own; names and numbers of the model are identifiers and literals in it.
                exec(compile(written.code, "<skeleton>", "exec"), space)  # noqa: S102 - code that was written here
                twin = space["Twin"]()
                twins.run_twin(twin, inputs)
            twins.fill_twin(twin, _converted(written, arrays if weights is None else weights))
            outputs = twins.run_twin(twin, inputs)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise PortError(f"the skeleton doesn't run: {type(error).__name__}: {reason}\n{_FIX}") from error
        expected = reading.run(weights, examples)
        if weights is None and not any(np.isfinite(output).any() for output in expected):
            raise PortError("the model's outputs have no finite number, which proves nothing\nFix: give another sample")
        _compare(expected, outputs, written)


def _converted(written: Written, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {
        place.path: place.convert(array) for name, array in arrays.items() for place in written.stored.get(name, ())
    }


def _other_weights(arrays: Mapping[str, Array]) -> dict[str, Array]:
    numbers = np.random.default_rng(0)
    others: dict[str, Array] = {}
    for name, array in arrays.items():
        if array.dtype.kind != "f":
            continue
        noise = np.asarray(numbers.standard_normal(array.shape), array.dtype)
        if array.size and name.rpartition(".")[2].endswith(("running_var", "moving_variance", "variance")):
            others[name] = np.multiply(array, 1 + 0.2 * np.tanh(noise))
        elif array.ndim < 2 or array.size == max(array.shape):
            others[name] = np.add(array, 0.1 * noise)
        else:
            others[name] = array + noise * max(0.3 * float(array.std()), 0.01)
    return {name: array.astype(arrays[name].dtype) for name, array in others.items()}


def _placed(sample: Any, written: Written) -> Any:
    """Return a sample as the twin takes it."""
    orders = iter(written.inputs)

    def place(array: Array) -> Array:
        order = next(orders, None)
        return np.ascontiguousarray(array.transpose(order)) if order is not None and array.ndim else array

    return map_arrays(sample, place)


def _compare(expected: list[Array], got: list[Array], written: Written) -> None:
    if len(expected) != len(got):
        raise PortError(f"the skeleton has {len(got)} outputs\nexpected: {len(expected)}\n{_FIX}")
    for place, (one, other, order) in enumerate(zip(expected, got, written.outputs, strict=True)):
        twin_output = other.transpose(inverse(order))
        if one.shape != twin_output.shape:
            raise PortError(
                f"output {place} of the skeleton has another shape\n"
                f"got:      {twin_output.shape}\nexpected: {one.shape}\n{_FIX}"
            )
        if not one.size:
            continue
        finite = np.isfinite(one)
        if not np.array_equal(finite, np.isfinite(twin_output)):
            raise PortError(f"output {place} of the skeleton is infinite where the original's isn't\n{_FIX}")
        if not np.array_equal(one[~finite], twin_output[~finite], equal_nan=True):
            raise PortError(f"output {place} of the skeleton is infinite, or no number, in another way\n{_FIX}")
        if not finite.any():
            continue
        first, second = one[finite].astype(np.float64), twin_output[finite].astype(np.float64)
        difference = float(np.abs(first - second).max()) / max(float(np.abs(first).max()), 1e-6)
        if difference > TOLERANCE:
            raise PortError(
                f"output {place} of the skeleton differs\ngot:      {difference:.2g} of the largest output\n"
                f"expected: at most {TOLERANCE:.2g}\n{_FIX}"
            )
