"""``adapt=`` on live models of every framework, from live models and from files of either."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xweights as xw

pytestmark = pytest.mark.keras_backend

A = xw.adapt
OLD, NEW = ["a", "b", "c", "d"], ["d", "new", "b", "a", "c", "other"]
TOKENS = A.Rows(old=OLD, new=NEW)
ADAPT = {
    "stem/kernel": A.Sum("in"),
    "embed/*": TOKENS,
    "pos_embed": A.Resample((2, 2), (3, 3), skip=1),
    "head/kernel": A.Rows(old=OLD, new=NEW, axis="out", init="zeros"),
    "head/bias": A.Leave(),
}


def in_torch(*, small: bool, seed: int = 0) -> Any:
    torch = pytest.importorskip("torch")

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = torch.nn.Conv2d(3 if small else 1, 8, 2)
            self.embed = torch.nn.Embedding(4 if small else 6, 8)
            self.pos_embed = torch.nn.Parameter(torch.randn(1, 5 if small else 10, 8))
            self.head = torch.nn.Linear(8, 4 if small else 6)

    torch.manual_seed(seed)
    return Model()


def in_keras(*, small: bool, seed: int = 0) -> Any:
    keras = pytest.importorskip("keras")

    class Model(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.stem = keras.layers.Conv2D(8, 2)
            self.embed = keras.layers.Embedding(4 if small else 6, 8)
            self.head = keras.layers.Dense(4 if small else 6)

        def build(self, shape: Any) -> None:
            self.stem.build((None, 4, 4, 3 if small else 1))
            self.embed.build((None,))
            self.pos_embed = self.add_weight(shape=(1, 5 if small else 10, 8), initializer="normal", name="pos_embed")
            self.head.build((None, 8))
            self.built = True

    keras.utils.set_random_seed(seed)
    model = Model()
    model.build((None, 4, 4, 3))
    return model


MODELS = {"torch": in_torch, "keras": in_keras}


def expected(old: xw.Params, before: xw.Params) -> dict[str, np.ndarray]:
    """Return by hand what the larger model has after it was given the smaller one's weights."""
    table = np.zeros((1, 10, 8), np.float32)
    table[:, :1] = old["pos_embed"].reshape(1, 5, 8)[:, :1]
    # From two positions to three: the middle one is halfway, the outer ones lie beyond the old ones.
    old_positions = (np.arange(2) + 0.5) / 2
    centers = (np.arange(3) + 0.5) / 3
    distances = np.abs(centers[:, None] - old_positions) * 2
    near, far = (
        1.5 * distances**3 - 2.5 * distances**2 + 1,
        -0.5 * distances**3 + 2.5 * distances**2 - 4 * distances + 2,
    )
    weights = np.where(distances < 1, near, far)
    weights /= weights.sum(1, keepdims=True)
    grid = old["pos_embed"].reshape(5, 8)[1:].reshape(2, 2, 8).astype(np.float64)
    table[0, 1:] = np.einsum("ih,jw,hwd->ijd", weights, weights, grid).reshape(9, 8)
    rows = [3, None, 1, 0, 2, None]
    mean = old["embed/embeddings"].astype(np.float64).mean(0)
    kernel = old["head/kernel"]
    return {
        "stem/kernel": old["stem/kernel"].astype(np.float64).sum(2, keepdims=True),
        "stem/bias": old["stem/bias"],
        "embed/embeddings": np.stack([mean if row is None else old["embed/embeddings"][row] for row in rows]),
        "pos_embed": table,
        "head/kernel": np.stack([0 * kernel[:, 0] if row is None else kernel[:, row] for row in rows], 1),
        "head/bias": before["head/bias"],
    }


