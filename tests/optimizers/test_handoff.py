"""Hand-offs between Keras and PyTorch: training continues as if uninterrupted."""

from __future__ import annotations

import numpy as np
import pytest

import xweights as xw

keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")

from experiments import running  # noqa: E402
from experiments.beginning import assert_refused, start_training, widest_dtype  # noqa: E402
from experiments.models import data, for_torch, twins  # noqa: E402
from experiments.optimizers import MUON  # noqa: E402

LIMIT = {"float32": 1e-6, "float64": 1e-12}
# Eagerly JAX compiles each operation of a loop over time by itself.
COMPILED = keras.backend.backend() == "jax"
THIN = [
    ("mlp", "sgd, momentum, decay", False),
    ("norms", "adam", True),
    ("cnn", "sgd, momentum, exponential", False),
    ("lstm", "rmsprop, momentum", False),
    ("norms", "adam, accumulation, ema", False),
    ("mlp", "muon", False),
]


@pytest.mark.parametrize(("model", "optimizer", "compiled"), THIN)
def test_training_goes_on_in_pytorch_as_it_would_have_in_keras(model, optimizer, compiled):
    result = running.to_torch(model, optimizer, widest_dtype(), compiled=compiled, steps=(5, 5))
    assert result.on_floor(widest_dtype()), (result.difference, result.floor)
    assert result.report.exact


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [("mlp", "SGD, dampening"), ("norms", "Adam, L2"), ("cnn", "Adafactor"), ("lstm", "NAdam"), ("mlp", "Adadelta")],
)
def test_training_goes_on_in_keras_as_it_would_have_in_pytorch(model, optimizer):
    result = running.to_keras(model, optimizer, widest_dtype(), steps=(5, 5))
    assert result.on_floor(widest_dtype()), (result.difference, result.floor)


@pytest.mark.parametrize("way", ["to PyTorch", "to Keras"])
@pytest.mark.parametrize("model", ["gru", "attention", "embedding"])
def test_slots_are_ported_like_their_weights_through_gates_packed_arrays_and_tables(model, way):
    run, name = (running.to_torch, "adam, decay") if way == "to PyTorch" else (running.to_keras, "AMSGrad")
    if model == "embedding" and way == "to PyTorch":
        name = "sgd, nesterov"  # for the others see below
    result = run(model, name, widest_dtype(), steps=(4, 4))
    assert result.on_floor(widest_dtype()), (result.difference, result.floor)
    assert result.report.exact


@pytest.mark.parametrize(
    "name",
    [pytest.param("Adam", marks=pytest.mark.keras_backend),
     "SGD, momentum", "AdamW", "NAdam", "RMSprop, centered, momentum"],
)  # fmt: skip
def test_two_biases_that_are_both_trained_become_one_that_moves_twice_as_fast(name):
    result = running.to_keras("two_biases", name, widest_dtype(), compiled=COMPILED, steps=(5, 5))
    assert result.on_floor(widest_dtype()), (result.difference, result.floor)
    assert result.report.exact
    assert "which moves twice as fast" in str(result.report)


