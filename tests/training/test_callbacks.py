"""Callbacks of trainers attach when training begins, hold to its end, and release."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

import xweights as xw

X = np.random.default_rng(0).normal(size=(24, 4)).astype("float32")
Y = X.sum(axis=1, keepdims=True)
has = importlib.util.find_spec


@pytest.mark.keras_backend
@pytest.mark.skipif(not has("keras"), reason="Keras is not installed")
def test_callbacks_of_fit_hold_while_it_runs_and_are_released_after_it() -> None:
    import keras

    from xweights_keras import callbacks

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="a"), keras.layers.Dense(1, name="b")])
    xw.init(model, "he_normal", seed=0)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    before = xw.get_params(model)
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            seen.append(float(np.asarray(xw.get_params(self.model)["a/kernel"]).sum()))

    prune = callbacks.Prune(fraction=0.5, where="a/kernel")
    freeze = callbacks.Freeze(where="b/kernel", entries={"in": 0})
    mean = callbacks.Average(decay="swa", where="a/kernel")
    fit = {"batch_size": 8, "epochs": 2, "verbose": 0, "validation_data": (X, Y), "shuffle": False}
    model.fit(X, Y, callbacks=[prune, freeze, mean, Watch()], **fit)

    after = xw.get_params(model)
    assert (after["a/kernel"] == 0).sum() == 16
    assert set(prune.attached.masks) == {"a/kernel"}
    assert after["b/kernel"][0] == before["b/kernel"][0]
    assert (after["b/kernel"][1:] != before["b/kernel"][1:]).all()
    assert seen[-1] == pytest.approx(float(mean.attached.params["a/kernel"].sum()), rel=1e-6)
    assert seen[-1] != pytest.approx(float(after["a/kernel"].sum()), rel=1e-6)

    model.fit(X, Y, batch_size=8, verbose=0)
    assert (xw.get_params(model)["a/kernel"] == 0).sum() == 0, "it was released"


@pytest.mark.keras_backend
@pytest.mark.skipif(not has("keras"), reason="Keras is not installed")
def test_a_validation_that_fails_leaves_the_trained_weights_in_the_model() -> None:
    import keras

    from xweights_keras import callbacks

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, name="a")])
    model.compile(keras.optimizers.SGD(0.01), "mse")
    trained = {}

    class Fail(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            trained.update(xw.get_params(self.model))

        def on_test_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    mean = callbacks.Average(decay=0.9)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, batch_size=8, verbose=0, validation_data=(X, Y), callbacks=[mean, Fail()])
    assert xw.equal(model, trained)
    assert not xw.equal(model, mean.attached.params)
    model.fit(X, Y, batch_size=8, verbose=0, validation_data=(X, Y), callbacks=[mean])
    assert mean.attached.updates == 3
    assert "evaluate" not in vars(model)


@pytest.mark.skipif(not has("lightning"), reason="Lightning is not installed")
def test_callbacks_of_lightning_hold_while_it_runs_and_are_released_after_it(tmp_path) -> None:
    import lightning
    import torch

    from xweights_torch.callbacks.lightning import Average, Hold, Prune

    checked = []

    class Net(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(4, 1)
            self.seen = None

        def training_step(self, batch, _):
            return torch.nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def validation_step(self, batch, _):
            self.seen = self.net.weight.detach().clone()
            if self.trainer.sanity_checking:
                checked.append(self.seen)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*map(torch.from_numpy, (X, Y))), 8)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    net = Net()
    prune, bound = Prune(fraction=0.5), Hold(xw.Clip(-0.3, 0.3), where="*/kernel")
    mean = Average(decay=0.5, where="*/kernel")
    trainer = lightning.Trainer(
        max_epochs=3, callbacks=[prune, bound, mean], default_root_dir=tmp_path, enable_model_summary=False, **quiet
    )
    trainer.fit(net, data, data)
    kernel = xw.get_params(net)["net/kernel"]
    assert (kernel == 0).sum() == 2
    assert np.abs(kernel).max() <= np.float32(0.3)
    assert np.array_equal(net.seen.numpy().T, mean.attached.params["net/kernel"])
    xw.fill(net, 1.0)
    assert (xw.get_params(net)["net/kernel"] == 1).all(), "they were released"
    again = lightning.Trainer(max_epochs=1, callbacks=[mean], enable_model_summary=False, **quiet)
    again.fit(net, data, data)
    assert (checked[-1] == 1).all(), "a check before the training sees no averages of the training before"


@pytest.mark.skipif(not (has("transformers") and has("accelerate")), reason="transformers is not installed")
def test_callbacks_of_trainer_hold_while_it_runs_and_are_released_after_it(tmp_path) -> None:
    import torch
    import transformers

    from xweights_torch.callbacks.transformers import Freeze, Prune

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)

        def forward(self, x, labels):
            return {"loss": torch.nn.functional.mse_loss(self.b(self.a(x)), labels)}

    torch.manual_seed(0)
    net = Net()
    before = xw.get_params(net)
    data = [{"x": torch.from_numpy(x), "labels": torch.from_numpy(y)} for x, y in zip(X, Y, strict=True)]
    options = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=2, per_device_train_batch_size=8, use_cpu=True, report_to=[],
        save_strategy="no", logging_strategy="no", disable_tqdm=True, weight_decay=0.1, learning_rate=0.01,
    )  # fmt: skip
    prune = Prune(fraction=0.5, where="a/kernel")
    trainer = transformers.Trainer(net, options, train_dataset=data, callbacks=[prune, Freeze(where="b/kernel")])
    trainer.train()
    after = xw.get_params(net)
    assert (after["a/kernel"] == 0).sum() == 8
    assert np.array_equal(after["b/kernel"], before["b/kernel"])
    assert not np.array_equal(after["b/bias"], before["b/bias"])
    xw.fill(net, 1.0)
    assert (xw.get_params(net)["a/kernel"] == 1).all(), "it was released"


def test_a_callback_used_again_begins_anew_and_one_that_is_refused_attaches_nothing() -> None:
    from xweights.training.while_training import WhileTraining, hold

    class Hold(WhileTraining):
        attach = staticmethod(hold)

    first, second = {"w": np.full(2, 3.0)}, {"w": np.full(2, 3.0)}
    callback = Hold(xw.Clip(-1, 1), where="w")
    callback.begin(first)
    callback.begin(second)
    xw.fill(first, 5.0)
    xw.fill(second, 5.0)
    assert (first["w"].max(), second["w"].max()) == (5.0, 1.0)
    callback.end()
    wrong = Hold(xw.Clip(-1, 1), where="nothing")
    with pytest.raises(xw.SelectionError):
        wrong.begin(second)
    wrong.end()
    assert wrong.attached is None


def test_a_wrong_call_of_a_callback_is_refused_as_that_of_its_function() -> None:
    from xweights.training.while_training import WhileTraining, average, hold_pruned

    class Average(WhileTraining):
        attach = staticmethod(average)

    class Prune(WhileTraining):
        attach = staticmethod(hold_pruned)

    with pytest.raises(xw.ArgumentError, match=r"average\(\) needs decay="):
        Average()
    with pytest.raises(xw.ArgumentError, match="'amount'"):
        Prune(amount=0.5)
    with pytest.raises(xw.ArgumentError, match="leave out hold="):
        Prune(fraction=0.5, hold=True).begin({"a/kernel": np.ones((2, 2))})
    with pytest.raises(xw.HoldError, match="stay empty"):
        Average(decay=0.5).begin({"w": np.ones(2)})
