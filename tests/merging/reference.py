"""Merge generated tensors with mergekit and with xweights, and write the differences.

    python tests/merging/reference.py docs/merge_reference.md

Needs mergekit and torch; `nox -s merge_reference` makes an environment that has them. Ends with status 1 where a
difference is larger than it may be.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from mergekit.merge_methods.api import merge_tensors

import xweights as xw
from xweights.rules.noise import generator

Array = np.ndarray[Any, Any]
TOLERANCE = 1e-6
SEED, NAME = 7, "w"
SHAPES = ((300, 257), (64, 32, 3, 3), (1031,))
WEIGHTS, DENSITIES = [0.7, 0.2, 0.4], [0.6, 0.35, 0.9]

PAGE = """# Compared with mergekit

Written by `nox -s merge_reference`.
mergekit {mergekit} (torch {torch}) and xweights merge the same generated float32 tensors, by each of mergekit's \
methods that xweights has too.
Their shapes are {shapes}: a base, and three others whose task vectors are a tenth of it.
The difference is the largest of all entries, and relative to the largest entry, where it may be {tolerance:g}.

{table}

What was compared, and how:

- mergekit calls the average `linear` and the scale `lambda`, and takes `weight` and `density` per model.
- Methods that draw at random: mergekit draws with torch's generator, xweights with its own, which gives the same \
numbers in every framework.
  For the comparison, mergekit's `torch.bernoulli` was replaced by a function that compares its probabilities with the \
numbers that xweights draws.
  So what is compared is everything but the generator: probabilities, ranks, rescaling, election, sums.
- `rescale=true` in mergekit {mergekit} multiplies what is left of a task vector so that the sum of magnitudes stays, \
which is `rescale="l1"` here.
  By default xweights divides by the probability to stay, as the papers define it; `tests/merging/test_methods.py` \
checks that against the definition.
- `della` ranks the entries of a row of the stored matrix in mergekit, which is `per=0` for arrays of unknown axes.
  Arrays of more than two axes were left out for it: mergekit ranks along their second axis alone.
- `ema` and `lerp` are no methods of mergekit.

Where the two differ on purpose, which wasn't compared:

- Of equal magnitudes at the edge of a density, xweights drops the first in flat order; mergekit those that a sort \
which isn't stable puts there.
- In `slerp`, xweights goes along a line where one of the two is all zeros; mergekit takes the angle as a right one.
- In `model_stock`, mergekit takes a product of norms below 1e-6 for 1e-6; for xweights only 0 is no direction.
- mergekit computes in the dtype of the tensors for most methods; xweights computes float16 and bfloat16 in float32 \
and rounds once.
"""


@dataclass(frozen=True)
class Case:
    """One method with its options, as both libraries name them."""

    ours: str
    options: dict[str, Any]
    theirs: str
    parameters: dict[str, Any]
    base: bool = True
    targets: int = 3
    axes: tuple[int, ...] = (1, 2, 4)


def cases() -> Iterator[Case]:
    """Yield every comparison."""
    weighted, dense = {"weights": WEIGHTS}, {"weights": WEIGHTS, "density": DENSITIES}
    weight, density = {"weight": WEIGHTS}, {"weight": WEIGHTS, "density": DENSITIES}
    yield Case("average", {}, "linear", {"weight": [1.0] * 3}, base=False)
    yield Case("average", weighted, "linear", weight, base=False)
    yield Case("average", {**weighted, "normalize": False}, "linear", {**weight, "normalize": False}, base=False)
    for t in (0.0, 0.3, 1.0):
        yield Case("slerp", {"t": t}, "slerp", {"t": t}, base=False, targets=2)
    yield Case("model_stock", {}, "model_stock", {})
    yield Case("task_arithmetic", {**weighted, "scale": 0.9}, "task_arithmetic", {**weight, "lambda": 0.9})
    yield Case("task_arithmetic", {**weighted, "normalize": True}, "task_arithmetic", {**weight, "normalize": True})
    yield Case("ties", dense, "ties", density)
    yield Case("ties", {**dense, "normalize": False}, "ties", {**density, "normalize": False})
    for name in ("breadcrumbs", "breadcrumbs_ties"):
        yield Case(name, {**dense, "gamma": 0.05}, name, {**density, "gamma": 0.05})
    for name in ("dare_linear", "dare_ties", "della_linear", "della"):
        della = name.startswith("della")
        axes, epsilon = ((1, 2), {"epsilon": 0.08}) if della else ((1, 2, 4), {})
        random = {**dense, **epsilon, "seed": SEED, **({"per": 0} if della else {})}
        for ours, theirs in (("l1", True), (None, False)):
            options, parameters = {**random, "rescale": ours}, {**density, **epsilon, "rescale": theirs}
            yield Case(name, options, name, parameters, axes=axes)


def tensors(shape: tuple[int, ...]) -> list[Array]:
    """Return a base and three arrays trained from it, as float32."""
    source = np.random.Generator(np.random.PCG64(len(shape)))
    base = 0.05 * source.normal(size=shape)
    trained = [base + 0.005 * source.normal(size=shape) for _ in range(3)]
    return [tensor.astype(np.float32) for tensor in (base, *trained)]


@contextmanager
def our_numbers() -> Iterator[None]:
    """Have torch.bernoulli compare with the numbers that xweights draws, target by target."""
    drawn = 0

    def bernoulli(chances: torch.Tensor) -> torch.Tensor:
        nonlocal drawn
        numbers = generator(SEED, NAME, drawn).random(tuple(chances.shape), dtype=np.float32)
        drawn += 1
        return (torch.from_numpy(numbers) < chances).to(chances.dtype)

    with mock.patch.object(torch, "bernoulli", bernoulli):
        yield


def compare(case: Case, shape: tuple[int, ...]) -> tuple[float, float]:
    """Return the largest difference, absolute and relative to the largest entry."""
    base, *others = tensors(shape)
    others = others[: case.targets]
    inputs = [torch.from_numpy(array) for array in ([base] if case.base else []) + others]
    with our_numbers():
        first = 0 if case.base or case.theirs == "slerp" else None
        expected = merge_tensors(inputs, case.theirs, parameters=case.parameters, base_index=first).numpy()
    origin = {NAME: base} if case.base else None
    got = xw.merge([{NAME: array} for array in others], case.ours, base=origin, **case.options)[NAME]
    difference = float(np.max(np.abs(got.astype(np.float64) - expected)))
    return difference, difference / float(np.max(np.abs(expected)))


def main(path: str) -> int:
    """Compare, write the page, and return 1 where something is too far apart."""
    lines = ["| method | options | tensors | difference | relative | within |", "|---|---|--:|--:|--:|---|"]
    wrong = 0
    for case in cases():
        shapes = [shape for shape in SHAPES if len(shape) in case.axes]
        results = [compare(case, shape) for shape in shapes]
        difference, relative = (max(column) for column in zip(*results, strict=True))
        within = relative <= TOLERANCE
        wrong += not within
        options = ", ".join(f"{name}={value!r}" for name, value in case.options.items()) or "-"
        verdict = "yes" if within else "**no**"
        lines.append(f"| {case.ours} | `{options}` | {len(shapes)} | {difference:.1e} | {relative:.1e} | {verdict} |")
    versions = {"mergekit": version("mergekit"), "torch": torch.__version__, "tolerance": TOLERANCE}
    shapes_text = ", ".join(" x ".join(map(str, shape)) for shape in SHAPES)
    Path(path).write_text(PAGE.format(table="\n".join(lines), shapes=shapes_text, **versions), encoding="utf-8")
    print("\n".join(lines))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
