"""The whole state of a training run: saved and loaded, and set in a model of either framework."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import xweights as xw

keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")

X = np.random.default_rng(0).normal(size=(16, 5)).astype("float32")
Y = np.full((16, 2), 3.0, "float32")
NAMES = {"a/*": "0/*", "b/*": "2/*"}
BACK = {"0/*": "a/*", "2/*": "b/*"}


class Torch:
    """A model in PyTorch, its optimizer, and one way to train it."""

    first = "0"

    def __init__(self, seed=0, *, norm=False):
        torch.manual_seed(seed)
        middle = torch.nn.BatchNorm1d(4) if norm else torch.nn.Tanh()
        self.model = torch.nn.Sequential(torch.nn.Linear(5, 4), middle, torch.nn.Linear(4, 2))
        self.optimizer = torch.optim.Adam(self.model.parameters(), 0.1)

    def train(self, steps):
        for _ in range(steps):
            self.optimizer.zero_grad()
            (self.model(torch.from_numpy(X)) - torch.from_numpy(Y)).pow(2).mean().backward()
            self.optimizer.step()


class Keras:
    """The same in Keras."""

    first = "a"

    def __init__(self, seed=0, *, norm=False):
        keras.utils.set_random_seed(seed)
        layers = [keras.layers.Dense(4, "tanh", name="a"), keras.layers.Dense(2, name="b")]
        layers[1:1] = [keras.layers.BatchNormalization(name="norm")] if norm else []
        self.model = keras.Sequential([keras.Input((5,)), *layers])
        self.optimizer = keras.optimizers.Adam(0.1)
        self.model.compile(self.optimizer, "mse")

    def train(self, steps):
        for _ in range(steps):
            self.model.train_on_batch(X, Y)


def attach_all(side):
    """One of each kind."""
    model, first = side.model, side.first
    return [
        xw.freeze(model, where=f"{first}/bias"),
        xw.freeze(model, where=f"{first}/kernel", entries=(0, slice(2))),
        xw.hold(model, xw.MaxNorm(0.8, per="out"), where=xw.layer(1) & xw.role("kernel")),
        xw.prune(model, fraction=0.5, schedule=xw.Cubic(0, 6)),
        xw.multiply_lr(model, {"*/kernel": 0.5}, optimizer=side.optimizer),
        xw.average(model, decay=0.7, where="*/kernel"),
    ]


def averages_of(handles):
    return next(handle for handle in handles if isinstance(handle, xw.Averages))


def schedule_of(handles):
    return next(handle for handle in handles if isinstance(handle, xw.PruneHold))


@pytest.mark.parametrize("side", [Torch, Keras])
@pytest.mark.parametrize("suffix", ["safetensors", "npz", "h5"])
def test_a_run_goes_on_from_a_file_to_the_bit(side, suffix, tmp_path):
    run = side()
    handles = attach_all(run)
    run.train(3)
    xw.get_training_state(run.model, run.optimizer).save(tmp_path / f"run.{suffix}")
    again = side(seed=1)
    report = xw.set_training_state(again.model, again.optimizer, xw.TrainingState.load(tmp_path / f"run.{suffix}"))
    assert schedule_of(report.held).step == 3
    run.train(4)
    again.train(4)
    assert xw.equal(run.model, again.model)
    assert averages_of(report.held).updates == 7
    assert xw.equal(averages_of(report.held).params, averages_of(handles).params)
    assert xw.equal(schedule_of(report.held).masks, schedule_of(handles).masks)
    for handle in report.held:
        handle.check()


@pytest.mark.parametrize(("here", "there", "names"), [(Torch, Keras, NAMES), (Keras, Torch, BACK)])
def test_a_run_goes_on_in_the_other_framework(here, there, names, tmp_path):
    run = here()
    handles = attach_all(run)
    run.train(3)
    xw.get_training_state(run.model, run.optimizer).save(tmp_path / "run.safetensors")
    other = there(seed=1)
    state = xw.TrainingState.load(tmp_path / "run.safetensors")
    report = xw.set_training_state(other.model, None, state, names=names)
    other.optimizer = report.optimizer
    if there is Keras:
        other.model.compile(other.optimizer, "mse")
    run.train(4)
    other.train(4)
    assert schedule_of(report.held).step == 7
    for name, value in xw.get_params(other.model).items():
        twin = {"a": "0", "b": "2", "0": "a", "2": "b"}[name[0]] + name[1:]
        np.testing.assert_allclose(value, xw.get_params(run.model)[twin], atol=1e-5)
        if name.endswith("kernel"):
            np.testing.assert_allclose(
                averages_of(report.held).params[name], averages_of(handles).params[twin], atol=1e-5
            )
    for handle in report.held:
        handle.check()


def test_what_was_attached_before_is_released_and_just_the_state_is_attached():
    run, again = Torch(), Torch(seed=1)
    xw.hold(run.model, xw.Clip(-0.2, 0.2), where="0/kernel")
    former = xw.hold(again.model, xw.Clip(-0.1, 0.1), where="2/kernel")
    xw.set_training_state(again.model, again.optimizer, xw.get_training_state(run.model, run.optimizer))
    assert former.parameters == []
    xw.fill(again.model, 5.0)
    values = xw.get_params(again.model)
    assert (values["0/kernel"] == np.float32(0.2)).all()
    assert (values["2/kernel"] == 5.0).all()


def test_what_no_file_can_hold_is_refused_by_name_and_nothing_is_written(tmp_path):
    run = Torch()
    xw.hold(run.model, lambda w: w.clamp(-1, 1), where="0/kernel")
    averages = xw.average(run.model, decay=lambda updates: 0.5)
    xw.prune(run.model, fraction=0.5, where="2/kernel", schedule=xw.ByStep(lambda step: None))
    with pytest.raises(xw.HandoffError) as caught:
        xw.get_training_state(run.model).save(tmp_path / "run.npz")
    message = str(caught.value)
    for words in ("Function is no class of xweights", "decay= is a function", "ByStep is no class"):
        assert words in message
    assert not (tmp_path / "run.npz").exists()
    averages.release()


def test_a_state_that_does_not_fit_changes_nothing():
    run = Torch()
    xw.hold(run.model, xw.Clip(-1, 1), where="0/kernel")
    state = xw.get_training_state(run.model, run.optimizer)
    other = Keras()
    former = xw.hold(other.model, xw.Clip(-0.1, 0.1), where="b/kernel")
    before = xw.get_params(other.model)
    with pytest.raises(xw.HandoffError, match="the model has no '0/kernel'"):
        xw.set_training_state(other.model, None, state)
    narrow = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    with pytest.raises(xw.ShapeError):
        xw.set_training_state(narrow, None, state)
    assert xw.equal(other.model, before)
    xw.fill(other.model, 5.0, where="b/kernel")
    assert (xw.get_params(other.model)["b/kernel"] == np.float32(0.1)).all()
    former.release()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda meta: meta.update(version=9), "version 1"),
        (lambda meta: meta["attached"][0]["rule"].update(type="os.system"), "knows no such rule"),
        (lambda meta: meta["attached"][0]["rule"].update(low="x"), "low is no array"),
        (lambda meta: meta["attached"][0].update(step=-1), "damaged"),
        (lambda meta: meta["attached"][0].update(schedule={"type": "OneShot"}), "a schedule belongs to pruning"),
        (lambda meta: meta["attached"][0]["rule"].update(type="Mask", low=None, high=None), "damaged"),
        (lambda meta: meta["attached"][0].update(rule={"type": "Mask", "keep": None}), "masks of"),
        (lambda meta: meta.pop("weights"), "damaged"),
        (lambda meta: meta["weights"].update(more=[None, "kernel", None]), "damaged"),
    ],
)
def test_a_damaged_file_is_an_error_of_its_own_type(change, words, tmp_path):
    import json

    run = Torch()
    xw.hold(run.model, xw.Clip(-1, 1), where="0/kernel")
    xw.get_training_state(run.model).save(tmp_path / "run.npz")
    arrays = dict(np.load(tmp_path / "run.npz"))
    meta = json.loads(arrays["training_state"].tobytes())
    change(meta)
    arrays["training_state"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    xw.save(arrays, tmp_path / "changed.npz")
    with pytest.raises(xw.XweightsError, match=words):
        xw.set_training_state(Torch().model, None, xw.TrainingState.load(tmp_path / "changed.npz"))


def test_a_file_without_a_training_state_is_refused(tmp_path):
    xw.save({"kernel": np.ones(2)}, tmp_path / "weights.npz")
    with pytest.raises(xw.HandoffError, match="has no training state"):
        xw.TrainingState.load(tmp_path / "weights.npz")


def test_verify_handoff_trains_both_sides_under_the_rules_that_are_held():
    run = Torch()
    handles = attach_all(run)
    run.train(3)
    other = Keras(seed=1)
    report = xw.handoff((run.model, run.optimizer), (other.model, None), sample=torch.from_numpy(X))
    proof = xw.verify_handoff(
        (run.model, run.optimizer), report.training, batches=[(X, Y)] * 4, loss="mse", dtypes=(None,)
    )
    assert proof.ok, proof
    assert schedule_of(handles).step == 3
    schedule_of(report.held).release()
    proof = xw.verify_handoff(
        (run.model, run.optimizer), report.training, batches=[(X, Y)] * 4, loss="mse", dtypes=(None,)
    )
    assert not proof.ok


@pytest.mark.parametrize("side", [Torch, Keras])
def test_a_failure_after_the_optimizer_was_filled_leaves_nothing_attached(side):
    source = Keras() if side is Torch else Torch()
    names = NAMES if side is Keras else BACK
    source.optimizer = (
        keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.5)
        if side is Torch
        else torch.optim.SGD(source.model.parameters(), 0.1, momentum=0.9, dampening=0.5)
    )
    if side is Torch:
        source.model.compile(source.optimizer, "mse")
    source.train(1)
    xw.multiply_lr(source.model, {f"{source.first}/kernel": 0.5}, optimizer=source.optimizer)
    state = xw.get_training_state(source.model, source.optimizer, step=1)
    twice = replace(state, attached=(*state.attached, *state.attached))
    # One that goes on by the bit as if nothing had been tried.
    run, control = side(), side()
    for one in (run, control):
        one.optimizer = (
            torch.optim.SGD(one.model.parameters(), 0.1, momentum=0.9)
            if side is Torch
            else keras.optimizers.SGD(0.1, momentum=0.9)
        )
        if side is Keras:
            one.model.compile(one.optimizer, "mse")
        one.train(1)
    held = xw.hold(run.model, xw.Clip(-9, 9), where="*/kernel")
    with pytest.raises(xw.HoldError, match="has a factor already"):
        xw.set_training_state(run.model, run.optimizer, twice, names=names)
    run.train(3)
    control.train(3)
    assert xw.equal(run.model, control.model)
    assert len(held.parameters) == 2
    held.release()


def test_what_is_no_training_state_is_refused_with_the_way_out():
    with pytest.raises(xw.HandoffError, match=r"TrainingState\.load"):
        xw.set_training_state(Torch().model, None, "run.safetensors")


def test_a_state_shares_no_array_with_the_run():
    run = Torch()
    xw.hold(run.model, xw.Mask({"0/kernel": np.ones((5, 4), bool)}), where="0/kernel")
    xw.freeze(run.model, where="2/kernel", entries=(0,))
    state = xw.get_training_state(run.model)
    before = xw.get_params(run.model)
    for record in state.attached:
        for mask in record.entries.values():
            mask[...] = False
    for value in state.weights.values():
        value[...] = 7.0
    assert xw.equal(run.model, before)
    xw.fill(run.model, 5.0)
    assert (xw.get_params(run.model)["0/kernel"] == 5.0).all()
    assert (xw.get_params(run.model)["2/kernel"][1:] == 5.0).all()


@pytest.mark.parametrize("side", [Torch, Keras])
def test_normalizations_that_a_freeze_runs_in_inference_mode_do_so_after_a_load(side, tmp_path):
    run, again = side(norm=True), side(seed=1, norm=True)
    xw.freeze(run.model, where=xw.layer(1), inference=True)
    run.train(1)
    xw.get_training_state(run.model, run.optimizer).save(tmp_path / "run.npz")
    xw.set_training_state(again.model, again.optimizer, xw.TrainingState.load(tmp_path / "run.npz"))
    before = xw.get_params(run.model)
    run.train(2)
    again.train(2)
    assert not xw.equal(run.model, before)
    assert xw.equal(run.model, again.model)


def test_a_frozen_counter_that_the_other_framework_has_not_is_left_out():
    run, other = Torch(norm=True), Keras(seed=1, norm=True)
    xw.freeze(run.model, where="1/*")
    state = xw.get_training_state(run.model)
    report = xw.set_training_state(other.model, None, state, names={"norm/*": "1/*", **NAMES})
    assert {p.name for p in report.held[0].parameters} == {p.name for p in xw.parameters(other.model, where="norm/*")}


ON_A_LAYER = {
    "mask": lambda layer: xw.hold(layer, xw.Mask(np.eye(5, 4) > 0), where="kernel"),
    "schedule": lambda layer: xw.prune(layer, fraction=0.5, schedule=xw.Cubic(0, 6)),
    "freeze of entries": lambda layer: xw.freeze(layer, where="kernel", entries=(0,)),
}


@pytest.mark.parametrize("kind", ON_A_LAYER)
def test_what_began_on_a_layer_is_found_under_the_names_of_the_model(kind):
    run, again = Torch(), Torch(seed=1)
    ON_A_LAYER[kind](run.model[0])
    run.train(2)
    xw.set_training_state(again.model, again.optimizer, xw.get_training_state(run.model, run.optimizer))
    other = Keras(seed=1)
    report = xw.handoff((run.model, run.optimizer), (other.model, None), sample=torch.from_numpy(X))
    assert report.exact, report
    run.train(2)
    again.train(2)
    assert xw.equal(run.model, again.model)
