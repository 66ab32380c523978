"""Learning rate schedules, batches and dropout masks shared by both frameworks."""

from __future__ import annotations

import json

import numpy as np
import pytest

import xweights as xw

keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")

from experiments.beginning import start_training  # noqa: E402
from experiments.optimizers import S  # noqa: E402

SCHEDULES = {
    "exponential": lambda: S.ExponentialDecay(0.1, 7, 0.6),
    "staircase": lambda: S.ExponentialDecay(0.1, 7, 0.6, staircase=True),
    "inverse time": lambda: S.InverseTimeDecay(0.1, 5, 0.5),
    "piecewise": lambda: S.PiecewiseConstantDecay([3, 9], [0.1, 0.05, 0.01]),
    "polynomial": lambda: S.PolynomialDecay(0.1, 20, 0.001, power=2.0),
    "cycle": lambda: S.PolynomialDecay(0.1, 6, 0.001, cycle=True),
    "cosine": lambda: S.CosineDecay(0.1, 20, alpha=0.1),
    "warm-up": lambda: S.CosineDecay(0.0, 20, warmup_target=0.1, warmup_steps=5),
    "restarts": lambda: S.CosineDecayRestarts(0.1, 6, t_mul=1.5, m_mul=0.7),
}


@pytest.mark.keras_backend
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_of_keras_is_read_and_rebuilt(name):
    from xweights_keras.optimizers.schedules import NeutralRate, make_schedule, read_schedule

    given = SCHEDULES[name]()
    read = read_schedule(given, 0)
    wave = "cosine" in read.kind
    expected = [float(given(step)) for step in range(30)]
    formula = xw.RateSchedule(read.kind, read.rate, read.options, read.precision)
    # Where a cycle ends (6, 6 + 9), Keras' float32 logarithm decides whether the next has begun, and processors differ
    # in its last bit: 0 or 0.049 at step 15. What was read follows Keras there, too; the formula needn't.
    steps = [step for step in range(30) if name != "restarts" or step not in (6, 15)]
    certain = [expected[step] for step in steps]
    rtol = 3e-6 if wave else 3e-7
    np.testing.assert_allclose([formula.at(step) for step in steps], certain, rtol=rtol, atol=1e-9)
    if wave:
        assert [read.at(step) for step in range(30)] == expected
    assert [float(make_schedule(read)(step)) for step in range(30)] == expected
    own = NeutralRate(formula)
    copy = NeutralRate.from_config(json.loads(json.dumps(own.get_config())))
    np.testing.assert_allclose([float(copy(step)) for step in steps], certain, rtol=3e-6, atol=1e-9)


R = torch.optim.lr_scheduler
SCHEDULERS = {
    "exponential": lambda o: R.ExponentialLR(o, 0.9),
    "step": lambda o: R.StepLR(o, 4, 0.5),
    "milestones": lambda o: R.MultiStepLR(o, [3, 8], 0.1),
    "constant": lambda o: R.ConstantLR(o, 0.5, 4),
    "linear": lambda o: R.LinearLR(o, 0.2, 1.0, 6),
    "polynomial": lambda o: R.PolynomialLR(o, 9, 2.0),
    "cosine climbs again": lambda o: R.CosineAnnealingLR(o, 8, 0.001),
    "restarts": lambda o: R.CosineAnnealingWarmRestarts(o, 5, 2, 0.001),
    "warm-up": lambda o: R.SequentialLR(o, [R.LinearLR(o, 0.1, 1.0, 4), R.CosineAnnealingLR(o, 10)], [4]),
}