def check(model: Any, old: xw.Params, before: xw.Params, report: Any) -> None:
    got = xw.get_params(model)
    for name, value in expected(old, before).items():
        np.testing.assert_allclose(got[name].reshape(value.shape), value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert set(report.adapted) == set(ADAPT) - {"embed/*", "head/bias"} | {"embed/embeddings"}
    assert report.left_in_model == {"head/bias": "Leave()"}


@pytest.mark.parametrize("source", MODELS)
@pytest.mark.parametrize("target", MODELS)
def test_a_live_model_takes_the_weights_of_a_smaller_one_of_either_framework(source, target) -> None:
    old, model = xw.get_params(MODELS[source](small=True)), MODELS[target](small=False, seed=1)
    before = xw.get_params(model)
    check(model, old, before, xw.set_params(model, old, adapt=ADAPT))


@pytest.mark.parametrize("source", MODELS)
@pytest.mark.parametrize("target", MODELS)
def test_a_live_model_takes_the_weights_of_a_file(source, target, tmp_path) -> None:
    small, model = MODELS[source](small=True), MODELS[target](small=False, seed=1)
    xw.save(small, tmp_path / "small.safetensors")
    old, before = xw.get_params(small), xw.get_params(model)
    check(model, old, before, xw.set_params(model, tmp_path / "small.safetensors", adapt=ADAPT))


def test_a_torch_model_takes_its_own_state_dict_and_a_file_of_it(tmp_path) -> None:
    torch = pytest.importorskip("torch")
    small = in_torch(small=True)
    torch.save(small.state_dict(), tmp_path / "small.pt")
    old = xw.get_params(small)
    for values in (small.state_dict(), tmp_path / "small.pt"):
        model = in_torch(small=False, seed=1)
        before = xw.get_params(model)
        check(model, old, before, xw.set_params(model, values, layout="native", adapt=ADAPT))


def test_a_file_without_axes_is_refused_where_its_order_matters(tmp_path) -> None:
    torch = pytest.importorskip("torch")
    torch.save(in_torch(small=True).state_dict(), tmp_path / "small.pt")
    model = in_torch(small=False)
    before = xw.get_params(model)
    with pytest.raises(xw.LayoutError, match='Fix: layout="native"'):
        xw.set_params(model, tmp_path / "small.pt", adapt=ADAPT)
    assert xw.equal(model, before)


def test_a_keras_model_takes_keras_own_weights_file(tmp_path) -> None:
    pytest.importorskip("h5py")
    small, model = in_keras(small=True), in_keras(small=False, seed=1)
    small.save_weights(tmp_path / "small.weights.h5")
    before = xw.get_params(model)
    report = xw.set_params(model, tmp_path / "small.weights.h5", adapt=ADAPT)
    check(model, xw.get_params(small), before, report)


@pytest.mark.parametrize("framework", MODELS)
def test_nothing_is_written_if_one_adapter_does_not_fit(framework) -> None:
    old, model = xw.get_params(MODELS[framework](small=True)), MODELS[framework](small=False, seed=1)
    before = xw.get_params(model)
    with pytest.raises(xw.ShapeError) as caught:
        xw.set_params(model, old, adapt={**ADAPT, "pos_embed": A.Resample((2, 2), (3, 3))})
    assert "pos_embed" in str(caught.value)
    assert xw.equal(model, before)


@pytest.mark.parametrize("framework", MODELS)
def test_holds_are_true_of_adapted_weights(framework) -> None:
    old, model = xw.get_params(MODELS[framework](small=True)), MODELS[framework](small=False, seed=1)
    with xw.hold(model, xw.Clip(-0.01, 0.01), where="stem/kernel"):
        xw.set_params(model, old, adapt=ADAPT)
        kernel = xw.get_params(model)["stem/kernel"]
        assert np.abs(kernel).max() <= np.float32(0.01)


def test_both_names_of_a_tied_head_are_adapted_as_one() -> None:
    torch = pytest.importorskip("torch")

    def tied(vocabulary: int) -> Any:
        model = torch.nn.Module()
        model.embed = torch.nn.Embedding(vocabulary, 8)
        model.head = torch.nn.Linear(8, vocabulary, bias=False)
        model.head.weight = model.embed.weight
        return model

    small, model = tied(4), tied(6)
    xw.set_params(model, small.state_dict(), layout="native", adapt={"embed/*": TOKENS})
    assert model.head.weight is model.embed.weight
    assert torch.equal(model.embed.weight[[0, 2, 3, 4]], small.embed.weight[[3, 1, 0, 2]])


def test_variables_of_a_tf_module_are_adapted() -> None:
    tf = pytest.importorskip("tensorflow")
    module = tf.Module()
    module.kernel = tf.Variable(np.zeros((1, 2), np.float32))
    xw.set_params(module, {"kernel": np.ones((3, 2), np.float32)}, adapt={"kernel": A.Mean(0)})
    assert np.array_equal(module.kernel.numpy(), [[1, 1]])
