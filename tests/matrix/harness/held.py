"""Rules held by the training axis of the matrix, one layer for each, and the distance of each from being true.

A new rule is one new entry in this list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import xweights as xw

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
Broken = Callable[[Arrays, Arrays, int], float]

SIZE = 8
MASK = np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 3 != 0
ENTRIES = np.zeros((SIZE, SIZE), np.bool_)
ENTRIES[1, 2:5], ENTRIES[6, 0] = True, True
ROW = 3
FRACTION, BEGIN, END, EVERY = 0.6, 2, 20, 3
NONE = np.zeros((SIZE, SIZE), np.bool_)


@dataclass(frozen=True)
class Held:
    """A rule and the layers whose kernels it is held on.

    ``attach(target, optimizer)`` attaches it as a user would. ``broken(now, first, update)`` measures how far the
    current kernels are from satisfying it, 0.0 if they do: ``first`` are those right after it was attached, ``update``
    counts the updates since. ``free`` are the entries that must continue to move; ``rests``: the rule may stop some of
    them, at a bound or at zero.
    """

    layers: tuple[str, ...]
    attach: Callable[[Any, Any], Any]
    broken: Broken
    tolerance: float = 0.0
    free: Array | None = None  # a mask of entries; None: all
    needs_axes: bool = False
    rests: bool = False

    def moving(self, now: Arrays, before: Arrays) -> Array:
        """Return for each free entry whether it is another number now."""
        moved = [now[layer] != before[layer] for layer in self.layers]
        return np.concatenate([changes.ravel() if self.free is None else changes[self.free] for changes in moved])


def _hold(rule: Any, layer: str) -> Callable[[Any, Any], Any]:
    return lambda target, optimizer: xw.hold(target, rule, where=f"{layer}/kernel", optimizer=optimizer)


def _wide(w: Array) -> Array:
    return w.astype(np.float64)


def _largest(excess: Array) -> float:
    """Return the largest entry, and at least 0; NaN breaks any rule."""
    return float("inf") if np.isnan(excess).any() else float(np.max(excess, initial=0.0))


def _different(a: Array, b: Array) -> float:
    """Compare bit by bit, the sign of a zero included."""
    gap = _largest(np.abs(_wide(a) - _wide(b)))
    return gap if gap or a.tobytes() == b.tobytes() else float("inf")


def _norms(w: Array, axis: int) -> Array:
    return np.sqrt((_wide(w) ** 2).sum(axis))


def _out_of_pattern(now: Arrays, first: Arrays, update: int) -> float:
    """Return the third largest of every four inputs, which has to be zero."""
    groups = np.sort(np.abs(now["pattern"]).reshape(SIZE // 4, 4, SIZE), axis=1)
    return _largest(groups[:, 1])


def pruned_after(update: int) -> int:
    """Return how many entries have to be zero by the schedule, with the formula of Zhu & Gupta."""
    due = [step for step in range(BEGIN, END + 1) if (step - BEGIN) % EVERY == 0 or step == END]
    last = max((step for step in due if step <= update), default=None)
    share = 0.0 if last is None else 1.0 - (1.0 - (last - BEGIN) / (END - BEGIN)) ** 3
    return int(np.floor(FRACTION * share * SIZE * SIZE + 0.5))


def _off_schedule(now: Arrays, first: Arrays, update: int) -> float:
    """Return the largest entry that should be zero by now, or the number of those that are zero too early."""
    sizes, wanted = np.sort(np.abs(now["prune"]).ravel()), pruned_after(update)
    return max(_largest(sizes[:wanted]), float(max(0, int((sizes == 0).sum()) - wanted)))


def _prune(target: Any, optimizer: Any) -> Any:
    schedule = xw.Cubic(BEGIN, END, every=EVERY)
    return xw.prune(target, fraction=FRACTION, where="prune/kernel", schedule=schedule, optimizer=optimizer)


def _freeze(layer: str, entries: Any = None) -> Callable[[Any, Any], Any]:
    return lambda target, optimizer: xw.freeze(target, where=f"{layer}/kernel", entries=entries, optimizer=optimizer)


def never_positive(w: Any) -> Any:
    """Flip the sign of positive entries: a user's function, in any framework."""
    return -abs(w)


