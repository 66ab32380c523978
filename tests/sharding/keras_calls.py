"""A small Keras model with the names of `worlds.Small`, and the calls that have to give the bytes of a plain twin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from sharded_calls import PRUNES, UP, VERBS

import xweights as xw

BATCH = np.arange(64, dtype=np.int32).reshape(16, 4) % 22
GOAL = np.linspace(-1, 1, 32, dtype=np.float32).reshape(16, 2)


class Small(keras.Model):
    """Lengths that four devices divide and others, a convolution, a norm, and statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = keras.layers.Embedding(22, 8)
        self.up = keras.layers.Dense(18)
        self.down = keras.layers.Dense(8)
        self.norm = keras.layers.LayerNormalization()
        self.stat = keras.layers.BatchNormalization()
        self.conv = keras.layers.Conv1D(6, 3)
        self.head = keras.layers.Dense(2)

    def call(self, x: Any, training: bool = False) -> Any:
        h = self.norm(self.down(keras.ops.relu(self.up(self.emb(x)))))
        h = self.conv(self.stat(h, training=training))
        return self.head(keras.ops.mean(h, axis=1))


def small(seed: int = 0) -> Small:
    """Return a built model with numbers that depend on nothing but the seed."""
    model = Small()
    model.emb.build((None, 4))
    for layer, length in ((model.up, 8), (model.down, 18), (model.norm, 8), (model.stat, 8), (model.conv, 8)):
        layer.build((None, 4, length))
    model.head.build((None, 6))
    model.built = True
    draws = np.random.default_rng(seed)
    for variable in model.weights:
        values = draws.normal(0.0, 0.5, tuple(variable.shape)).astype(np.float32)
        variable.assign(np.abs(values) if "variance" in variable.path else values)
    return model


