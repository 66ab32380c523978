"""Tied: parameters that are kept equal although they are trained separately."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from learners import KERAS_BACKEND, Learner

import xweights as xw

KINDS = [
    pytest.param("torch"),
    pytest.param("keras", marks=pytest.mark.keras_backend),
    pytest.param("jit", marks=pytest.mark.keras_backend),
]


class Square(Learner):
    """Two kernels of one shape between others, trained in either framework."""

    def __init__(self, kind: str) -> None:
        x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
        y = np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32)
        if kind == "torch":
            torch = pytest.importorskip("torch")
            self.target = torch.nn.Sequential(*[torch.nn.Linear(4, 4, bias=False) for _ in range(3)])
            self.optimizer = torch.optim.SGD(self.target.parameters(), lr=0.05)
            xs, ys = torch.from_numpy(x), torch.from_numpy(y)

            def step() -> None:
                self.optimizer.zero_grad()
                ((self.target(xs) - ys) ** 2).mean().backward()
                self.optimizer.step()

            self.step = step
        else:
            keras = pytest.importorskip("keras")
            if kind == "jit" and KERAS_BACKEND == "torch":
                pytest.skip("Keras on torch doesn't compile unless told to")
            layers = [keras.layers.Dense(4, use_bias=False) for _ in range(3)]
            self.target = keras.Sequential([keras.Input((4,)), *layers])
            self.optimizer = keras.optimizers.SGD(0.05)
            self.target.compile(self.optimizer, "mse", jit_compile="auto" if KERAS_BACKEND == "jax" else kind == "jit")
            self.step = lambda: self.target.train_on_batch(x, y)
        values = np.random.default_rng(3)
        for p in xw.parameters(self.target):
            p.assign(values.normal(size=p.shape).astype("float32") * 0.5)

    @property
    def kernels(self) -> list[np.ndarray]:
        return list(xw.get_params(self.target).values())

    @property
    def names(self) -> list[str]:
        return [p.name for p in xw.parameters(self.target)]


def test_tied_arrays_become_their_mean() -> None:
    w = {"a": np.array([1.0, 2.0]), "b": np.array([3.0, -2.0]), "c": np.array([5.0, 0.0])}
    xw.apply(w, xw.Tied(), where=...)
    assert [array.tolist() for array in w.values()] == [[3.0, 0.0]] * 3


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_mean_of_equal_arrays_is_that_array_bit_for_bit(dtype: str, count: int) -> None:
    value = np.random.default_rng(0).normal(size=100).astype(dtype)
    w = {str(i): value.copy() for i in range(count)}
    xw.apply(w, xw.Tied(), where=...)
    assert all((array == value).all() for array in w.values())


@pytest.mark.parametrize("kind", KINDS)
def test_tied_kernels_are_equal_after_every_step_and_move_by_the_mean_of_both_updates(kind: str) -> None:
    square, plain = Square(kind), Square(kind)
    square.step()
    held = xw.hold(square.target, xw.Tied(), where=[square.names[0], square.names[2]])
    for _ in range(5):
        before = square.kernels
        xw.set_params(plain.target, dict(zip(plain.names, before, strict=True)))
        square.step()
        plain.step()
        first, middle, third = square.kernels
        assert (first == third).all()
        free = plain.kernels
        mean = free[0].astype(np.float64) + (free[2].astype(np.float64) - free[0]) / 2
        # Two traces of one step may round a gradient otherwise.
        np.testing.assert_allclose(first, mean, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(middle, free[1], rtol=1e-5, atol=1e-7)
        assert (first != before[0]).any()
    held.check()
    held.release()
    square.step()
    assert (square.kernels[0] != square.kernels[2]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_kernel_can_be_tied_to_a_transposed_one(kind: str) -> None:
    square = Square(kind)
    with xw.hold(square.target, xw.Tied(transposed=(square.names[1],)), where=square.names[:2]):
        for _ in range(3):
            square.step()
            assert (square.kernels[0] == square.kernels[1].T).all()


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("written", [[0], [2], [0, 2]])
def test_a_write_to_one_tied_kernel_is_averaged_with_the_others(kind: str, written: list[int]) -> None:
    square = Square(kind)
    xw.set_params(square.target, {name: np.ones((4, 4), np.float32) for name in square.names})
    xw.hold(square.target, xw.Tied(), where=[square.names[0], square.names[2]])
    xw.fill(square.target, 3.0, where=[square.names[i] for i in written])
    assert (square.kernels[0] == (3.0 if len(written) == 2 else 2.0)).all()
    assert (square.kernels[0] == square.kernels[2]).all()


@pytest.mark.parametrize("kind", KINDS[:2])
def test_other_rules_are_held_on_all_that_are_tied_or_refused(kind: str) -> None:
    square = Square(kind)
    both = [square.names[0], square.names[2]]
    xw.hold(square.target, xw.Tied(), where=both)
    with pytest.raises(xw.HoldError, match=r"is tied to(.|\n)*Fix: hold it on all"):
        xw.hold(square.target, xw.Clip(-0.1, 0.1), where=both[1])
    with xw.hold(square.target, xw.Clip(-0.1, 0.1), where=both) as clipped:
        for _ in range(3):
            square.step()
            assert np.abs(square.kernels[0]).max() <= np.float32(0.1)
            assert (square.kernels[0] == square.kernels[2]).all()
        clipped.check()
    with pytest.raises(xw.HoldError, match="is held already"):
        xw.hold(square.target, xw.Tied(), where=both)


def bad_ties() -> dict[str, tuple[Any, Any, type[Exception], str]]:
    w = {"a": np.ones((2, 3)), "b": np.ones((3, 2)), "c": np.ones((2, 3), np.float32), "d": np.ones(2, np.int64)}
    return {
        "one": (w, "a", xw.SelectionError, "two parameters or more"),
        "shapes": (w, ["a", "b"], xw.ShapeError, r"different shapes\n(.|\n)*\(2, 3\)\n.*\(3, 2\)(.|\n)*transposed="),
        "dtypes": (w, ["a", "c"], xw.DtypeError, "different dtypes"),
        "integers": ({"d": w["d"], "e": w["d"].copy()}, ..., xw.DtypeError, "floating-point"),
    }


@pytest.mark.parametrize("name", bad_ties())
def test_parameters_that_cannot_be_tied_are_refused_and_nothing_changes(name: str) -> None:
    target, where, error, text = bad_ties()[name]
    before = {key: value.copy() for key, value in target.items()}
    for call in (xw.hold, xw.apply):
        with pytest.raises(error, match=text):
            call(target, xw.Tied(), where=where)
    assert all((target[key] == before[key]).all() for key in target)


def test_transposed_must_name_selected_parameters() -> None:
    w = {"a": np.ones((2, 3)), "b": np.ones((2, 3))}
    with pytest.raises(xw.SelectionError, match="isn't selected: 'z'"):
        xw.hold(w, xw.Tied(transposed=("z",)), where=...)
