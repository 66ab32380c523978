"""Compare the outputs of two models."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.errors import ArgumentError, got_expected
from xweights.porting.matching.similarity import distance, input_tolerance

# {target's output: source's output}, or a function of the target's output.
OutputMap = Mapping[Any, Any] | Callable[[Any], Any] | None
# Rounding adds up over the layers of a whole model.
DEPTH = 16


def compare_outputs(
    expected: Mapping[str, Array], got: Mapping[str, Array], outputs: OutputMap, *, target_first: bool
) -> dict[str, tuple[float, float]]:
    """Return (error, limit of rounding) for each output of the target; raise ArgumentError if none corresponds."""
    errors = {}
    for name, array, wanted in _pair_outputs(expected, got, outputs, target_first):
        limit = input_tolerance(array, wanted) * DEPTH
        errors[name] = (min(distance(layout, wanted) for layout in _iter_layouts(array, wanted, target_first)), limit)
    return errors


def list_uncompared(expected: Mapping[str, Array], got: Mapping[str, Array], outputs: OutputMap) -> str | None:
    """Return what one model puts out besides, if the two put out unequal numbers of arrays and none was chosen."""
    if outputs is not None or len(got) == len(expected):
        return None
    side, names = ("target", got) if len(got) > len(expected) else ("source", expected)
    return f"the {side} puts out more ({', '.join(names)}), of which {min(len(got), len(expected))} compared"


def _pair_outputs(
    expected: Mapping[str, Array], got: Mapping[str, Array], outputs: OutputMap, target_first: bool
) -> Iterator[tuple[str, Array, Array]]:
    if callable(outputs):
        returned = next(iter(got.values())) if len(got) == 1 else dict(got)
        got = _name_outputs(outputs(returned))
    elif outputs is not None:
        chosen = {_to_name(target): _to_name(source) for target, source in outputs.items()}
        unknown = [name for name in chosen if name not in got] + [
            name for name in chosen.values() if name not in expected
        ]
        if unknown:
            raise ArgumentError(
                f"outputs= names outputs that there aren't: {', '.join(map(repr, unknown))}\n"
                f"target's outputs: {', '.join(got)}\nsource's outputs: {', '.join(expected)}"
            )
        yield from ((target, got[target], expected[source]) for target, source in chosen.items())
        return
    if got.keys() == expected.keys():
        yield from ((name, got[name], expected[name]) for name in got)
    elif len(got) == len(expected):
        for (name, array), wanted in zip(got.items(), expected.values(), strict=True):
            yield name, array, wanted
    elif min(len(got), len(expected)):
        yield from _find_equal(expected, got, target_first)
    else:
        raise ArgumentError(
            "the two models put out unequal numbers of arrays\n"
            f"{got_expected(', '.join(got) or 'none', ', '.join(expected) or 'none')}\n"
            "Fix: outputs={target's output: source's output} for those that correspond"
        )


def _find_equal(
    expected: Mapping[str, Array], got: Mapping[str, Array], target_first: bool
) -> Iterator[tuple[str, Array, Array]]:
    """Yield each output of the model that has fewer with the nearest one of the other (a pooled state, a cache)."""

    def far(pair: tuple[str, str]) -> float:
        wanted = expected[pair[1]]
        return min(distance(layout, wanted) for layout in _iter_layouts(got[pair[0]], wanted, target_first))

    free = {"target": list(got), "source": list(expected)}
    for _ in range(min(len(got), len(expected))):
        target, source = min(itertools.product(free["target"], free["source"]), key=far)
        free["target"].remove(target)
        free["source"].remove(source)
        yield target, got[target], expected[source]


def _to_name(name: Any) -> str:
    return str(name)


def _name_outputs(value: Any) -> dict[str, Array]:
    if isinstance(value, Mapping):
        return {str(name): np.asarray(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return {str(name): np.asarray(part) for name, part in enumerate(value)}
    return {"output": np.asarray(value)}


def _iter_layouts(got: Array, want: Array, target_first: bool) -> Iterator[Array]:
    """Yield the output as it is, and in the layouts of the other framework."""
    yield got
    if got.ndim > 2:
        yield np.moveaxis(got, 1, -1) if target_first else np.moveaxis(got, -1, 1)
        yield got.swapaxes(0, 1)


def named_outputs(output: Any, host: Callable[[Any], Array | None], name: str = "") -> Iterator[tuple[str, Array]]:
    """Yield every tensor that a model returns as a host array with its place; ``host`` returns None for others."""
    if isinstance(output, Mapping):
        for key, part in output.items():
            yield from named_outputs(part, host, f"{name}/{key}".strip("/"))
    elif isinstance(output, (tuple, list)):
        for position, part in enumerate(output):
            yield from named_outputs(part, host, f"{name}/{position}".strip("/"))
    else:
        array = host(output)
        if array is not None:
            yield name or "output", array