def test_a_saved_schedule_records_the_values_it_would_compute():
    k, o, _, _ = start_training(optimizer="adam, cosine")
    state = xw.get_optimizer(k, o)
    arrays, meta = state.to_flat()
    loaded = xw.OptimizerState.from_flat(arrays, json.loads(json.dumps(meta)))
    assert loaded.schedule.live is None
    assert [loaded.schedule.at(step) for step in range(3, 40)] == [state.schedule.at(step) for step in range(3, 40)]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_of_pytorch_is_read_and_rebuilt(name):
    from xweights_torch.optimizers.schedules import make_scheduler, read_scheduler

    def rates(o, scheduler):
        made = []
        for _ in range(25):
            made.append(o.param_groups[0]["lr"])
            scheduler.step()
        return made

    o = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1)
    scheduler = SCHEDULERS[name](o)
    read, factors = read_scheduler(scheduler, o)
    expected = rates(o, scheduler)
    assert factors == [1.0]
    np.testing.assert_allclose([read.at(step) for step in range(25)], expected, rtol=1e-12, atol=1e-17)
    o2 = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 1.0)
    np.testing.assert_allclose(rates(o2, make_scheduler(o2, read)), expected, rtol=1e-12, atol=1e-17)


def test_a_scheduler_without_a_known_formula_is_refused():
    from xweights_torch.optimizers.schedules import read_scheduler

    o = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1)
    with pytest.raises(xw.HandoffError, match="a function says nothing about itself"):
        read_scheduler(R.LambdaLR(o, lambda step: 1.0), o)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: xw.schedule("cosin", 0.1), "Near names: 'cosine'"),
        (lambda: xw.schedule("cosine", 0.1), "needs steps="),
        (lambda: xw.schedule("cosine", 0.1, steps=0), "steps= is a number > 0"),
        (lambda: xw.schedule("cosine", -0.1, steps=3), "rate= is a number >= 0"),
        (lambda: xw.schedule("constant", 0.1, steps=3), "takes no steps="),
        (lambda: xw.schedule("piecewise", boundaries=[1], values=[1.0]), "one more entry"),
        (lambda: xw.batches(0, 4, seed=0), "count= is a whole number >= 1"),
        (lambda: xw.batches(3, 4, seed=0, drop_last=True), "leaves no batch"),
        (lambda: xw.batches(3, 4, seed=0, epochs="2"), "epochs= is a whole number >= 0"),
        (lambda: xw.batches(3, 4, seed=0, epochs=1.5), "epochs= is a whole number >= 0"),
        (lambda: xw.dropout_mask((2,), 1.0, seed=0, name="a", step=0), "0 <= rate < 1"),
        (lambda: xw.dropout_mask((2,), 0.5, seed=0, name=1, step=0), "name= is the name of a layer"),
        (lambda: xw.dropout_mask((2,), 0.5, seed=0, name="a", step=1.0), "Fix: int.step."),
        (lambda: xw.dropout_mask((2,), 0.5, seed=0, name="a", step=torch.tensor(1)), "step= is a whole number"),
        (lambda: xw.optimizer_state(torch.nn.Linear(1, 1), "adan", learning_rate=0.1), "Near names: 'adam'"),
        (lambda: xw.optimizer_state(torch.nn.Linear(1, 1), "adam", learning_rate=-1), "learning_rate= is a number"),
    ],
)
def test_wrong_arguments_are_refused_with_the_reason(call, text):
    with pytest.raises(xw.HandoffError.__mro__[1], match=text):
        call()


def test_batches_are_every_row_once_an_epoch_and_go_on_after_a_hand_off():
    whole = list(xw.batches(10, 4, seed=1, epochs=2))
    assert [len(rows) for rows in whole] == [4, 4, 2] * 2
    for epoch in (whole[:3], whole[3:]):
        assert sorted(np.concatenate(epoch).tolist()) == list(range(10))
    rest = list(xw.batches(10, 4, seed=1, epochs=2, skip=4))
    assert [rows.tolist() for rows in rest] == [rows.tolist() for rows in whole[4:]]
    # The same numbers for ever: a change of them would change every experiment.
    assert whole[0].tolist() == [int(index) for index in next(xw.batches(10, 4, seed=1))]


def test_dropout_masks_are_zero_with_the_probability_that_was_asked_for():
    mask = xw.dropout_mask((200, 100), 0.3, seed=0, name="drop", step=2)
    assert set(np.unique(mask)) == {np.float32(0), np.float32(1 / 0.7)}
    assert abs((mask == 0).mean() - 0.3) < 0.02
    assert not np.array_equal(mask, xw.dropout_mask((200, 100), 0.3, seed=0, name="drop", step=3))
