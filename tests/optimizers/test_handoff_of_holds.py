"""Hand-offs of models under rules: they are held on the target, too, or the report says that they aren't."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import xweights as xw

keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")

X = np.random.default_rng(0).normal(size=(16, 5)).astype("float32")
Y = np.full((16, 2), 3.0, "float32")
to_numpy = keras.ops.convert_to_numpy


def in_torch():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    return model, torch.optim.Adam(model.parameters(), 0.1)


def in_keras():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(4, "tanh", name="a"), keras.layers.Dense(2, name="b")]
    return keras.Sequential([keras.Input((5,)), *layers])


def train_torch(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        (model(torch.from_numpy(X)) - torch.from_numpy(Y)).pow(2).mean().backward()
        optimizer.step()


def train_keras(model, steps):
    model.fit(X, Y, batch_size=16, epochs=steps, verbose=0)


def assert_equal(k, t):
    for name, value in xw.get_params(k).items():
        twin = xw.get_params(t)[{"a": "0", "b": "2"}[name[0]] + name[1:]]
        np.testing.assert_allclose(value, twin, atol=1e-5)


RULES = {
    "clip": lambda model: xw.hold(model, xw.Clip(-0.3, 0.3), where="*/kernel"),
    "norm": lambda model: xw.hold(model, xw.MaxNorm(0.5, per="out"), where="*/kernel"),
    "mask": lambda model: xw.prune(model, fraction=0.5, hold=True),
    "schedule": lambda model: xw.prune(model, fraction=0.5, schedule=xw.Cubic(0, 6)),
    "freeze": lambda model: xw.freeze(model, where=xw.layer(0)),
    "freeze of entries": lambda model: xw.freeze(model, where="*/kernel", entries=(0,)),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_taken_along_to_keras_where_training_goes_on_as_it_would_have(rule):
    t, optimizer = in_torch()
    RULES[rule](t)
    train_torch(t, optimizer, 3)
    k = in_keras()
    report = xw.handoff((t, optimizer), (k, None), sample=torch.from_numpy(X))
    assert report.exact
    assert "held on the target too" in str(report)
    k.compile(report.optimizer, "mse")
    train_keras(k, 4)
    train_torch(t, optimizer, 4)
    for held in report.held:
        held.check()
    assert_equal(k, t)


@pytest.mark.parametrize("rule", ["clip", "schedule", "freeze"])
def test_a_rule_is_taken_along_to_pytorch_where_training_goes_on_as_it_would_have(rule):
    k = in_keras()
    k.compile(keras.optimizers.Adam(0.1), "mse")
    RULES[rule](k)
    train_keras(k, 3)
    t, _ = in_torch()
    report = xw.handoff((k, k.optimizer), (t, None), sample=X)
    assert "held on the target too" in str(report)
    train_torch(t, report.optimizer, 4)
    train_keras(k, 4)
    for held in report.held:
        held.check()
    assert_equal(k, t)


def test_a_schedule_goes_on_where_it_stands():
    t, optimizer = in_torch()
    former = xw.prune(t, fraction=0.5, schedule=xw.Cubic(0, 6))
    train_torch(t, optimizer, 3)
    k = in_keras()
    report = xw.handoff((t, optimizer), (k, None), sample=torch.from_numpy(X))
    assert report.held[0].step == former.step == 3
    np.testing.assert_array_equal(report.held[0].masks["a/kernel"], former.masks["0/kernel"])


def test_a_rule_that_the_target_has_already_is_not_held_twice():
    k = in_keras()
    k.compile(keras.optimizers.Adam(0.1), "mse")
    RULES["clip"](k)
    train_keras(k, 2)
    t, _ = in_torch()
    RULES["clip"](t)
    report = xw.handoff((k, k.optimizer), (t, None), sample=X)
    assert report.held == ()
    assert report.exact
    assert "held on the target already" in str(report)


@pytest.mark.parametrize(
    ("attach", "words"),
    [
        (lambda t, o: xw.hold(t, lambda w: w.clamp(-0.3, 0.3), where="*/kernel"), "held on the source, and not on the"),
    ],
    ids=["function"],
)
def test_what_stays_behind_is_said_and_the_report_does_not_call_itself_exact(attach, words):
    t, optimizer = in_torch()
    handle = attach(t, optimizer)
    train_torch(t, optimizer, 2)
    report = xw.handoff((t, optimizer), (in_keras(), None), sample=torch.from_numpy(X))
    assert words in str(report)
    assert "not in every part exactly" in str(report)
    assert not report.exact
    handle.release()


FOLLOWING = {
    "factors": lambda model, optimizer: xw.multiply_lr(model, {"*": 0.5, "*/bias": 0.0}, optimizer=optimizer),
    "exponential averages": lambda model, optimizer: xw.average(model, decay=0.7, every=2),
    "plain averages": lambda model, optimizer: xw.average(model, decay="swa", where="*/kernel"),
}


def assert_followed(here, there, k, t):
    """The handles of both sides have seen the same training."""
    there.check()
    assert_equal(k, t)
    if isinstance(here, xw.Averages):
        assert there.updates == here.updates
        names = {"a": "0", "b": "2"}
        sides = (here, there) if "a/kernel" in here.params else (there, here)
        for name, value in sides[0].params.items():
            np.testing.assert_allclose(value, sides[1].params[names[name[0]] + name[1:]], atol=1e-5)


@pytest.mark.parametrize("kind", FOLLOWING)
def test_factors_and_averages_go_on_in_keras(kind):
    t, optimizer = in_torch()
    here = FOLLOWING[kind](t, optimizer)
    train_torch(t, optimizer, 3)
    k = in_keras()
    report = xw.handoff((t, optimizer), (k, None), sample=torch.from_numpy(X))
    assert report.exact, report
    (there,) = report.held
    if isinstance(here, xw.Averages):
        np.testing.assert_array_equal(there.params["b/kernel"], here.params["2/kernel"])
    k.compile(report.optimizer, "mse")
    train_keras(k, 4)
    train_torch(t, optimizer, 4)
    assert_followed(here, there, k, t)
    report.release()
    here.release()


@pytest.mark.parametrize("kind", FOLLOWING)
def test_factors_and_averages_go_on_in_pytorch(kind):
    k = in_keras()
    k.compile(keras.optimizers.AdamW(0.1, weight_decay=0.2), "mse")
    here = FOLLOWING[kind](k, k.optimizer)
    train_keras(k, 3)
    t, _ = in_torch()
    report = xw.handoff((k, k.optimizer), (t, None), sample=X)
    assert report.exact, report
    (there,) = report.held
    train_torch(t, report.optimizer, 4)
    train_keras(k, 4)
    assert_followed(here, there, k, t)
    report.release()
    here.release()


def test_factors_are_taken_along_if_nobody_has_the_handle_any_more():
    t, optimizer = in_torch()
    FOLLOWING["factors"](t, optimizer)
    train_torch(t, optimizer, 1)
    report = xw.handoff((t, optimizer), (in_keras(), None), sample=torch.from_numpy(X))
    assert report.held[0].factors == {"a/kernel": 0.5, "a/bias": 0.0, "b/kernel": 0.5, "b/bias": 0.0}


def test_a_factor_also_scales_the_decay_that_a_hook_of_a_hand_off_does_before_the_step():
    k = in_keras()
    k.compile(keras.optimizers.SGD(0.1, weight_decay=0.5), "mse")
    train_keras(k, 1)
    t, _ = in_torch()
    report = xw.handoff((k, k.optimizer), (t, None), sample=X)
    multiplied = xw.multiply_lr(t, {"0/kernel": 0.0}, optimizer=report.optimizer)
    before = xw.get_params(t)
    train_torch(t, report.optimizer, 1)
    np.testing.assert_array_equal(xw.get_params(t)["0/kernel"], before["0/kernel"])
    assert not np.array_equal(xw.get_params(t)["2/kernel"], before["2/kernel"])
    multiplied.release()


def test_averages_that_are_swapped_in_stay_behind_and_the_report_says_so():
    t, optimizer = in_torch()
    averages = FOLLOWING["plain averages"](t, optimizer)
    train_torch(t, optimizer, 2)
    with averages.swapped_in():
        report = xw.handoff((t, optimizer), (in_keras(), None), sample=torch.from_numpy(X))
    assert "not on the target: they are swapped in" in str(report)
    assert not report.exact
    averages.release()


def test_a_hand_off_of_the_weights_alone_says_that_a_rule_stays_behind():
    t, optimizer = in_torch()
    RULES["clip"](t)
    report = xw.handoff((t, optimizer), (in_keras(), None), sample=torch.from_numpy(X), grade="weights")
    assert "held on the source, and not on the target" in str(report)
    assert report.held == ()


def test_a_constraint_of_the_users_own_below_a_rule_is_refused_as_ever():
    k = in_keras()
    k.layers[0].kernel.constraint = keras.constraints.NonNeg()
    k.compile(keras.optimizers.Adam(0.1), "mse")
    RULES["clip"](k)
    train_keras(k, 1)
    t, _ = in_torch()
    with pytest.raises(xw.HandoffError, match="'a/kernel' has a constraint"):
        xw.handoff((k, k.optimizer), (t, None), sample=X)


def test_a_hand_off_that_fails_holds_nothing_on_the_target():
    t, optimizer = in_torch()
    RULES["clip"](t)
    RULES["freeze"](t)
    train_torch(t, optimizer, 1)
    k = in_keras()
    k.layers[1].bias.trainable = False
    before = xw.get_params(k)
    k.compile(keras.optimizers.SGD(0.1), "mse")
    with pytest.raises(xw.HandoffError):
        xw.handoff((t, optimizer), (k, k.optimizer), sample=torch.from_numpy(X), grade="stock")
    xw.fill(k, 5.0, where="a/kernel")
    assert (to_numpy(k.layers[0].kernel) == 5.0).all()
    assert k.layers[0].kernel.trainable
    xw.set_params(k, before)


def test_release_of_the_report_ends_what_was_taken_along():
    t, optimizer = in_torch()
    RULES["clip"](t)
    train_torch(t, optimizer, 1)
    k = in_keras()
    report = xw.handoff((t, optimizer), (k, None), sample=torch.from_numpy(X))
    report.release()
    xw.fill(k, 5.0, where="a/kernel")
    assert (to_numpy(k.layers[0].kernel) == 5.0).all()


def test_a_port_moves_weights_and_says_which_rules_stay_behind():
    t, _ = in_torch()
    RULES["clip"](t)
    report = xw.port(t, in_keras(), sample=torch.from_numpy(X))
    assert report.ok
    assert "Clip(low=-0.3, high=0.3) is held on the source" in str(report)


@pytest.mark.parametrize("make", [lambda: in_torch()[0], in_keras], ids=["torch", "keras"])
def test_a_deep_copy_of_a_held_model_is_free_and_the_original_stays_held(make):
    model = make()
    with xw.hold(model, xw.Clip(-0.3, 0.3), where="*/kernel"):
        twin = copy.deepcopy(model)
        xw.fill(twin, 5.0, where="*/kernel")
        assert all((value == 5.0).all() for name, value in xw.get_params(twin, where="*/kernel").items())
        xw.fill(model, 5.0, where="*/kernel")
        assert all((value == np.float32(0.3)).all() for value in xw.get_params(model, where="*/kernel").values())
    if not isinstance(model, torch.nn.Module):
        assert all(variable.constraint is None for variable in twin.weights)


def test_a_freeze_that_cleared_a_flag_sets_it_again_at_its_end_also_after_an_undo():
    t, optimizer = in_torch()
    RULES["freeze"](t)
    train_torch(t, optimizer, 1)
    k = in_keras()
    xw.handoff((t, optimizer), (k, None), sample=torch.from_numpy(X))
    first = xw.parameters(k, where=xw.layer(0))
    with xw.transaction(k) as tx:
        xw.unfreeze(k)
        tx.rollback()
    assert not any(p.trainable for p in first)
    xw.unfreeze(k, where="a/bias")
    assert [p.name for p in first if p.trainable] == ["a/bias"]
    xw.unfreeze(k)
    assert all(p.trainable for p in first)


@pytest.mark.parametrize("whole", [True, False], ids=["all of it", "entries"])
def test_normalizations_that_a_freeze_runs_in_inference_mode_do_so_on_the_target(whole):
    t = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.Adam(t.parameters(), 0.1)
    if whole:
        xw.freeze(t, where=xw.layer(1), inference=True)
    else:
        xw.freeze(t, where="1/gamma", entries=(slice(2),), inference=True)
    train_torch(t, optimizer, 1)
    norm = keras.layers.BatchNormalization(epsilon=1e-5, name="norm")
    layers = [keras.layers.Dense(4, name="a"), norm, keras.layers.Dense(2)]
    k = keras.Sequential([keras.Input((5,)), *layers])
    report = xw.handoff((t, optimizer), (k, None), sample=torch.from_numpy(X))
    assert report.exact, report
    k.compile(report.optimizer, "mse")
    before = xw.get_params(k)
    train_torch(t, optimizer, 3)
    train_keras(k, 3)
    twins = xw.get_params(t, where=~xw.role("num_batches_tracked")).values()
    for value, twin in zip(xw.get_params(k).values(), twins, strict=True):
        np.testing.assert_allclose(value, twin, atol=1e-5)
    assert not np.array_equal(xw.get_params(k)["a/kernel"], before["a/kernel"])
    report.release()
    k(X, training=True)
    assert not np.array_equal(xw.get_params(k)["norm/moving_mean"], before["norm/moving_mean"])


def test_statistics_that_are_frozen_stay_as_they_are_on_the_target_which_collects_as_the_source_does():
    layers = [keras.layers.Dense(4, name="a"), keras.layers.BatchNormalization(name="norm"), keras.layers.Dense(2)]
    k = keras.Sequential([keras.Input((5,)), *layers])
    k.compile(keras.optimizers.Adam(0.1), "mse")
    train_keras(k, 1)
    xw.freeze(k, where="norm/*")
    t = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4, eps=1e-3), torch.nn.Linear(4, 2))
    report = xw.handoff((k, k.optimizer), (t, None), sample=X)
    assert report.exact, report
    before = xw.get_params(t)
    t.train()
    t(torch.from_numpy(X))  # and no step
    after = xw.get_params(t)
    for name in ("1/moving_mean", "1/moving_variance"):
        np.testing.assert_array_equal(after[name], before[name])
    report.held[0].release()
    t(torch.from_numpy(X))
    assert not np.array_equal(xw.get_params(t)["1/moving_variance"], before["1/moving_variance"])
