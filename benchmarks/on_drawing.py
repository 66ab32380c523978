"""Time random numbers against the bare draws, on one thread and on two.

A seed's bytes are those of NumPy's Philox, so the peer draws with it, into one scratch, and adds in the stored order:
that the numbers are in neutral order, the same for every framework, is part of our time. The row of two threads has our
own call on one thread as its peer; it says nothing on a machine whose processors are busy.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from shapes import shapes, torch_model
from timing import Memory, Timing, compare

import xweights as xw

PART = 1 << 16


def rows(quick: bool) -> Iterator[Timing | Memory]:
    """Yield the rows."""
    for shape in shapes(quick):
        model = torch_model(shape)
        generator = np.random.Generator(np.random.Philox(1))
        scratch = np.empty(min(PART, shape.side**2), np.float32)

        def by_hand(model: Any = model, generator: Any = generator, scratch: Any = scratch) -> None:
            for p in model.parameters():
                flat = p.detach().numpy().reshape(-1)
                for start in range(0, flat.size, scratch.size):
                    part = flat[start : start + scratch.size]
                    numbers = generator.standard_normal(dtype=np.float32, out=scratch[: part.size])
                    np.add(part, np.multiply(numbers, np.float32(1e-9), out=numbers), out=part)

        ours = lambda model=model: xw.noise(model, 1e-9, seed=0)  # noqa: E731
        peers = {"Philox into a scratch, added": by_hand}
        yield compare("noise, the peer's generator", "torch", shape.name, ours, peers, 1.15, most=10, seconds=5)
        two = lambda ours=ours: _on_two_threads(ours)  # noqa: E731
        yield compare("noise, two threads", "torch", shape.name, two, {"one thread": ours}, None, most=10, seconds=5)
        init = lambda model=model: xw.init(model, "normal", seed=0, std=0.05)  # noqa: E731
        yield compare("init normal", "torch", shape.name, init, peers, None, most=10, seconds=5)


def _on_two_threads(call: Any) -> None:
    with _threads("2"):
        call()


@contextmanager
def _threads(count: str) -> Iterator[None]:
    before = os.environ.get("OMP_NUM_THREADS", "1")
    os.environ["OMP_NUM_THREADS"] = count
    try:
        yield
    finally:
        os.environ["OMP_NUM_THREADS"] = before
