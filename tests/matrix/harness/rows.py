"""Rows of the matrix: each verb, in each of its forms, as a user writes it.

A body is written once, for a *hand* that has the verbs: the target's own (eager, traced or bound) or the referee's.
Each row states the promise of its verb.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

import xweights as xw
from harness.twins import KERNELS, NAMES, SHAPES

Body = Callable[[Any], Any]
WITH_OUT = ["dense/kernel", "conv/kernel"]
GATED = ["cell/kernel", "cell/recurrent_kernel"]
MATRICES = ["dense/kernel", "embedding/embeddings", *GATED]
FLAT_MATRICES = ["dense/kernel", "embedding/embeddings"]


@dataclass(frozen=True)
class Row:
    """One row of the table.

    ``family``: rows that are compiled together. ``rtol`` 0: bit-identical; else what the verb's docstring states (a
    half type's own eps where that is larger). ``needs``: "axes" if the verb needs their names. ``bits``: NaN payloads
    count too. ``slow``: modes in which compiling takes seconds, so that float32 stands for the other dtypes.
    """

    name: str
    body: Body
    family: str
    values: str = "special"
    rtol: float = 0.0
    needs: str = ""
    bits: bool = False
    draws: bool = False
    slow: tuple[str, ...] = ()

    @property
    def promise(self) -> str:
        return "close" if self.rtol else "exact"


def _masks(seed: int = 5) -> dict[str, np.ndarray[Any, Any]]:
    source = np.random.Generator(np.random.PCG64(seed))
    return {name: source.random(SHAPES[name]) < 0.6 for name in KERNELS}


def _eighths(names: list[str], seed: int = 6) -> dict[str, np.ndarray[Any, Any]]:
    """Draw numbers that every dtype can hold, so that they fit all of them without a cast."""
    source = np.random.Generator(np.random.PCG64(seed))
    return {name: source.integers(-16, 17, SHAPES[name]) / 8 for name in names}


MASKS = _masks()
DELTAS = _eighths(["dense/kernel", "conv/bias", "embedding/embeddings"])
SCORES = {name: np.abs(value) for name, value in _eighths(KERNELS, seed=7).items()}
BOOL_INDEX = MASKS["conv/kernel"]


def _square(w: Any) -> Any:
    return w * w


def _score(w: Any) -> Any:
    return -w


def _three_quarters(shape: tuple[int, ...], generator: Any, **options: Any) -> Any:
    return np.full(shape, 0.75)


def _all(*bodies: Body) -> Body:
    def body(w: Any) -> None:
        for step in bodies:
            step(w)

    return body


def _rows(family: str, *rows: tuple[str, Body], **common: Any) -> list[Row]:
    return [Row(name, body, family, **common) for name, body in rows]


ELEMENTWISE = _rows(
    "elementwise",
    ("fill(number)", lambda w: w.fill(0.3)),
    ("fill(arrays by name)", lambda w: w.fill(DELTAS)),
    ("scale(number)", lambda w: w.scale(0.9)),
    ("scale(array per output)", lambda w: w.scale(np.arange(1, 9) / 8, where=["dense/kernel", "dense/bias"])),
    ("add(number)", lambda w: w.add(0.1)),
    ("add(arrays by name)", lambda w: w.add(DELTAS)),
    ("clip(low, high)", lambda w: w.clip(-0.3, 0.7)),
    ("clip(low=0.0)", lambda w: w.clip(0.0)),
    ("clip(high=-0.0)", lambda w: w.clip(None, -0.0)),
    ("clip(array, array)", lambda w: w.clip(np.arange(-4, 4) / 4, np.arange(-3, 5) / 4, where=["dense/kernel"])),
    ("non_negative", lambda w: w.non_negative()),
    ("apply(rule)", lambda w: w.apply(xw.Clip(-0.5, 0.5), where=["conv/kernel", "cell/kernel"])),
)
FUNCTIONS = _rows(
    "elementwise", ("apply(function)", lambda w: w.apply(_square, where=["conv/kernel", "norm/gamma"]))
)  # fmt: skip
MOVING = _rows(
    "moving",
    ("mask(arrays by name)", lambda w: w.mask(MASKS)),
    ("mask(array, where=)", lambda w: w.mask(MASKS["dense/kernel"], where=["dense/kernel"])),
    ("set_entries(tuple)", lambda w: w.set_entries((1, slice(0, None, 2)), 0.3, where=FLAT_MATRICES)),
    ("set_entries(axis names)", lambda w: w.set_entries({"in": 0, "out": slice(1, 4)}, 0.5, where=WITH_OUT)),
    ("set_entries(bool array)", lambda w: w.set_entries(BOOL_INDEX, -0.0, where=["conv/kernel"])),
    ("set_entries(..., array)", lambda w: w.set_entries((slice(2, 4),), np.arange(8) / 8, where=["dense/kernel"])),
    values="bits",
    bits=True,
)
NORMS = _rows(
    "norms",
    ("clip_norm(scope='each')", lambda w: w.clip_norm(1.5)),
    ("clip_norm(scope='global')", lambda w: w.clip_norm(2.0, scope="global")),
    ("max_norm(per='out')", lambda w: w.max_norm(1.2, per="out", where=WITH_OUT)),
    ("max_norm(per=('in', 'mult'))", lambda w: w.max_norm(1.2, per=("in", "mult"), where=["depthwise/kernel"])),
    ("max_norm(per='unit'), packed gates", lambda w: w.max_norm(1.2, per="unit", where=GATED[:1])),
    ("max_norm(per='vocab')", lambda w: w.max_norm(0.9, per="vocab", where=["embedding/embeddings"])),
    ("unit_norm(per='out')", lambda w: w.unit_norm(per="out", where=WITH_OUT)),
    ("unit_norm(per='gate*unit')", lambda w: w.unit_norm(per="gate*unit", where=GATED)),
    values="plain",
    rtol=1e-6,
)
SPECTRAL = _rows(
    "spectral",
    ("spectral_norm, all kernels", lambda w: w.spectral_norm(1.0)),
    ("spectral_norm, matrices", lambda w: w.spectral_norm(1.0, where=FLAT_MATRICES)),
    values="plain",
    rtol=1e-5,
)
PRUNING = _rows(
    "pruning",
    ("prune(fraction=)", lambda w: w.prune(fraction=0.2)),
    ("prune(count=)", lambda w: w.prune(count=11)),
    ("prune(threshold=)", lambda w: w.prune(threshold=0.25)),
    ("prune(fraction=, scope='global')", lambda w: w.prune(fraction=0.4, scope="global")),
    ("prune(count=, scope='global')", lambda w: w.prune(count=77, scope="global")),
    ("prune(fraction=, per='out')", lambda w: w.prune(fraction=0.5, per="out", where=WITH_OUT)),
    ("prune(count=, per='unit'), packed gates", lambda w: w.prune(count=1, per="unit", where=GATED[:1])),
    ("prune(pattern=(2, 4, 'in'))", lambda w: w.prune(pattern=(2, 4, "in"), where=WITH_OUT)),
    ("prune(fraction=, block=)", lambda w: w.prune(fraction=0.5, block={"in": 2, "out": 2}, where=WITH_OUT)),
    ("prune(fraction=, score=function)", lambda w: w.prune(fraction=0.4, score=_score)),
    ("prune(fraction=, score=arrays by name)", lambda w: w.prune(fraction=0.4, score=SCORES)),
    values="plain",
    bits=True,
)
NOISE = _rows(
    "noise",
    ("noise(std=)", lambda w: [w.noise(0.1, seed=3, step=step) for step in (4, 5)]),
    ("noise(low=, high=)", lambda w: [w.noise(low=-0.1, high=0.3, seed=3, step=step) for step in (0, 7)]),
    draws=True,
)
SCALINGS = ("glorot", "xavier", "he", "kaiming", "lecun")
FULL_SCALING = {"scale": 0.5, "mode": "fan_out", "distribution": "truncated_normal"}
INITS = _rows(
    "init",
    *[(f"init('{name}')", lambda w, name=name: w.init(name, seed=2)) for name in ("zeros", "ones")],
    ("init('constant')", lambda w: w.init("constant", seed=2, value=0.3)),
    ("init('uniform')", lambda w: w.init("uniform", seed=2, low=-0.1, high=0.2)),
    ("init('normal')", lambda w: w.init("normal", seed=2, mean=0.1, std=0.3)),
    ("init('truncated_normal')", lambda w: w.init("truncated_normal", seed=2, mean=0.0, std=0.3)),
    ("init('identity')", lambda w: w.init("identity", seed=2, gain=0.3, where=MATRICES)),
    ("init(function)", lambda w: w.init(_three_quarters, seed=2)),
    *[
        (f"init('{name}_{law}')", lambda w, full=f"{name}_{law}": w.init(full, seed=2))
        for name in SCALINGS
        for law in ("uniform", "normal")
    ],
    ("init('variance_scaling')", lambda w: w.init("variance_scaling", seed=2, **FULL_SCALING)),
    ("init('orthogonal'), all kernels", lambda w: w.init("orthogonal", seed=2, gain=0.7)),
    ("init('orthogonal'), matrices", lambda w: w.init("orthogonal", seed=2, gain=0.7, where=MATRICES)),
)
CHAINS = _rows(
    "chain",
    ("several rules: scale, scale, add, clip, mask", _all(
        lambda w: w.scale(0.9), lambda w: w.scale(1.1), lambda w: w.add(0.1), lambda w: w.clip(-0.7, 0.7),
        lambda w: w.mask(MASKS),
    )),
    ("several rules: add, scale, function, set_entries", _all(
        lambda w: w.add(DELTAS), lambda w: w.scale(0.7), partial(lambda w: w.apply(_square, where=NAMES[:6])),
        lambda w: w.set_entries((0,), 0.3, where=["dense/kernel"]), lambda w: w.add(-0.1),
    )),
)  # fmt: skip
NORM_CHAINS = _rows(
    "chain",
    ("several rules: max_norm, add, scale, clip_norm", _all(
        lambda w: w.max_norm(1.2, per="out", where=WITH_OUT), lambda w: w.add(0.1), lambda w: w.scale(0.9),
        lambda w: w.clip_norm(1.5),
    )),
    values="plain",
    rtol=1e-6,
)  # fmt: skip


def _mark_axes(row: Row) -> Row:
    """Mark the rows that must be refused for layers whose axes are unknown."""
    named = (
        "axis names",
        "per=",
        "pattern=",
        "block=",
        "max_norm",
        "_uniform'",
        "_normal')",
        "variance_scaling",
        "all",
    )
    free = ("'truncated_normal'",)
    needed = any(part in row.name for part in named) and not any(part in row.name for part in free)
    return replace(row, needs="axes") if needed else row


# Compiled by torch.compile in every dtype. It takes seconds for each of the others, which are variants of these.
QUICK = (
    "fill(number)", "scale(number)", "add(number)", "clip(low, high)", "clip(low=0.0)", "non_negative",
    "apply(function)", "mask(arrays by name)", "set_entries(tuple)", "set_entries(bool array)",
    "clip_norm(scope='each')", "clip_norm(scope='global')", "max_norm(per='out')", "unit_norm(per='out')",
    "spectral_norm, matrices", "prune(fraction=)", "prune(threshold=)", "prune(fraction=, scope='global')",
    "prune(pattern=(2, 4, 'in'))", "noise(std=)", "init('glorot_uniform')", "init('constant')",
)  # fmt: skip


# Compiled by torch.compile and XLA in CI: of each family the form that reaches the most of its operations, and for
# those that know the axes (a tf.Module doesn't) a second one.
FIRST = (
    "clip(low, high)", "apply(function)", "mask(arrays by name)", "set_entries(tuple)", "clip_norm(scope='global')",
    "max_norm(per='out')", "spectral_norm, matrices", "prune(fraction=)", "prune(pattern=(2, 4, 'in'))",
    "noise(std=)", "init('constant')", "init('glorot_uniform')", *(row.name for row in (*CHAINS, *NORM_CHAINS)),
)  # fmt: skip


def _mark_slow(row: Row) -> Row:
    if row.name in QUICK or row.family == "chain":
        return row
    return replace(row, slow=("compiled", "jit") if row.family in ("pruning", "spectral") else ("compiled",))


ALL = [*ELEMENTWISE, *FUNCTIONS, *MOVING, *NORMS, *SPECTRAL, *PRUNING, *NOISE, *INITS, *CHAINS, *NORM_CHAINS]
ROWS = {row.name: _mark_slow(_mark_axes(row)) for row in ALL}
assert {*QUICK, *FIRST} <= set(ROWS)
assert {row.family for row in ALL} == {ROWS[name].family for name in FIRST}