@pytest.mark.parametrize(
    "clip", [None, pytest.param(("global_norm", 0.3), marks=pytest.mark.keras_backend), ("norm", 0.1)]
)
def test_a_bias_that_was_two_is_two_again_back_in_pytorch_and_keeps_its_average(clip):
    k, t = twins("two_biases", widest_dtype())
    o = torch.optim.Adam(t.parameters(), 0.01)
    ema = torch.optim.swa_utils.AveragedModel(t, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    batches = data("two_biases", steps=9)
    sample = batches[0][0].astype(widest_dtype())
    follow = {"each": lambda: ema.update_parameters(t), "clip": clip}
    running.torch_steps(t, o, batches[:3], widest_dtype(), **follow)
    report = xw.handoff(xw.Training(t, o, None, clip, ema, ema_momentum=0.9), (k, None), sample=sample)
    running.keras_steps(k, report.optimizer, batches[3:6], widest_dtype(), compiled=COMPILED)
    again = twins("two_biases", widest_dtype(), seed=7)[1]
    report = xw.handoff((k, report.optimizer), (again, None), sample=sample)
    running.torch_steps(again, report.optimizer, batches[6:], widest_dtype())
    running.torch_steps(t, o, batches[3:], widest_dtype(), **follow)
    assert running.distance(dict(xw.get_params(again)), dict(xw.get_params(t))) < LIMIT[widest_dtype()]
    means = [dict(xw.get_params(average.module)) for average in (report.training.ema, ema)]
    assert running.distance(*means) < LIMIT[widest_dtype()]


@pytest.mark.keras_backend
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_of_embeddings_that_keras_squares_before_adding_are_reported(compiled):
    result = running.to_torch("embedding", "adam", widest_dtype(), compiled=compiled, steps=(4, 4))
    apart = keras.backend.backend() == "tensorflow"
    assert result.on_floor(widest_dtype()) == (not apart)
    assert result.report.exact == (not apart)
    assert ("squares (or clips) the gradients of a row one by one" in str(result.report)) == apart


@pytest.mark.keras_backend
def test_separately_squared_gradients_are_refused_as_stock_and_come_back_to_the_bit():
    k, o, t, sample = start_training("embedding")
    before = xw.get_optimizer(k, o)
    if keras.backend.backend() == "tensorflow":
        assert_refused((k, o), (t, None), "embedding gradients: .*one by one", sample=sample, grade="stock")
    report = xw.handoff((k, o), (t, None), sample=sample)
    k2 = twins("embedding", seed=9)[0]
    again = xw.handoff((t, report.optimizer), (k2, None), sample=sample)
    assert before.diff(xw.get_optimizer(k2, again.optimizer)) == []
    running.torch_steps(t, report.optimizer, data("embedding", steps=1))
    assert all("rows" not in group.variant for group in xw.get_optimizer(t, report.optimizer).groups)


@pytest.mark.parametrize("way", ["to PyTorch", "to Keras"])
def test_a_rule_that_looks_at_whole_arrays_is_refused_where_they_are_packed(way):
    k, t = twins("attention")
    if way == "to PyTorch":
        o = running.keras_optimizer("lamb", k)
        running.keras_steps(k, o, data("attention", steps=1))
        sides = (k, o), (t, None)
    else:
        o = torch.optim.Adafactor(t.parameters())
        running.torch_steps(t, o, data("attention", steps=1))
        sides = (t, o), (k, None)
    text = "isn't one array on both sides, and (lamb|adafactor) looks at whole arrays"
    assert_refused(*sides, text, sample=data("attention", steps=1)[0][0])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("optimizer", list(MUON))
def test_pytorchs_muon_goes_on_in_keras_with_its_rounding_to_bfloat16(optimizer, compiled):
    result = running.to_keras("matrices", optimizer, compiled=compiled, steps=(5, 5))
    assert result.difference < 2e-2  # mostly 1e-7; test_formulas holds the rule itself against PyTorch's
    assert [part.grade for part in result.report.parts if part.name == "muon"] == ["close"]
    assert "bfloat16" in str(result.report)
    assert not result.report.exact


@pytest.mark.parametrize("optimizer", ["SGD", "SGD, momentum", "SGD, dampening", "SGD, nesterov"])
def test_keras_own_sgd_goes_on_where_pytorchs_left_off(optimizer):
    result = running.to_keras("mlp", optimizer, steps=(3, 3))
    assert result.on_floor("float32"), (result.difference, result.floor)
    assert [part.grade for part in result.report.parts if part.name == "sgd"] == ["stock"]


@pytest.mark.parametrize("model", ["mlp", "two_biases"])
def test_a_momentum_outlives_a_learning_rate_of_0(model):
    k, t = twins(model)
    o = torch.optim.SGD(t.parameters(), 0.05, momentum=0.9)
    batches = data(model, steps=6)
    running.torch_steps(t, o, batches[:3])
    o.param_groups[0]["lr"] = 0.0
    report = xw.handoff((t, o), (k, None), sample=batches[0][0], step=3)
    report.optimizer.learning_rate = o.param_groups[0]["lr"] = 0.05
    running.keras_steps(k, report.optimizer, batches[3:])
    running.torch_steps(t, o, batches[3:])
    handed = running.back(k, twins(model, seed=5)[1], batches[0][0])
    assert running.distance(handed, dict(xw.get_params(t))) < LIMIT["float32"]


@pytest.mark.keras_backend
@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [("adam, clipnorm", "Adam"), ("sgd, nesterov, warm cosine", "SGD"), ("rmsprop, momentum", "RMSprop"),
     ("adagrad", "Adagrad")],
)  # fmt: skip
def test_training_goes_on_in_float32_there_and_back(optimizer, kind):
    k, o, t, sample = start_training("cnn", optimizer)
    report = xw.handoff((k, o), (t, None), sample=sample)
    batches = data("cnn", steps=6)
    running.torch_steps(t, report.optimizer, batches[:3])
    k2 = twins("cnn", seed=9)[0]
    again = xw.handoff((t, report.optimizer), (k2, None), sample=for_torch(sample))
    assert again.updates == 6
    assert type(again.optimizer).__name__ == kind
    running.keras_steps(k2, again.optimizer, batches[3:])
    running.keras_steps(k, o, batches)
    # An error of the momentum alone would be 1e-2.
    assert running.distance(dict(xw.get_params(k2)), dict(xw.get_params(k))) < 1e-5