def other(seed: int = 1) -> dict[str, Any]:
    """Return values for every parameter of :func:`small`."""
    shapes = {
        "emb/embeddings": (22, 8), "up/kernel": (8, 18), "up/bias": (18,), "down/kernel": (18, 8), "down/bias": (8,),
        "norm/gamma": (8,), "norm/beta": (8,), "stat/gamma": (8,), "stat/beta": (8,), "stat/moving_mean": (8,),
        "stat/moving_variance": (8,), "conv/kernel": (3, 8, 6), "conv/bias": (6,), "head/kernel": (6, 2),
        "head/bias": (2,),
    }  # fmt: skip
    draws = np.random.default_rng(seed)
    return {name: draws.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def writes(folder: Path) -> dict[str, Callable[[Any], Any]]:
    """Return calls that change a model; what they return is compared, too."""
    xw.save(other(), folder / "other.safetensors")
    xw.save(other(), folder / "other.npz")
    calls: dict[str, Callable[[Any], Any]] = {
        **VERBS,
        "a function": lambda m: xw.apply(m, lambda w: keras.ops.where(w > 0, w, w * 0.5), where="*/kernel"),
        **{f"prune {name}": _pruning(options) for name, options in PRUNES.items()},
        "set_params": lambda m: xw.set_params(m, other()),
        "set_params of safetensors": lambda m: xw.set_params(m, folder / "other.safetensors"),
        "set_params of npz": lambda m: xw.set_params(m, folder / "other.npz"),
        "set_params of some": lambda m: xw.set_params(m, {UP: other()[UP]}, strict=False),
        "assign": lambda m: xw.parameters(m, where=UP)[0].assign(other()[UP]),
        "a transaction that is undone": _undo,
        "a snapshot that is restored": _restore,
        "merge into": lambda m: xw.merge([m, other()], into=m, layout="neutral") and None,
        "bind": lambda m: xw.bind(m, xw.Clip(-0.2, 0.2), where="*")(),
        "noise, bound": _draw,
        "hold and a verb": _hold,
        "non_negative": lambda m: xw.non_negative(m, where="*/kernel"),
    }
    return calls


def reads(folder: Path) -> dict[str, Callable[[Any], Any]]:
    """Return calls that change nothing."""
    return {
        "get_params": lambda m: xw.get_params(m),
        "get_params without a copy": lambda m: {k: v.copy() for k, v in xw.get_params(m, copy=False).items()},
        "get_params in native order": lambda m: xw.get_params(m, layout="native"),
        "effective_params": lambda m: xw.effective_params(m),
        "stats": lambda m: str(xw.stats(m)),
        "summary": lambda m: str(xw.summary(m)),
        "checksum": lambda m: xw.checksum(m),
        "diff": lambda m: str(xw.diff(m, other())),
        "equal": lambda m: (xw.equal(m, m), xw.equal(m, other())),
        "numpy": lambda m: xw.parameters(m)[0].numpy(),
        "penalty": lambda m: np.asarray(keras.ops.convert_to_numpy(xw.penalty(m, l2=1.0))),
        "save to npz": lambda m: _saved(m, folder / "saved.npz"),
        "save to safetensors": lambda m: _saved(m, folder / "saved.safetensors"),
        "save to Keras' HDF5": lambda m: _saved(m, folder / "saved.weights.h5"),
        "set_params of an array by name": lambda m: _copied(m),
    }


def _pruning(options: dict[str, Any]) -> Callable[[Any], Any]:
    return lambda m: xw.prune(m, **options)


def _undo(model: Any) -> None:
    with xw.transaction(model) as changes:
        xw.noise(model, 0.3, seed=1, where=...)
        changes.rollback()


def _restore(model: Any) -> None:
    kept = xw.snapshot(model)
    xw.fill(model, 7.0, where=...)
    kept.restore()


def _draw(model: Any) -> None:
    bound = xw.bind(model, xw.Noise(0.1, seed=4), where="*/kernel")
    for step in range(2):
        bound.draw(step)
        bound()


def _hold(model: Any) -> None:
    with xw.hold(model, xw.Clip(-0.3, 0.3), where="*/kernel") as held, xw.freeze(model, where="up/bias"):
        xw.add(model, 5.0, where="*/kernel")
        held.check()


def _saved(model: Any, path: Path) -> Any:
    xw.save(model, path)
    return xw.get_params(xw.load(path))


def _copied(model: Any) -> Any:
    values = {name: np.zeros_like(value) for name, value in xw.get_params(model).items()}
    xw.set_params(values, xw.get_params(model))
    return values


def compare(calls: dict[str, Callable[[Any], Any]], model: Any, plain: Any, copies: Callable[[Any], list[Any]]) -> None:
    """Run each call on a distributed model and on its plain twin: equal results, and equal bytes of each copy.

    ``copies`` returns the arrays of a variable: one for each replica, or one.
    """
    wrong = []
    for name, call in calls.items():
        for target in (model, plain):
            for variable, value in zip(target.weights, start_values(), strict=True):
                variable.assign(value)
        try:
            got, expected = call(model), call(plain)
        except Exception as error:  # noqa: BLE001 - all are shown together
            wrong.append(f"{name}: {type(error).__name__}: {error}")
            continue
        if not _same(got, expected):
            wrong.append(f"{name}: returned {str(got)[:200]} instead of {str(expected)[:200]}")
        for variable, twin in zip(model.weights, plain.weights, strict=True):
            for position, copy in enumerate(copies(variable)):
                if copy.tobytes() != np.asarray(keras.ops.convert_to_numpy(twin._value)).tobytes():
                    wrong.append(f"{name}: {variable.path}, copy {position}")
    assert not wrong, "\n".join(wrong)


def start_values() -> list[Any]:
    """Return the values that every call begins with."""
    if not _start:
        _start.extend(np.array(keras.ops.convert_to_numpy(variable._value)) for variable in small().weights)
    return _start


_start: list[Any] = []


def _same(got: Any, expected: Any) -> bool:
    if hasattr(got, "items"):
        return list(got) == list(expected) and all(_same(got[name], expected[name]) for name in got)
    if isinstance(got, np.ndarray):
        return bool(got.dtype == expected.dtype and got.tobytes() == expected.tobytes())
    return bool(got == expected)


@contextmanager
def refused(kind: type[BaseException], *words: str) -> Iterator[None]:
    """Expect an error that has these words in it."""
    with pytest.raises(kind) as caught:
        yield
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} isn't in: {caught.value}"
