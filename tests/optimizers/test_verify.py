"""verify_handoff: both sides are trained on and compared against the rounding floor."""

from __future__ import annotations

import pytest

import xweights as xw

keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")

from experiments import running  # noqa: E402
from experiments.beginning import DOUBLE, fingerprint, start_training, widest_dtype  # noqa: E402
from experiments.models import Attending, data, twins  # noqa: E402


@pytest.mark.keras_backend
@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX holds float64 only if it was started with x64")
@pytest.mark.parametrize("run", [running.to_torch, running.to_keras])
def test_a_float64_model_goes_over_as_far_as_keras_computes_in_float64(run):
    result = run("norms", "adam" if run is running.to_torch else "Adam", DOUBLE, steps=(3, 3))
    narrow = widest_dtype() != DOUBLE
    assert result.difference < (1e-6 if narrow else 1e-14)
    assert ("keras computes float64 in float32 in places" in str(result.report)) == narrow


@pytest.mark.keras_backend
def test_verify_handoff_trains_copies_and_measures_the_floor():
    k, o, t, sample = start_training("norms", "adam")
    report = xw.handoff((k, o), (t, None), sample=sample)
    before = fingerprint(k, o), fingerprint(t, report.optimizer)
    proof = xw.verify_handoff((k, o), report.training, batches=data("norms", steps=3), dtypes=(None,))
    assert proof.ok, proof
    assert 0 < proof.trained[0].floor < 1e-5
    assert (fingerprint(k, o), fingerprint(t, report.optimizer)) == before


class Subclassed(keras.Model):
    """A user's model that Keras can't rebuild: its __init__ takes nothing."""

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
    wide = [result for result in proof.trained if result.dtype == DOUBLE]
    assert len(wide) == (widest_dtype() == DOUBLE)
    assert all(result.coarse and result.forward < 1e-8 for result in wide)
    assert proof.ok == (factor == 1.0), proof
    assert not wide or "keeps constants in float32" in str(proof)


def test_two_biases_that_roundings_have_set_apart_are_proved_in_float64_too():
    k, t = twins("two_biases")
    o = torch.optim.Adam(t.parameters())
    batches = data("two_biases", steps=6)
    running.torch_steps(t, o, batches[:3])
    for slot in o.state[t.lstm.bias_hh_l0].values():
        slot.mul_(1 + 2**-22 if slot.ndim else 1)
    report = xw.handoff((t, o), (k, None), sample=batches[0][0])
    proof = xw.verify_handoff((t, o), report.training, batches=batches[3:])
    assert proof.ok, proof
    assert len(proof.trained) == 1 + (widest_dtype() == DOUBLE)


def test_verify_handoff_finds_a_wrong_number():
    k, o, t, sample = start_training()
    report = xw.handoff((k, o), (t, None), sample=sample)
    state = report.optimizer.state[t[0].weight]
    state["exp_avg"].mul_(1.001)
    proof = xw.verify_handoff((k, o), report.training, batches=data("mlp", steps=3), dtypes=(None,))
    assert not proof.ok
    assert "NOT on the rounding floor" in str(proof)


@pytest.mark.keras_backend
def test_verify_handoff_that_could_train_nothing_says_so_instead_of_ok():
    k, o, t, sample = start_training()
    report = xw.handoff((k, o), (t, None), sample=sample)
    batches = data("mlp", steps=1)
    if widest_dtype() == DOUBLE:
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