RULES = {
    "Clip(-0.1, 0.1)": Held(
        *(("clip",), _hold(xw.Clip(-0.1, 0.1), "clip")),
        lambda now, first, update: _largest(np.abs(now["clip"]) - np.float32(0.1)),
        rests=True,
    ),
    "NonNegative()": Held(
        *(("non_negative",), _hold(xw.NonNegative(), "non_negative")),
        lambda now, first, update: _largest(-now["non_negative"]),
        rests=True,
    ),
    "Mask(keep)": Held(
        *(("mask",), _hold(xw.Mask(MASK), "mask")),
        lambda now, first, update: _different(now["mask"][~MASK], np.zeros_like(now["mask"][~MASK])),
        free=MASK,
    ),
    "Keep(entries)": Held(
        *(("keep",), _hold(xw.Keep(ENTRIES), "keep")),
        lambda now, first, update: _different(now["keep"][ENTRIES], first["keep"][ENTRIES]),
        free=~ENTRIES,
    ),
    "Pattern(2, 4, 'in')": Held(
        *(("pattern",), _hold(xw.Pattern(2, 4, "in"), "pattern"), _out_of_pattern), needs_axes=True, rests=True
    ),
    "Symmetric()": Held(
        *(("symmetric",), _hold(xw.Symmetric(), "symmetric")),
        lambda now, first, update: _different(now["symmetric"], now["symmetric"].T.copy()),
        needs_axes=True,
    ),
    "a function": Held(
        *(("function",), _hold(never_positive, "function")),
        lambda now, first, update: _largest(now["function"]),
        rests=True,
    ),
    "Tied()": Held(
        ("tied", "tied_too"),
        lambda target, optimizer: xw.hold(
            target, xw.Tied(), where=["tied/kernel", "tied_too/kernel"], optimizer=optimizer
        ),
        lambda now, first, update: _different(now["tied"], now["tied_too"]),
    ),
    "prune(fraction=, schedule=Cubic)": Held(("prune",), _prune, _off_schedule),
    "freeze": Held(
        *(("whole",), _freeze("whole")),
        lambda now, first, update: _different(now["whole"], first["whole"]),
        free=NONE,
    ),
    "freeze(entries=)": Held(
        *(("row",), _freeze("row", (ROW,))),
        lambda now, first, update: _different(now["row"][ROW], first["row"][ROW]),
        free=np.broadcast_to(np.arange(SIZE)[:, None] != ROW, (SIZE, SIZE)),
    ),
    "MaxNorm(0.4, 'out')": Held(
        *(("max_norm",), _hold(xw.MaxNorm(0.4, "out"), "max_norm")),
        lambda now, first, update: _largest(_norms(now["max_norm"], 0) / 0.4 - 1),
        tolerance=1e-6,
        needs_axes=True,
    ),
    "UnitNorm('in')": Held(
        *(("unit_norm",), _hold(xw.UnitNorm("in"), "unit_norm")),
        lambda now, first, update: _largest(np.abs(_norms(now["unit_norm"], 1) - 1)),
        tolerance=1e-6,
        needs_axes=True,
    ),
    "SumToOne('out')": Held(
        *(("sum_to_one",), _hold(xw.SumToOne("out"), "sum_to_one")),
        # A sum is as precise as its terms, which may be much larger than it where both signs occur.
        lambda now, first, update: _largest(
            np.abs(_wide(now["sum_to_one"]).sum(0) - 1) / np.maximum(np.abs(_wide(now["sum_to_one"])).sum(0), 1)
        ),
        tolerance=1e-6,
        needs_axes=True,
    ),
    "SpectralNorm(0.7)": Held(
        *(("spectral",), _hold(xw.SpectralNorm(0.7), "spectral")),
        lambda now, first, update: _largest(np.linalg.svd(_wide(now["spectral"]), compute_uv=False) / 0.7 - 1),
        tolerance=1e-6,
    ),
}
FREE = "free"  # a layer that nothing is held on
LAYERS = (*(layer for rule in RULES.values() for layer in rule.layers), FREE)


def start() -> Arrays:
    """Return the kernels that every training begins with."""
    source = np.random.Generator(np.random.PCG64(11))
    kernels = {layer: source.normal(0.0, 0.3, (SIZE, SIZE)).astype(np.float32) for layer in LAYERS}
    kernels["sum_to_one"] = np.abs(kernels["sum_to_one"]) + np.float32(0.5)
    return kernels
