"""restore brings back bits, memory, registration and gradient flag, whoever changed them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch_tensors import FLOATS, Holder, bits, parameter_of, special  # noqa: E402

from xweights.errors import WriteError  # noqa: E402

# Backup and restore


def check_undo(layer, change, name=None):
    p = parameter_of(layer, name)
    tensor, before = p.handle.tensor, bits(p.handle.tensor)
    memory, form = tensor.data_ptr(), (tensor.dtype, tensor.shape, tensor.requires_grad, tensor.device)
    kept = p.backup()
    with torch.no_grad():
        change(layer)
    p.restore(kept)
    assert torch.equal(bits(tensor), before)
    assert (tensor.dtype, tensor.shape, tensor.requires_grad, tensor.device) == form
    assert tensor.data_ptr() == memory
    return tensor


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float8_e5m2, torch.int8], ids=str)
def test_restore_brings_every_bit_back_after_a_write_in_place(dtype):
    layer = Holder(special(dtype))
    assert check_undo(layer, lambda m: m.w.zero_()) is layer.w


def test_restore_brings_the_memory_back_and_leaves_its_replacement_alone():
    layer, other = Holder(special(torch.float32)), torch.full((4, 6), 3.0)
    check_undo(layer, lambda m: setattr(m.w, "data", other))
    assert bool((other == 3).all())
    check_undo(layer, lambda m: m.half())
    check_undo(layer, lambda m: m.w.set_(torch.zeros(2, 2)))


def test_restore_puts_the_parameter_back_into_its_place():
    def replace(m):
        m.w = nn.Parameter(torch.zeros(1))

    def delete(m):
        m.w = None

    def remove(m):
        del m.w

    for change in (replace, delete, remove):
        layer = Holder(special(torch.float32))
        assert check_undo(layer, change) is layer.w


def test_restore_puts_a_buffer_and_every_path_of_a_tied_parameter_back():
    norm = nn.BatchNorm1d(2)
    assert check_undo(norm, lambda m: m.register_buffer("running_mean", None), "moving_mean") is norm.running_mean
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight

    def untie(m):
        m[0].weight = nn.Parameter(torch.zeros(2, 2))
        m[1].weight = nn.Parameter(torch.zeros(2, 2))

    assert check_undo(tied, untie) is tied[0].weight is tied[1].weight


def test_restore_registers_the_old_weight_of_a_recurrent_layer():
    layer = nn.LSTM(2, 2)
    x = torch.ones(1, 1, 2)
    before = layer(x)[0]
    check_undo(layer, lambda m: setattr(m, "weight_ih_l0", nn.Parameter(torch.zeros(8, 2))))
    assert torch.equal(layer(x)[0], before)


def test_restore_brings_requires_grad_back():
    check_undo(nn.Linear(2, 2), lambda m: m.requires_grad_(False))


def test_restore_of_an_expanded_parameter_works_although_it_can_not_be_written():
    layer = Holder(torch.ones(3, 1).expand(3, 4))
    check_undo(layer, lambda m: m.w[:, :1].zero_())


def test_restore_says_so_where_the_parameter_was_parametrized_meanwhile():
    layer = nn.Linear(3, 3)
    p = parameter_of(layer)
    kept = p.backup()
    torch.nn.utils.parametrizations.spectral_norm(layer)
    with pytest.raises(WriteError, match="remove_parametrizations"):
        p.restore(kept)
