"""Comparing what two models put out."""

from __future__ import annotations

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
    expected: Mapping[str, Array], made: Mapping[str, Array], outputs: OutputMap, *, target_first: bool
) -> dict[str, tuple[float, float]]:
    """Return the error of each output of the target, and what is rounding; raise ArgumentError if none corresponds."""
    found = {}
    for name, got, want in _paired(expected, made, outputs):
        limit = input_tolerance(got, want) * DEPTH
        found[name] = (min(distance(one, want) for one in _layouts(got, want, target_first)), limit)
    return found


def _paired(
    expected: Mapping[str, Array], made: Mapping[str, Array], outputs: OutputMap
) -> Iterator[tuple[str, Array, Array]]:
    if callable(outputs):
        given = next(iter(made.values())) if len(made) == 1 else dict(made)
        made = _named(outputs(given))
    elif outputs is not None:
        chosen = {_key(target): _key(source) for target, source in outputs.items()}
        wrong = [one for one in chosen if one not in made] + [one for one in chosen.values() if one not in expected]
        if wrong:
            raise ArgumentError(
                f"outputs= names outputs that there aren't: {', '.join(map(repr, wrong))}\n"
                f"target's outputs: {', '.join(made)}\nsource's outputs: {', '.join(expected)}"
            )
        yield from ((target, made[target], expected[source]) for target, source in chosen.items())
        return
    if made.keys() == expected.keys():
        yield from ((name, made[name], expected[name]) for name in made)
    elif len(made) == len(expected):
        for (name, got), want in zip(made.items(), expected.values(), strict=True):
            yield name, got, want
    else:
        raise ArgumentError(
            "the two models put out unequal numbers of arrays\n"
            f"{got_expected(', '.join(made) or 'none', ', '.join(expected) or 'none')}\n"
            "Fix: outputs={target's output: source's output} for those that correspond"
        )


def _key(name: Any) -> str:
    return str(name)


def _named(value: Any) -> dict[str, Array]:
    if isinstance(value, Mapping):
        return {str(name): np.asarray(one) for name, one in value.items()}
    if isinstance(value, (tuple, list)):
        return {str(name): np.asarray(one) for name, one in enumerate(value)}
    return {"output": np.asarray(value)}


def _layouts(got: Array, want: Array, target_first: bool) -> Iterator[Array]:
    """Yield the output as it is, and as the other framework would have it."""
    yield got
    if got.ndim > 2:
        yield np.moveaxis(got, 1, -1) if target_first else np.moveaxis(got, -1, 1)
        yield got.swapaxes(0, 1)
