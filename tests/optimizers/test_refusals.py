"""Hand-offs that can't be exact are refused with the reason, and nothing is changed on either side."""

from __future__ import annotations

import pytest

import xweights as xw

keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")

from experiments import running  # noqa: E402
from experiments.beginning import assert_refused, start_training  # noqa: E402
from experiments.models import data, twins  # noqa: E402


def test_an_optimizer_that_is_not_built_is_refused():
    k, t = twins("mlp")
    assert_refused((k, keras.optimizers.Adam()), (t, None), "isn't built", xw.NotBuiltError)


def test_an_optimizer_of_another_model_is_refused():
    k, o, t, sample = start_training()
    other_k, other_t = twins("mlp", seed=3)
    assert_refused((other_k, o), (t, None), "of another model: 6 of its 6", sample=sample)
    foreign = torch.optim.Adam(other_t.parameters())
    assert_refused((t, foreign), (k, None), "of another model: 6 of its 6", sample=sample)
    assert_refused((t, o), (k, None), "no optimizer of the model's framework", sample=sample)


def test_an_optimizer_of_an_unknown_class_is_refused():
    k, t = twins("mlp")

    class Mine(keras.optimizers.Adam):
        pass

    mine = Mine()
    mine.build(k.trainable_variables)
    assert_refused((k, mine), (t, None), "Mine is no optimizer whose rule is known")
    assert_refused((t, torch.optim.Rprop(t.parameters())), (k, None), "Rprop is no optimizer whose rule is known")


def test_missing_slots_are_refused():
    k, t = twins("mlp")
    o = torch.optim.Adam(t.parameters())
    running.torch_steps(t, o, data("mlp", steps=1))
    del o.state[t[0].weight]["exp_avg_sq"]
    assert_refused((t, o), (k, None), "'0/kernel' has no 'exp_avg_sq'")
    adam = keras.optimizers.Adam()
    adam.build(k.trainable_variables)
    adam._velocities = adam._velocities[:2]
    assert_refused((k, adam), (t, None), "has no 'velocities' in the optimizer")


def test_a_port_that_is_refused_leaves_both_sides_as_they_were():
    k, o, _, sample = start_training("norms")
    wrong = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5))
    assert_refused((k, o), (wrong, torch.optim.Adam(wrong.parameters())), "has no twin", xw.PortError, sample=sample)


def test_sgd_without_a_step_count_needs_step():
    k, t = twins("mlp")
    assert_refused((t, torch.optim.SGD(t.parameters(), 0.1)), (k, None), "Fix: pass step=")


def test_grade_stock_is_refused_with_the_reason():
    k, o, t, sample = start_training()
    assert_refused((k, o), (t, None), "epsilon is added before the correction", sample=sample, grade="stock")


def test_grade_stock_hands_over_rules_that_the_frameworks_own_class_has():
    k, o, t, sample = start_training(optimizer="sgd, momentum")
    report = xw.handoff((k, o), (t, None), sample=sample, grade="stock")
    assert type(report.optimizer) is torch.optim.SGD
    assert not report.optimizer._optimizer_step_pre_hooks
    assert report.training.scheduler is None


def test_an_optimizer_that_was_given_is_filled_in_place_or_refused():
    k, o, t, sample = start_training()
    mine = torch.optim.Adam(t.parameters(), 0.5)
    report = xw.handoff((k, o), (t, mine), sample=sample)
    assert report.optimizer is mine
    assert mine.param_groups[0]["lr"] == pytest.approx(0.01)
    sgd = torch.optim.SGD(twins("mlp", seed=4)[1].parameters(), 0.5)
    assert_refused((k, o), (t, sgd), "the optimizer given is SGD, and Adam is needed", sample=sample)


def test_a_constraint_is_refused():
    k, t = twins("mlp")
    k.layers[0].kernel.constraint = keras.constraints.NonNeg()
    o = running.keras_optimizer("sgd", k)
    assert_refused((k, o), (t, None), "has a constraint")


TWO_BIASES = {
    "weight decay acts on their gradients": lambda t: torch.optim.Adam(t.parameters(), weight_decay=0.1),
    "adafactor looks at the weights as well": lambda t: torch.optim.Adafactor(t.parameters()),
    "they are in two parameter groups": lambda t: torch.optim.Adam(
        [
            {"params": [t.lstm.bias_ih_l0], "lr": 0.1},
            {"params": [p for p in t.parameters() if p is not t.lstm.bias_ih_l0]},
        ]
    ),
    "only one of them is trained": lambda t: torch.optim.Adam(
        p for p in t.parameters() if p is not t.lstm.bias_ih_l0.requires_grad_(False)
    ),
}


@pytest.mark.parametrize("why", TWO_BIASES)
def test_two_biases_that_cannot_move_as_one_are_refused(why):
    k, t = twins("two_biases")
    o = TWO_BIASES[why](t)
    sample = data("two_biases", steps=1)[0][0]
    assert_refused(
        (t, o), (k, None), f"two biases that are added up move twice as fast as one, and {why}", sample=sample
    )


def test_two_biases_whose_slots_differ_are_refused():
    k, t = twins("two_biases")
    o = torch.optim.Adam(t.parameters())
    batches = data("two_biases", steps=1)
    running.torch_steps(t, o, batches)
    o.state[t.lstm.bias_hh_l0]["exp_avg"].mul_(2)
    assert_refused((t, o), (k, None), "their slots differ", sample=batches[0][0])


def test_a_step_with_a_closure_is_refused():
    k, o, t, sample = start_training()
    optimizer = xw.handoff((k, o), (t, None), sample=sample).optimizer
    with pytest.raises(xw.HandoffError, match="closure"):
        optimizer.step(lambda: None)


def test_a_scheduler_that_counts_epochs_is_refused():
    k, t = twins("mlp")
    o = torch.optim.Adam(t.parameters())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(o, 0.9)
    running.torch_steps(t, o, data("mlp", steps=2))
    assert_refused(xw.Training(t, o, scheduler), (k, None), "stepped 0 times and the optimizer 2 times")