@pytest.mark.keras_backend
def test_a_rule_of_pytorchs_goes_on_in_a_compiled_keras_step():
    k, t = twins("mlp")
    o = torch.optim.AdamW(t.parameters(), 0.01, weight_decay=0.02)
    batches = data("mlp", steps=6)
    running.torch_steps(t, o, batches[:3])
    report = xw.handoff((t, o), (k, None), sample=batches[0][0])
    assert [part.grade for part in report.parts if part.name == "adam"] == ["exact (shim)"]
    running.keras_steps(k, report.optimizer, batches[3:], compiled=True)
    running.torch_steps(t, o, batches[3:])
    assert running.distance(running.back(k, twins("mlp", seed=5)[1], batches[0][0]), dict(xw.get_params(t))) < 2e-6


def test_porting_the_weights_alone_is_far_off_and_warned_about():
    k, o, t, sample = start_training(optimizer="sgd, momentum", steps=6)
    report = xw.handoff((k, o), (t, None), sample=sample, grade="weights")
    assert "ONLY THE WEIGHTS" in str(report)
    assert not report.exact
    assert report.optimizer is None


def test_schedule_clipping_and_average_of_pytorch_go_over_with_training():
    k, t = twins("mlp", widest_dtype())
    o = torch.optim.SGD(t.parameters(), 0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(o, [4, 7], gamma=0.5)
    ema = torch.optim.swa_utils.AveragedModel(t, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    batches = data("mlp", steps=10)
    follow = {"scheduler": scheduler, "clip": ("global_norm", 0.3), "each": lambda: ema.update_parameters(t)}
    running.torch_steps(t, o, batches[:5], widest_dtype(), **follow)
    side = xw.Training(t, o, scheduler, ("global_norm", 0.3), ema, ema_momentum=0.9)
    report = xw.handoff(side, (k, None), sample=batches[0][0].astype(widest_dtype()))
    assert {"schedule", "clipping", "moving average"} <= {part.name for part in report.parts}
    running.keras_steps(k, report.optimizer, batches[5:], widest_dtype())
    running.torch_steps(t, o, batches[5:], widest_dtype(), **follow)
    handed = running.back(k, twins("mlp", widest_dtype(), seed=5)[1], batches[0][0].astype(widest_dtype()))
    assert running.distance(handed, dict(xw.get_params(t))) < LIMIT[widest_dtype()]
    means = [value["average"] for value in xw.get_optimizer(k, report.optimizer).slots.values()]
    expected = [p.numpy() for p in xw.parameters(ema.module)]
    for mean, value in zip(means, expected, strict=True):
        np.testing.assert_allclose(mean, value, rtol=10 * LIMIT[widest_dtype()], atol=LIMIT[widest_dtype()])


def test_groups_of_pytorch_keep_their_own_numbers_in_keras():
    k, t = twins("mlp", widest_dtype())
    first, *rest = list(t.parameters())
    groups = [{"params": [first], "lr": 0.02, "weight_decay": 0.1}, {"params": rest, "lr": 0.005, "betas": (0.8, 0.9)}]
    o = torch.optim.AdamW(groups)
    batches = data("mlp", steps=6)
    running.torch_steps(t, o, batches[:3], widest_dtype())
    report = xw.handoff((t, o), (k, None), sample=batches[0][0].astype(widest_dtype()))
    running.keras_steps(k, report.optimizer, batches[3:], widest_dtype())
    running.torch_steps(t, o, batches[3:], widest_dtype())
    handed = running.back(k, twins("mlp", widest_dtype(), seed=5)[1], batches[0][0].astype(widest_dtype()))
    assert running.distance(handed, dict(xw.get_params(t))) < LIMIT[widest_dtype()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["norms", "lstm"])
def test_both_sides_go_on_compiled(name):
    k, o, t, sample = start_training(name, "adam, decay")
    report = xw.handoff((k, o), (t, None), sample=sample)
    proof = xw.verify_handoff((k, o), report.training, batches=data(name, steps=10), compiled=True)
    assert proof.ok, proof
    assert [result.dtype for result in proof.trained] == ["float32", "float64"]


@pytest.mark.slow
def test_a_compiled_optimizer_step_runs_the_hook():
    batches = data("mlp", steps=7)
    ends = []
    for compiled in (False, True):
        k, o, t, sample = start_training(optimizer="adam, eps 1e-3")
        optimizer = xw.handoff((k, o), (t, None), sample=sample).optimizer
        if compiled:
            optimizer.step = torch.compile(optimizer.step, backend="eager")
        running.torch_steps(t, optimizer, batches[3:])
        ends.append(dict(xw.get_params(t)))
    # Without the hook it would be 1e-2.
    assert running.distance(*ends) < 1e-4
