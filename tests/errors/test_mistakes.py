"""What people type first: each works, or raises an error with the line that does it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xweights as xw


def weights() -> dict[str, np.ndarray]:
    return {"conv/kernel": np.ones((3, 3, 2, 4), "f4"), "conv/bias": np.ones(4, "f4"), "out/kernel": np.ones((4, 2))}


def many() -> dict[str, np.ndarray]:
    return {f"blocks/{i}/{name}": np.ones(8, "f4") for i in range(50) for name in ("gamma", "beta", "bias")}


MISTAKES: dict[str, tuple[Callable[[Any], Any], type[Exception], tuple[str, ...]]] = {
    "a fraction by position": (lambda w: xw.prune(w, 0.8), xw.ArgumentError, ("prune(model, fraction=0.8)",)),
    "a count by position": (lambda w: xw.prune(w, 3), xw.ArgumentError, ("prune(model, count=3)",)),
    "torch's word for a fraction": (lambda w: xw.prune(w, amount=0.8), xw.ArgumentError, ("fraction=0.8",)),
    "torch's words for bounds": (lambda w: xw.clip(w, min=-1, max=1), xw.ArgumentError, ("low=-1, high=1)",)),
    "no seed": (lambda w: xw.noise(w, 0.1), xw.ArgumentError, ("needs seed=", "std=0.1, seed=0)")),
    "a generator as the seed": (lambda w: xw.noise(w, 0.1, rng=3), xw.ArgumentError, ("seed=3",)),
    "where= by position": (lambda w: xw.fill(w, 0.0, "*/bias"), xw.ArgumentError, ("where='*/bias')",)),
    "an axis": (lambda w: xw.max_norm(w, 1.0, axis="out"), xw.ArgumentError, ("max_norm(model, 1.0, per='out')",)),
    "a misspelt argument": (lambda w: xw.fill(w, 0.0, wher="*"), xw.ArgumentError, ("where='*'",)),
    "an argument twice": (lambda w: xw.fill(w, 0.0, value=1.0), xw.ArgumentError, ("value= twice",)),
    "a rule's argument": (lambda w: xw.Clip(min=3), xw.ArgumentError, ("xweights.Clip(low=3)",)),
    "a word for a flag": (lambda w: xw.set_params(w, {}, strict="no"), xw.ArgumentError, ("True or False", "'no'")),
    "a schedule as a word": (
        lambda w: xw.prune(w, fraction=0.5, schedule="cubic"), xw.ArgumentError, ("xweights.Cubic(",)
    ),
    "a schedule's class": (lambda w: xw.prune(w, fraction=0.5, schedule=xw.OneShot), xw.ArgumentError, ("OneShot()",)),
    "NaN": (lambda w: xw.fill(w, float("nan")), xw.NonfiniteError, ("allow_nonfinite=True",)),
    "an infinity in an array": (
        lambda w: xw.add(w, np.array([1, 2, 3, np.inf], "f4"), where="conv/bias"), xw.NonfiniteError, ("1 infinite",)
    ),
    "a NaN in a mapping": (lambda w: xw.fill(w, {"conv/bias": np.nan}), xw.NonfiniteError, ("conv/bias",)),
    "a layer's name": (lambda w: xw.fill(w, 0.0, where="conv"), xw.SelectionError, ("where='conv/*'",)),
    "a generator": (lambda w: xw.fill(w, 0.0, where=iter(["conv/*"])), xw.ArgumentError, ("where=list(...)",)),
    "another array": (lambda w: xw.fill(w, 0.0, where=np.ones(3)), xw.SelectionError, ("a part of the target",)),
    "names of a twin": (
        lambda w: xw.set_params(
            {"dense/kernel": np.ones((2, 3)), "head/kernel": np.ones((3, 4))},
            {"dense/0/kernel": np.ones((2, 3)), "dense/1/kernel": np.ones((3, 4))},
        ),
        xw.SelectionError,
        ("names={'dense/*': 'dense/0/*', 'head/*': 'dense/1/*'}",),
    ),
    "a merge of twins": (
        lambda w: xw.merge([{"a/kernel": np.ones(2), "b/kernel": np.ones(3)},
                            {"x/kernel": np.ones(2), "y/kernel": np.ones(3)}]),
        xw.SelectionError,
        ("names={'a/*': 'x/*', 'b/*': 'y/*'}",),
    ),
    "one array for 150 parameters": (
        lambda w: xw.set_params(many(), {"blocks/7/gamma": np.ones(3, "f4")}),
        xw.ShapeError,
        ("(8,)", "(3,)", "149 of 150 parameters"),
    ),
    "one misspelt array": (
        lambda w: xw.set_params(many(), {"blocks/7/gama": np.ones(8, "f4")}), xw.SelectionError, ("'blocks/7/gamma'",)
    ),
    "arrays of another shape": (
        lambda w: xw.set_params(many(), {name: np.ones(5) for name in many()}),
        xw.ShapeError,
        ("likewise 149 more", "'blocks/0/beta'"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_with_the_line_that_does_it(name: str) -> None:
    call, kind, words = MISTAKES[name]
    target = weights()
    with pytest.raises(kind) as caught:
        call(target)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert len(text.splitlines()) <= 40
    assert xw.equal(target, weights())


def test_the_fault_that_explains_the_others_stands_first() -> None:
    with pytest.raises(xw.SelectionError) as caught:
        xw.set_params(many(), {"blocks/7/gama": np.ones(8, "f4")})
    assert "'blocks/7/gama' is no parameter of the target" in str(caught.value).splitlines()[1]


def test_a_call_with_wrong_arguments_is_also_python_s_type_error() -> None:
    with pytest.raises(TypeError):
        xw.prune(weights(), 0.8)


def test_an_error_of_a_user_s_own_function_is_left_as_it_is() -> None:
    def careless(w: Any) -> Any:
        return w.nothing

    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        xw.apply(weights(), careless, where="conv/*")


def test_what_is_guarded_can_be_pickled_and_has_its_own_signature() -> None:
    assert pickle.loads(pickle.dumps(xw.clip)) is xw.clip
    assert xw.clip.__module__ == "xweights.edit.verbs"
    assert xw.equal(pickle.loads(pickle.dumps(xw.Params({"a": np.ones(1)}))), {"a": np.ones(1)})


def test_an_array_of_the_target_is_a_selection() -> None:
    target = weights()
    xw.fill(target, 0.0, where=[target["conv/bias"], "out/*"])
    assert {name: bool(array.any()) for name, array in target.items()} == {
        "conv/kernel": True, "conv/bias": False, "out/kernel": False
    }  # fmt: skip


def test_modules_parameters_and_buffers_of_torch_are_selections() -> None:
    torch = pytest.importorskip("torch", reason="torch isn't installed")
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    names = [p.name for p in xw.parameters(net, where=net[0])]
    assert names == ["0/kernel", "0/bias"]
    assert [p.name for p in xw.parameters(net, where=net[2].weight)] == ["2/kernel"]
    assert [p.name for p in xw.parameters(net, where=net[1].running_mean)] == ["1/moving_mean"]
    with pytest.raises(xw.SelectionError, match="none of the target's parameters"):
        xw.parameters(net, where=torch.nn.Linear(2, 2))


def test_layers_and_variables_of_keras_are_selections() -> None:
    keras = pytest.importorskip("keras", reason="keras isn't installed")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="one"), keras.layers.Dense(2, name="two")])
    assert [p.name for p in xw.parameters(model, where=model.layers[0])] == ["one/kernel", "one/bias"]
    assert [p.name for p in xw.parameters(model, where=[model.layers[1].bias])] == ["two/bias"]
    assert [p.name for p in xw.parameters(model, where="*/kernel" & ~xw.role("bias"))]
