"""The conformance suite accepts a new framework in one folder and detects backends that break a promise."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xweights as xw
from xweights.core import registry
from xweights.testing import CHECKS, PromiseBrokenError, check_backend, ordinary, tricky

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DTYPES = ["float32", "float64", "float16"]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield the toy framework, with its backend registered for one test."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import xweights_toy
    import xweights_toy.framework

    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    registry.register("xweights_toy", xweights_toy.backend)
    yield xweights_toy.framework
    registry._by_type.clear()


def network(toy: Any, dtype: str = "float32") -> Any:
    return toy.Network(table=toy.lookup(5, 4, dtype), first=toy.linear(4, 4, dtype), last=toy.linear(4, 3, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("promise", CHECKS)
def test_a_new_framework_keeps_every_promise(promise: str, dtype: str, toy: Any) -> None:
    CHECKS[promise](lambda: network(toy, dtype))


def test_a_new_framework_takes_the_verbs_as_any_other_does(toy: Any) -> None:
    target = network(toy)
    xw.init(target, "glorot_uniform", seed=0)
    masks = xw.prune(target, fraction=0.5, where="*/kernel")
    xw.max_norm(target, 0.5, per="out", where="*/kernel")
    assert [p.name for p in xw.parameters(target)][:3] == ["table/embeddings", "first/kernel", "first/bias"]
    assert masks is not None
    assert not target.layers["last"].arrays[0].T[~masks["last/kernel"]].any()
    assert (np.linalg.norm(target.layers["last"].arrays[0], axis=1) < 0.5 + 1e-6).all()


def test_moving_weights_from_the_toy_to_params_transposes_by_axis_name(toy: Any) -> None:
    source, kernel = network(toy), ordinary((4, 3), np.dtype(np.float32))
    xw.set_params(source, {"last/kernel": kernel}, strict=False)
    np.testing.assert_array_equal(source.layers["last"].arrays[0], kernel.T)


def test_the_numpy_backend_keeps_every_promise() -> None:
    check_backend(lambda: {"dense": {"kernel": np.ones((4, 3), np.float32), "bias": np.zeros(3, np.float32)}})


def make_torch() -> Any:
    import torch

    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 3))


def make_tensorflow() -> Any:
    import tensorflow as tf

    module = tf.Module()
    module.dense = tf.Module()
    module.dense.kernel, module.dense.bias = tf.Variable(tf.zeros((4, 3))), tf.Variable(tf.zeros(3))
    return module


def make_keras() -> Any:
    import keras

    model = keras.Sequential([keras.layers.Dense(4), keras.layers.LayerNormalization(), keras.layers.Dense(3)])
    model.build((None, 4))
    return model


MAKERS = [
    pytest.param("torch", make_torch, id="torch"),
    pytest.param("tensorflow", make_tensorflow, id="tensorflow"),
    pytest.param("keras", make_keras, id="keras", marks=pytest.mark.keras_backend),
]


@pytest.mark.parametrize("promise", CHECKS)
@pytest.mark.parametrize(("framework", "make"), MAKERS)
def test_our_own_backends_keep_every_promise(framework: str, make: Any, promise: str) -> None:
    below = os.environ.get("KERAS_BACKEND", "tensorflow") if framework == "keras" else framework
    for module in (framework, below):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} not installed")
    CHECKS[promise](make)


# The ways in which a storage can be wrong: each replaces one method of the toy's.


def read_transposed(self: Any, handle: Any) -> Any:
    array = handle.array
    return array.T if array.ndim == 2 and array.shape[0] == array.shape[1] else array


def write_aliasing(self: Any, handle: Any, value: Any) -> None:
    handle.layer.arrays[handle.position] = value


def write_without_the_sign_of_zero(self: Any, handle: Any, value: Any) -> None:
    handle.array[...] = value + np.zeros((), value.dtype)


def write_nothing(self: Any, handle: Any, value: Any) -> None:
    pass


def restore_only_what_is_finite(self: Any, handle: Any, kept: Any) -> None:
    handle.array[...] = np.nan_to_num(kept)


def identity_that_is_never_the_same(self: Any, handle: Any) -> Any:
    return object()


def backup_by_reference(self: Any, handle: Any) -> Any:
    return handle.array


WRONG = (
    read_transposed,
    write_aliasing,
    write_without_the_sign_of_zero,
    write_nothing,
    restore_only_what_is_finite,
    backup_by_reference,
    identity_that_is_never_the_same,
)


@pytest.mark.parametrize("how", WRONG, ids=lambda how: how.__name__)
def test_a_faulty_backend_fails_with_the_promise_it_broke(how: Any, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import xweights_toy.storage

    monkeypatch.setattr(xweights_toy.storage.SlotStorage, how.__name__.partition("_")[0], how)
    with pytest.raises(PromiseBrokenError, match="doesn't keep its promises"):
        check_backend(lambda: network(toy))


def test_an_object_that_is_no_backend_cannot_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    with pytest.raises(xw.BackendBrokenError, match=r"missing: .*attach, compiled, .*\nFix: "):
        registry.register("nothing", object())  # type: ignore[arg-type]


def test_names_that_depend_on_the_instance_are_found(toy: Any) -> None:
    made = []

    def changing() -> Any:
        made.append(toy.Network(**{f"layer{len(made)}": toy.linear(4, 3)}))
        return made[-1]

    with pytest.raises(PromiseBrokenError, match="names_are_the_same_for_two_instances"):
        check_backend(changing)


def test_tricky_numbers_include_values_that_are_easily_lost() -> None:
    found = tricky((64,), np.dtype(np.float32))
    assert np.isnan(found).any()
    assert np.isinf(found).any()
    assert (np.signbit(found) & (found == 0)).any()
    assert ((np.abs(found) > 0) & (np.abs(found) < np.finfo(np.float32).tiny)).any()
