"""A parametrized weight is one parameter: readable, and written through right_inverse or refused."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402

from xweights.errors import WriteError  # noqa: E402
from xweights_torch import backend  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*")


def visible(module):
    return {p.name: p for p in backend.adapter(module).parameters(module) if not p.hidden}


def kernel(module):
    return next(p for name, p in visible(module).items() if name.endswith("kernel"))


def read(p):
    return np.array(p.read())


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same_state(module, before):
    return all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


class Doubled(nn.Module):
    def forward(self, w):
        return w * 2

    def right_inverse(self, w):
        return w / 2


class Absolute(nn.Module):
    def forward(self, w):
        return w.abs()


class Raising(nn.Module):
    def forward(self, w):
        return w * 1

    def right_inverse(self, w):
        if float(w.sum()) == 0:
            raise ZeroDivisionError
        return w


MAKERS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "own": lambda m: parametrize.register_parametrization(m, "weight", Doubled()),
    "two": lambda m: parametrize.register_parametrization(parametrizations.weight_norm(m), "weight", Doubled()),
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "prune": lambda m: prune.l1_unstructured(m, "weight", 0.5),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_parametrized_weight_is_one_parameter_with_the_name_role_and_axes_of_the_plain_one(make):
    torch.manual_seed(1)
    layer = nn.Sequential(nn.Linear(4, 3))
    make(layer[0])
    found = visible(layer)
    assert {name: (one.role, one.axes, one.shape, one.layer) for name, one in found.items()} == {
        "0/kernel": ("kernel", ("in", "out"), (4, 3), "0"), "0/bias": ("bias", ("out",), (3,), "0"),
    }  # fmt: skip
    one = found["0/kernel"]
    assert one.native_name == "0.weight"
    assert one.storage.fallible
    assert one.trainable
    hidden = [p for p in backend.adapter(layer).parameters(layer) if p.hidden]
    assert hidden
    assert {p.layer for p in hidden} == {"0"}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("training", [True, False])
def test_reading_gives_the_value_that_the_module_uses_and_changes_nothing(make, training):
    torch.manual_seed(1)
    layer = make(nn.Linear(4, 3))
    layer.train(training)
    modes = [m.training for m in layer.modules()]
    before = state(layer)
    p = kernel(layer)
    got = read(p)
    assert same_state(layer, before)
    assert [m.training for m in layer.modules()] == modes
    layer.eval()
    x = torch.eye(4)
    with torch.no_grad():
        np.testing.assert_allclose(got.T, layer(x) - layer.bias, atol=1e-6)


@pytest.mark.parametrize("name", ["weight_norm", "own", "two", "old weight_norm"])
def test_writing_goes_through_the_inverse_in_place(name):
    torch.manual_seed(1)
    layer = MAKERS[name](nn.Linear(4, 3))
    one = kernel(layer)
    originals = {key: (id(p), p.data_ptr(), p._version) for key, p in layer.named_parameters() if key != "bias"}
    value = np.arange(12, dtype=np.float32).reshape(3, 4) / 7 - 1
    value[0, 1], value[1, 2] = 0.0, -0.0
    one.write(value)
    np.testing.assert_allclose(read(one), value, rtol=0, atol=64 * 2**-23 * np.abs(value).max())
    assert (read(one)[value == 0] == 0).all()
    np.testing.assert_allclose(layer.weight.detach(), value, atol=1e-6)
    after = {key: (id(p), p.data_ptr(), p._version) for key, p in layer.named_parameters() if key != "bias"}
    assert all(after[key][:2] == originals[key][:2] and after[key][2] > originals[key][2] for key in after)
    value[:] = 0
    assert not np.array_equal(read(one), value)


def test_the_copy_that_an_old_hook_keeps_is_brought_up_to_date():
    layer = nn.utils.weight_norm(nn.Linear(4, 3))
    p = kernel(layer)
    kept = p.backup()
    former = read(p)
    p.write(np.ones((3, 4), np.float32))
    np.testing.assert_allclose(layer.weight.detach(), np.ones((3, 4)), atol=1e-6)
    p.restore(kept)
    assert np.array_equal(layer.weight.detach(), former)
    assert np.array_equal(read(p), former)


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "orthogonal", "old weight_norm"])
def test_a_value_that_can_not_be_represented_is_refused_and_everything_is_put_back(name):
    torch.manual_seed(1)
    layer = MAKERS[name](nn.Linear(4, 3)).train()
    before = state(layer)
    p = kernel(layer)
    value = np.zeros((3, 4), np.float32) if "weight" in name else np.full((3, 4), 9, np.float32)
    with pytest.raises(WriteError, match=r"Linear.weight can't take this value|can't be inverted"):
        p.write(value)
    assert same_state(layer, before)


def test_an_orthogonal_matrix_can_be_written_to_an_orthogonal_weight():
    torch.manual_seed(1)
    layer = parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map="householder")
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0].astype(np.float32)
    p = kernel(layer)
    before = state(layer)
    try:
        p.write(q)
    except WriteError:
        assert same_state(layer, before)
    else:
        np.testing.assert_allclose(read(p), q, atol=1e-5)
    matrix = parametrizations.orthogonal(nn.Linear(4, 4))
    p = kernel(matrix)
    p.write(q)
    np.testing.assert_allclose(read(p), q, atol=1e-5)


def test_an_error_of_the_user_s_inverse_puts_everything_back():
    layer = nn.Linear(2, 2)
    parametrize.register_parametrization(layer, "weight", Raising())
    before = state(layer)
    p = kernel(layer)
    with pytest.raises(ZeroDivisionError):
        p.write(np.zeros((2, 2), np.float32))
    assert same_state(layer, before)


def test_a_weight_that_can_not_be_written_is_refused_with_reason_and_fix():
    one_way = nn.Linear(2, 2)
    parametrize.register_parametrization(one_way, "weight", Absolute())
    cases = {
        "Absolute, without a right_inverse": one_way,
        "prune.remove": prune.identity(nn.Linear(2, 2), "weight"),
        "remove_spectral_norm": nn.utils.spectral_norm(nn.Linear(2, 2)),
    }
    for text, layer in cases.items():
        p = kernel(layer)
        assert p.refusal(writing=False) is None
        assert text in p.refusal(writing=True)


def test_backup_and_restore_keep_every_bit_of_the_original_parameters():
    torch.manual_seed(1)
    layer = parametrizations.spectral_norm(nn.Linear(4, 3)).train()
    p = kernel(layer)
    before = state(layer)
    kept = p.backup()
    layer(torch.ones(1, 4))  # one power iteration
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(3)
    assert not same_state(layer, before)
    p.restore(kept)
    assert same_state(layer, before)


def test_an_edit_of_the_native_array_is_kept_by_commit():
    layer = parametrizations.weight_norm(nn.Linear(4, 3))
    p = kernel(layer)
    expected = read(p) * np.float32(0.5)
    for native in (True, False):
        with p.storage.guard():
            array = p.native(tensor=native)
            array *= 0.5
            p.commit(array, array)
        np.testing.assert_allclose(read(p), expected, atol=1e-6)
        expected = expected * np.float32(0.5)


def test_freezing_a_parametrized_weight_freezes_its_original_parameters():
    layer = parametrizations.weight_norm(nn.Linear(4, 3))
    one = kernel(layer)
    one.set_trainable(False)
    assert not one.trainable
    assert [p.requires_grad for p in layer.parameters()] == [True, False, False]


def test_a_parametrized_buffer_is_found():
    norm = nn.BatchNorm1d(2)
    parametrize.register_parametrization(norm, "running_mean", Doubled())
    assert visible(norm)["moving_mean"].axes == ("channel",)
    assert not visible(norm)["moving_mean"].trainable


def test_a_pruned_recurrent_weight_has_its_row_in_the_table():
    layer = prune.random_unstructured(nn.LSTM(2, 3), "weight_hh_l0", 0.5)
    assert list(visible(layer)) == ["l0/kernel", "l0/recurrent_kernel", "l0/bias", "l0/recurrent_bias"]


def test_a_weight_tied_before_it_was_parametrized_keeps_its_plain_name():
    p, two = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    two.weight = p.weight
    parametrize.register_parametrization(p, "weight", Doubled())
    found = visible(nn.Sequential(p, two))
    assert list(found) == ["0/kernel", "1/kernel"]
    assert found["1/kernel"].aliases == ("0/parametrizations/weight/original",)


def test_a_parametrized_module_on_meta_can_still_be_listed_and_is_refused():
    with torch.device("meta"):
        layer = parametrizations.weight_norm(nn.Linear(4, 3))
    p = kernel(layer)
    assert p.shape == (4, 3)
    assert "meta" in p.refusal(writing=False)
