"""Hand-offs between Keras and PyTorch: training goes on as if nothing had happened, or nothing is changed."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

import xweights as xw

keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")

from experiments import running  # noqa: E402
from experiments.models import Attending, data, for_torch, twins  # noqa: E402
from experiments.optimizers import MUON, S  # noqa: E402

DOUBLE = "float64"


def double():
    """Return the widest dtype that Keras computes in on this backend."""
    return DOUBLE if keras.backend.backend() == "tensorflow" else "float32"


def begun(name="mlp", optimizer="adam", steps=3, dtype="float32"):
    """Return a half-trained Keras model with its optimizer, a torch twin, and a batch."""
    k, t = twins(name, dtype)
    o = running.keras_optimizer(optimizer, k)
    batches = data(name, steps=max(steps, 1))
    if steps:
        running.keras_steps(k, o, batches[:steps], dtype)
    return k, o, t, batches[0][0].astype(dtype)


def bits_of(value):
    if value is None or isinstance(value, (str, int, float, bool, tuple)):
        return repr(value).encode()
    return np.ascontiguousarray(keras.ops.convert_to_numpy(value)).tobytes()


def print_of(model, optimizer):
    """Return a hash of all weights and of all that an optimizer holds."""
    digest = hashlib.blake2b(xw.checksum(model).encode())
    if isinstance(optimizer, torch.optim.Optimizer):
        for group in optimizer.param_groups:
            digest.update(repr({k: v for k, v in group.items() if k != "params"}).encode())
            for p in group["params"]:
                for key, value in sorted(optimizer.state.get(p, {}).items()):
                    digest.update(key.encode() + value.detach().numpy().tobytes())
    elif optimizer is not None:
        for variable in optimizer.variables:
            digest.update(bits_of(variable))
    return digest.hexdigest()


# Training goes on.

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
    result = running.to_torch(model, optimizer, double(), compiled=compiled, steps=(5, 5))
    assert result.on_floor(double()), (result.difference, result.floor)
    assert result.report.exact


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [("mlp", "SGD, dampening"), ("norms", "Adam, L2"), ("cnn", "Adafactor"), ("lstm", "NAdam"), ("mlp", "Adadelta")],
)
def test_training_goes_on_in_keras_as_it_would_have_in_pytorch(model, optimizer):
    result = running.to_keras(model, optimizer, double(), steps=(5, 5))
    assert result.on_floor(double()), (result.difference, result.floor)


@pytest.mark.parametrize("way", ["to PyTorch", "to Keras"])
@pytest.mark.parametrize("model", ["gru", "attention", "embedding"])
def test_slots_take_the_way_of_their_weights_through_gates_packed_arrays_and_tables(model, way):
    run, name = (running.to_torch, "adam, decay") if way == "to PyTorch" else (running.to_keras, "AMSGrad")
    if model == "embedding" and way == "to PyTorch":
        name = "sgd, nesterov"  # for the others see below
    result = run(model, name, double(), steps=(4, 4))
    assert result.on_floor(double()), (result.difference, result.floor)
    assert result.report.exact


@pytest.mark.keras_backend
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_of_embeddings_that_keras_squares_before_it_adds_them_up_are_told_of(compiled):
    result = running.to_torch("embedding", "adam", double(), compiled=compiled, steps=(4, 4))
    apart = keras.backend.backend() == "tensorflow"
    assert result.on_floor(double()) == (not apart)
    assert result.report.exact == (not apart)
    assert ("squares (or clips) the gradients of a row one by one" in str(result.report)) == apart


@pytest.mark.keras_backend
def test_what_keras_squares_apart_is_refused_as_stock_and_comes_back_to_the_bit():
    k, o, t, sample = begun("embedding")
    before = xw.get_optimizer(k, o)
    if keras.backend.backend() == "tensorflow":
        refused((k, o), (t, None), "embedding gradients: .*one by one", sample=sample, grade="stock")
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
    refused(*sides, text, sample=data("attention", steps=1)[0][0])


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


@pytest.mark.keras_backend
@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [("adam, clipnorm", "Adam"), ("sgd, nesterov, warm cosine", "SGD"), ("rmsprop, momentum", "RMSprop"),
     ("adagrad", "Adagrad")],
)  # fmt: skip
def test_training_goes_on_in_float32_there_and_back(optimizer, kind):
    k, o, t, sample = begun("cnn", optimizer)
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
    assert running.apart(dict(xw.get_params(k2)), dict(xw.get_params(k))) < 1e-5


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
    assert running.apart(running.back(k, twins("mlp", seed=5)[1], batches[0][0]), dict(xw.get_params(t))) < 2e-6


def test_porting_the_weights_alone_is_far_off_and_said_loudly():
    k, o, t, sample = begun(optimizer="sgd, momentum", steps=6)
    report = xw.handoff((k, o), (t, None), sample=sample, grade="weights")
    assert "ONLY THE WEIGHTS" in str(report)
    assert not report.exact
    assert report.optimizer is None


def test_schedule_clipping_and_average_of_pytorch_go_over_with_training():
    k, t = twins("mlp", DOUBLE)
    o = torch.optim.SGD(t.parameters(), 0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(o, [4, 7], gamma=0.5)
    ema = torch.optim.swa_utils.AveragedModel(t, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    batches = data("mlp", steps=10)
    follow = {"scheduler": scheduler, "clip": 0.3, "each": lambda: ema.update_parameters(t)}
    running.torch_steps(t, o, batches[:5], DOUBLE, **follow)
    side = xw.Training(t, o, scheduler, ("global_norm", 0.3), ema, ema_momentum=0.9)
    report = xw.handoff(side, (k, None), sample=batches[0][0].astype(DOUBLE))
    assert {"schedule", "clipping", "moving average"} <= {part.name for part in report.parts}
    running.keras_steps(k, report.optimizer, batches[5:], DOUBLE)
    running.torch_steps(t, o, batches[5:], DOUBLE, **follow)
    handed = running.back(k, twins("mlp", DOUBLE, seed=5)[1], batches[0][0].astype(DOUBLE))
    assert running.apart(handed, dict(xw.get_params(t))) < 1e-12
    means = [value["average"] for value in xw.get_optimizer(k, report.optimizer).slots.values()]
    expected = [p.numpy() for p in xw.parameters(ema.module)]
    for mean, value in zip(means, expected, strict=True):
        np.testing.assert_allclose(mean, value, rtol=1e-11, atol=1e-14)


def test_groups_of_pytorch_keep_their_own_numbers_in_keras():
    k, t = twins("mlp", DOUBLE)
    first, *rest = list(t.parameters())
    groups = [{"params": [first], "lr": 0.02, "weight_decay": 0.1}, {"params": rest, "lr": 0.005, "betas": (0.8, 0.9)}]
    o = torch.optim.AdamW(groups)
    batches = data("mlp", steps=6)
    running.torch_steps(t, o, batches[:3], DOUBLE)
    report = xw.handoff((t, o), (k, None), sample=batches[0][0].astype(DOUBLE))
    running.keras_steps(k, report.optimizer, batches[3:], DOUBLE)
    running.torch_steps(t, o, batches[3:], DOUBLE)
    handed = running.back(k, twins("mlp", DOUBLE, seed=5)[1], batches[0][0].astype(DOUBLE))
    assert running.apart(handed, dict(xw.get_params(t))) < 1e-12


# What the report says.


def test_a_report_says_how_every_part_went_over_and_why():
    k, o, t, sample = begun("norms", "adam, accumulation, ema", steps=4)
    report = xw.handoff((k, o), (t, None), sample=sample)
    grades = {part.name: part.grade for part in report.parts}
    assert grades["adam"] == "exact (hook)"
    assert grades["moving variances"] == "exact (hook)"
    assert grades["momentum of 4"] == "exact"
    assert (report.updates, report.training.micro_steps, report.training.micro_done) == (1, 3, 1)
    assert "epsilon" in str(report)
    assert json.loads(report.to_json())["exact"] is True
    assert "| adam | exact (hook) |" in report.to_markdown()


def test_releasing_takes_every_hook_off():
    k, o, t, sample = begun("norms", "adam")
    hooks = len(t[4]._forward_hooks), len(t[4]._forward_pre_hooks)
    report = xw.handoff((k, o), (t, None), sample=sample)
    assert report.optimizer._optimizer_step_pre_hooks
    report.release()
    assert not report.optimizer._optimizer_step_pre_hooks
    assert not report.optimizer._optimizer_step_post_hooks
    assert (len(t[4]._forward_hooks), len(t[4]._forward_pre_hooks)) == hooks


def test_a_parameter_group_shows_the_true_numbers_between_steps():
    k, o, t, sample = begun(optimizer="adam, decay")
    optimizer = xw.handoff((k, o), (t, None), sample=sample).optimizer
    running.torch_steps(t, optimizer, data("mlp", steps=1))
    group = optimizer.param_groups[0]
    assert (group["eps"], group["weight_decay"]) == (1e-7, 0.02)
    assert group["lr"] == pytest.approx(0.01, rel=1e-7)


def test_dropout_is_said_to_be_impossible():
    k = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dropout(0.5)])
    t = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.5))
    o = keras.optimizers.SGD(0.1)
    o.build(k.trainable_variables)
    report = xw.handoff((k, o), (t, None), sample=np.ones((2, 4), "float32"))
    assert [part.grade for part in report.parts if part.name == "dropout"] == ["impossible"]
    assert not report.exact


L, nn = keras.layers, torch.nn


@pytest.mark.parametrize(
    ("layer", "drops"),
    [
        (lambda: L.Dropout(0.0), False), (lambda: L.SpatialDropout1D(0.2), True),
        (lambda: L.GaussianNoise(0.1), True), (lambda: L.LSTM(2, recurrent_dropout=0.1), True),
        (lambda: L.MultiHeadAttention(2, 2, dropout=0.1), True), (lambda: L.MultiHeadAttention(2, 2), False),
        (lambda: L.RandomFlip(), True), (lambda: L.Dense(2), False),
        (lambda: nn.Dropout(0.0), False), (lambda: nn.Dropout2d(0.1), True),
        (lambda: nn.MultiheadAttention(4, 2, dropout=0.1), True), (lambda: nn.LSTM(2, 2, 2, dropout=0.1), True),
        (lambda: nn.Linear(2, 2), False),
    ],
)  # fmt: skip
def test_a_layer_that_drops_at_random_is_told_from_one_that_does_not(layer, drops):
    from xweights.handing.protocol import optimizing_for

    made = layer()
    assert optimizing_for(made, "source").drops(made) == drops


# Round trips.


@pytest.mark.parametrize(
    "optimizer", ["sgd, momentum, exponential", "rmsprop, centered", "adamax", "adagrad", "adafactor", "nadam", "muon"]
)
def test_the_state_comes_back_to_the_bit_if_nothing_was_trained_in_between(optimizer):
    k, o, t, sample = begun(optimizer=optimizer)
    before = xw.get_optimizer(k, o)
    report = xw.handoff((k, o), (t, None), sample=sample)
    k2 = twins("mlp", seed=9)[0]
    again = xw.handoff((t, report.optimizer), (k2, None), sample=sample)
    assert before.diff(xw.get_optimizer(k2, again.optimizer)) == []
    assert xw.equal(k, k2)


@pytest.mark.parametrize(
    "name", ["s.safetensors", "s.npz", "s.pt", "s.weights.h5", "s.safetensors.index.json"]
)  # fmt: skip
@pytest.mark.parametrize("optimizer", ["adam, accumulation, ema", "nadam", "adafactor"])
def test_a_state_is_saved_and_loaded_to_the_bit_in_every_format(tmp_path, name, optimizer):
    k, o, _, _ = begun(optimizer=optimizer, steps=4)
    state = xw.get_optimizer(k, o)
    state.save(tmp_path / name)
    loaded = xw.OptimizerState.load(tmp_path / name)
    assert state.diff(loaded) == []
    assert (loaded.updates, loaded.micro_done) == (state.updates, state.micro_done)
    if state.schedule is not None:
        assert loaded.schedule.at(7) == state.schedule.at(7)
    momentum = xw.get_params(tmp_path / name, where="momentum/*") if optimizer == "nadam" else {}
    assert all(np.array_equal(value, state.slots[key.partition("/")[2]]["momentum"]) for key, value in momentum.items())
    assert len(momentum) == (6 if optimizer == "nadam" else 0)


def test_a_state_is_arrays_and_json():
    k, o, _, _ = begun(optimizer="adam, accumulation, ema", steps=4)
    state = xw.get_optimizer(k, o)
    arrays, meta = state.to_flat()
    assert state.diff(xw.OptimizerState.from_flat(arrays, json.loads(json.dumps(meta)))) == []


def test_a_state_in_bfloat16_is_saved_and_loaded_to_the_bit(tmp_path):
    t = torch.nn.Linear(3, 2, dtype=torch.bfloat16)
    o = torch.optim.Adam(t.parameters())
    t(torch.ones(4, 3, dtype=torch.bfloat16)).sum().backward()
    o.step()
    state = xw.get_optimizer(t, o)
    state.save(tmp_path / "s.safetensors")
    assert state.diff(xw.OptimizerState.load(tmp_path / "s.safetensors")) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("optimizer_state"), "there is no optimizer state in"),
        (lambda arrays: arrays.update(optimizer_state=np.frombuffer(b"{", np.uint8)), "is damaged"),
        (lambda arrays: arrays.update(optimizer_state=np.frombuffer(b"[]", np.uint8)), "is damaged"),
        (lambda arrays: arrays.update(optimizer_state=np.frombuffer(b'{"version": 1}', np.uint8)), "is damaged"),
        (lambda arrays: arrays.update(optimizer_state=np.frombuffer(b'{"version": 9}', np.uint8)), "version 1"),
        (lambda arrays: arrays.update({"momentum/stranger": np.ones(2)}), "is damaged: KeyError: 'stranger'"),
    ],
)
def test_a_file_that_holds_no_state_or_a_damaged_one_is_refused(tmp_path, change, message):
    k, o, _, _ = begun()
    xw.get_optimizer(k, o).save(tmp_path / "s.npz")
    arrays = dict(xw.get_params(tmp_path / "s.npz"))
    change(arrays)
    xw.save(arrays, tmp_path / "s.npz")
    with pytest.raises(xw.HandoffError, match=message):
        xw.OptimizerState.load(tmp_path / "s.npz")


def test_a_state_says_what_differs_from_another():
    k, o, _, _ = begun(steps=1)
    one = xw.get_optimizer(k, o)
    running.keras_steps(k, o, data("mlp", steps=2)[1:])
    found = xw.get_optimizer(k, o).diff(one)
    assert any("updates" in text for text in found)
    assert any(text.startswith("momentum of ") and "differs by up to" in text for text in found)


@pytest.mark.keras_backend
@pytest.mark.parametrize("rule", ["lion", "adamw", "ftrl", "muon"])
def test_one_description_is_the_same_optimizer_in_both_frameworks(rule):
    k, t = twins("mlp")
    batches = data("mlp", steps=4)
    xw.port(k, t, sample=batches[0][0])
    rule, options = ("adam", {"weight_decay": 0.02}) if rule == "adamw" else (rule, {})
    rate = xw.schedule("piecewise", boundaries=[1], values=[0.01, 0.005])
    made = []
    for model in (k, t):
        state = xw.optimizer_state(model, rule, learning_rate=rate, clip=("global_norm", 1.0), **options)
        made.append(xw.set_optimizer(model, None, state).optimizer)
    running.keras_steps(k, made[0], batches)
    running.torch_steps(t, made[1], batches)
    handed = running.back(t, twins("mlp", seed=5)[0], batches[0][0])
    assert running.apart(handed, dict(xw.get_params(k))) < 3e-6


# Refusals: nothing is changed on either side.


def refused(source, target, text, kind=xw.HandoffError, **options):
    sides = [(side.model, side.optimizer) if isinstance(side, xw.Training) else side for side in (source, target)]
    before = [print_of(*side) for side in sides]
    with pytest.raises(kind, match=text):
        xw.handoff(source, target, **options)
    assert [print_of(*side) for side in sides] == before


def test_an_optimizer_that_is_not_built_is_refused():
    k, t = twins("mlp")
    refused((k, keras.optimizers.Adam()), (t, None), "isn't built", xw.NotBuiltError)


def test_an_optimizer_of_another_model_is_refused():
    k, o, t, sample = begun()
    other_k, other_t = twins("mlp", seed=3)
    refused((other_k, o), (t, None), "of another model: 6 of its 6", sample=sample)
    foreign = torch.optim.Adam(other_t.parameters())
    refused((t, foreign), (k, None), "of another model: 6 of its 6", sample=sample)
    refused((t, o), (k, None), "no optimizer of the model's framework", sample=sample)


def test_an_optimizer_of_an_unknown_class_is_refused():
    k, t = twins("mlp")

    class Mine(keras.optimizers.Adam):
        pass

    mine = Mine()
    mine.build(k.trainable_variables)
    refused((k, mine), (t, None), "Mine is no optimizer whose rule is known")
    refused((t, torch.optim.Rprop(t.parameters())), (k, None), "Rprop is no optimizer whose rule is known")


def test_missing_slots_are_refused():
    k, t = twins("mlp")
    o = torch.optim.Adam(t.parameters())
    running.torch_steps(t, o, data("mlp", steps=1))
    del o.state[t[0].weight]["exp_avg_sq"]
    refused((t, o), (k, None), "'0/kernel' has no 'exp_avg_sq'")
    adam = keras.optimizers.Adam()
    adam.build(k.trainable_variables)
    adam._velocities = adam._velocities[:2]
    refused((k, adam), (t, None), "has no 'velocities' in the optimizer")


def test_a_port_that_is_refused_leaves_both_sides_as_they_were():
    k, o, _, sample = begun("norms")
    wrong = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5))
    refused((k, o), (wrong, torch.optim.Adam(wrong.parameters())), "has no twin", xw.PortError, sample=sample)


def test_sgd_that_counts_nothing_needs_step():
    k, t = twins("mlp")
    refused((t, torch.optim.SGD(t.parameters(), 0.1)), (k, None), "Fix: pass step=")


def test_grade_stock_is_refused_with_the_reason():
    k, o, t, sample = begun()
    refused((k, o), (t, None), "epsilon is added before the correction", sample=sample, grade="stock")


def test_grade_stock_hands_over_what_the_own_class_can_do():
    k, o, t, sample = begun(optimizer="sgd, momentum")
    report = xw.handoff((k, o), (t, None), sample=sample, grade="stock")
    assert type(report.optimizer) is torch.optim.SGD
    assert not report.optimizer._optimizer_step_pre_hooks
    assert report.training.scheduler is None


def test_an_optimizer_that_was_given_is_filled_in_place_or_refused():
    k, o, t, sample = begun()
    mine = torch.optim.Adam(t.parameters(), 0.5)
    report = xw.handoff((k, o), (t, mine), sample=sample)
    assert report.optimizer is mine
    assert mine.param_groups[0]["lr"] == pytest.approx(0.01)
    sgd = torch.optim.SGD(twins("mlp", seed=4)[1].parameters(), 0.5)
    refused((k, o), (t, sgd), "the optimizer given is SGD, and Adam is needed", sample=sample)


def test_a_constraint_is_refused():
    k, t = twins("mlp")
    k.layers[0].kernel.constraint = keras.constraints.NonNeg()
    o = running.keras_optimizer("sgd", k)
    refused((k, o), (t, None), "has a constraint")


def test_two_biases_that_are_both_trained_are_refused():
    k, t = twins("lstm")
    t.lstm.bias_hh_l0.requires_grad_(True)
    o = torch.optim.Adam(t.parameters())
    sample = data("lstm", steps=1)[0][0]
    refused((t, o), (k, None), "two biases that are added up move twice as fast", sample=sample)


def test_a_step_with_a_closure_is_refused():
    k, o, t, sample = begun()
    optimizer = xw.handoff((k, o), (t, None), sample=sample).optimizer
    with pytest.raises(xw.HandoffError, match="closure"):
        optimizer.step(lambda: None)


def test_a_scheduler_that_counts_epochs_is_refused():
    k, t = twins("mlp")
    o = torch.optim.Adam(t.parameters())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(o, 0.9)
    running.torch_steps(t, o, data("mlp", steps=2))
    refused(xw.Training(t, o, scheduler), (k, None), "stepped 0 times and the optimizer 2 times")


@pytest.mark.keras_backend
@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX holds float64 only if it was started with x64")
@pytest.mark.parametrize("run", [running.to_torch, running.to_keras])
def test_a_float64_model_goes_over_as_far_as_keras_computes_in_float64(run):
    result = run("norms", "adam" if run is running.to_torch else "Adam", DOUBLE, steps=(3, 3))
    narrow = double() != DOUBLE
    assert result.difference < (1e-6 if narrow else 1e-14)
    assert ("keras computes float64 in float32 in places" in str(result.report)) == narrow


# The proof.


@pytest.mark.keras_backend
def test_verify_handoff_trains_copies_and_measures_the_floor():
    k, o, t, sample = begun("norms", "adam")
    report = xw.handoff((k, o), (t, None), sample=sample)
    before = print_of(k, o), print_of(t, report.optimizer)
    proof = xw.verify_handoff((k, o), report.training, batches=data("norms", steps=3), dtypes=(None,))
    assert proof.ok, proof
    assert 0 < proof.trained[0].floor < 1e-5
    assert (print_of(k, o), print_of(t, report.optimizer)) == before


class Subclassed(keras.Model):
    """Of a user's own, that Keras itself can't make again: its __init__ takes nothing."""

    def __init__(self):
        super().__init__()
        self.attention = keras.layers.MultiHeadAttention(1, 8, use_bias=False)
        self.head = keras.layers.Dense(5)

    def call(self, x):
        return self.head(keras.ops.mean(self.attention(x, x), 1))


@pytest.mark.parametrize("factor", [1.0, 1.001])
def test_a_float64_proof_allows_for_constants_that_a_framework_keeps_in_float32_and_for_no_more(factor):
    t, k = Attending(heads=1), Subclassed()
    batches = data("attention", steps=6)
    sample = batches[0][0]
    k(sample)
    o = torch.optim.Adam(t.parameters())
    running.torch_steps(t, o, batches[:3])
    report = xw.handoff((t, o), (k, None), sample=sample)
    momentum = next(v for v in report.optimizer.variables if "momentum" in v.path)
    momentum.assign(momentum * factor)
    proof = xw.verify_handoff((t, o), report.training, batches=batches[3:])
    wide = [one for one in proof.trained if one.dtype == DOUBLE]
    assert len(wide) == (double() == DOUBLE)
    assert all(one.coarse and one.forward < 1e-8 for one in wide)
    assert proof.ok == (factor == 1.0), proof
    assert not wide or "keeps constants in float32" in str(proof)


def test_verify_handoff_finds_a_wrong_number():
    k, o, t, sample = begun()
    report = xw.handoff((k, o), (t, None), sample=sample)
    state = report.optimizer.state[t[0].weight]
    state["exp_avg"].mul_(1.001)
    proof = xw.verify_handoff((k, o), report.training, batches=data("mlp", steps=3), dtypes=(None,))
    assert not proof.ok
    assert "NOT on the rounding floor" in str(proof)


@pytest.mark.keras_backend
def test_verify_handoff_that_could_train_nothing_says_so_instead_of_ok():
    k, o, t, sample = begun()
    report = xw.handoff((k, o), (t, None), sample=sample)
    batches = data("mlp", steps=1)
    if double() == DOUBLE:
        assert xw.verify_handoff((k, o), report.training, batches=batches, dtypes=(DOUBLE,)).trained
        assert not xw.HandoffProof(steps=1, trained=()).ok
    else:
        with pytest.raises(xw.PortError, match=r"(?s)nothing is proved.*computes float64 in float32"):
            xw.verify_handoff((k, o), report.training, batches=batches, dtypes=(DOUBLE,))


def test_verify_handoff_sets_a_bias_without_a_true_gradient_apart():
    k = keras.Sequential(
        [
            keras.Input((12,)),
            keras.layers.Dense(8),
            keras.layers.BatchNormalization(epsilon=1e-5),
            keras.layers.Dense(5),
        ]
    )
    t = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 5))
    o = running.keras_optimizer("adam", k)
    batches = data("mlp", steps=6)
    running.keras_steps(k, o, batches[:3])
    report = xw.handoff((k, o), (t, None), sample=batches[0][0])
    # In float64 the noise is too small to be seen beside the momentum that the float32 steps have left.
    proof = xw.verify_handoff((k, o), report.training, batches=batches[3:], dtypes=(None,))
    assert [row.name for row in proof.trained[0].rows if row.noise] == ["0/bias"]
    assert proof.ok, proof


# Schedules, batches, masks.

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
def test_a_schedule_of_keras_is_read_and_made_again(name):
    from xweights_keras.optimizers_rates import NeutralRate, make_schedule, read_schedule

    given = SCHEDULES[name]()
    read = read_schedule(given, 0)
    wave = "cosine" in read.kind
    expected = [float(given(step)) for step in range(30)]
    formula = xw.RateSchedule(read.kind, read.rate, read.options, read.precision)
    np.testing.assert_allclose(
        [formula.at(step) for step in range(30)], expected, rtol=3e-6 if wave else 3e-7, atol=1e-9
    )
    if wave:
        assert [read.at(step) for step in range(30)] == expected
    assert [float(make_schedule(read)(step)) for step in range(30)] == expected
    own = NeutralRate(formula)
    copy = NeutralRate.from_config(json.loads(json.dumps(own.get_config())))
    np.testing.assert_allclose([float(copy(step)) for step in range(30)], expected, rtol=3e-6, atol=1e-9)


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


def test_a_schedule_that_is_saved_writes_down_what_it_would_ask_for():
    k, o, _, _ = begun(optimizer="adam, cosine")
    state = xw.get_optimizer(k, o)
    arrays, meta = state.to_flat()
    loaded = xw.OptimizerState.from_flat(arrays, json.loads(json.dumps(meta)))
    assert loaded.schedule.live is None
    assert [loaded.schedule.at(step) for step in range(3, 40)] == [state.schedule.at(step) for step in range(3, 40)]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_of_pytorch_is_read_and_made_again(name):
    from xweights_torch.optimizers_rates import make_scheduler, read_scheduler

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


def test_a_scheduler_that_says_nothing_about_itself_is_refused():
    from xweights_torch.optimizers_rates import read_scheduler

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
        (lambda: xw.dropout_mask((2,), 1.0, seed=0, name="a", step=0), "0 <= rate < 1"),
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
    assert whole[0].tolist() == [int(one) for one in next(xw.batches(10, 4, seed=1))]


def test_dropout_masks_are_zero_with_the_probability_that_was_asked_for():
    mask = xw.dropout_mask((200, 100), 0.3, seed=0, name="drop", step=2)
    assert set(np.unique(mask)) == {np.float32(0), np.float32(1 / 0.7)}
    assert abs((mask == 0).mean() - 0.3) < 0.02
    assert not np.array_equal(mask, xw.dropout_mask((200, 100), 0.3, seed=0, name="drop", step=3))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["norms", "lstm"])
def test_both_sides_go_on_compiled(name):
    k, o, t, sample = begun(name, "adam, decay")
    report = xw.handoff((k, o), (t, None), sample=sample)
    proof = xw.verify_handoff((k, o), report.training, batches=data(name, steps=10), compiled=True)
    assert proof.ok, proof
    assert [one.dtype for one in proof.trained] == ["float32", "float64"]


@pytest.mark.slow
def test_a_compiled_optimizer_step_obeys_the_hook():
    batches = data("mlp", steps=7)
    ends = []
    for compiled in (False, True):
        k, o, t, sample = begun(optimizer="adam, eps 1e-3")
        optimizer = xw.handoff((k, o), (t, None), sample=sample).optimizer
        if compiled:
            optimizer.step = torch.compile(optimizer.step, backend="eager")
        running.torch_steps(t, optimizer, batches[3:])
        ends.append(dict(xw.get_params(t)))
    # Without the hook it would be 1e-2.
    assert running.apart(*ends) < 1e-4
