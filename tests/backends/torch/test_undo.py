"""That restore brings everything back: bits, memory, place and gradient flag, whoever changed them."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from xweights.errors import WriteError  # noqa: E402
from xweights_torch import backend  # noqa: E402
from xweights_torch.dtypes import BITS, NUMPY_OF  # noqa: E402

DTYPES = sorted(NUMPY_OF, key=str)
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def one(module, name=None):
    found = backend.adapter(module).parameters(module)
    return found[0] if name is None else next(p for p in found if p.name == name)


def bits(tensor):
    tensor = tensor.detach()
    return tensor.clone() if tensor.is_complex() else tensor.view(BITS[tensor.itemsize]).clone()


def special(dtype, shape=(4, 6)):
    """Zeros of both signs, subnormals, infinities and NaNs with payloads, in the dtype's own bits."""
    rng = np.random.default_rng(5)
    raw = rng.integers(0, 256, (*shape, dtype.itemsize), dtype=np.uint8)
    return torch.from_numpy(raw).view(dtype).reshape(shape)


class Holder(nn.Module):
    def __init__(self, tensor):
        super().__init__()
        self.w = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())


# Backup and restore


def undone(layer, change, name=None):
    p = one(layer, name)
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
    assert undone(layer, lambda m: m.w.zero_()) is layer.w


def test_restore_brings_the_memory_back_and_leaves_alone_what_was_put_in_its_place():
    layer, other = Holder(special(torch.float32)), torch.full((4, 6), 3.0)
    undone(layer, lambda m: setattr(m.w, "data", other))
    assert bool((other == 3).all())
    undone(layer, lambda m: m.half())
    undone(layer, lambda m: m.w.set_(torch.zeros(2, 2)))


def test_restore_puts_the_parameter_back_into_its_place():
    def replace(m):
        m.w = nn.Parameter(torch.zeros(1))

    def delete(m):
        m.w = None

    def remove(m):
        del m.w

    for change in (replace, delete, remove):
        layer = Holder(special(torch.float32))
        assert undone(layer, change) is layer.w


def test_restore_puts_a_buffer_and_every_place_of_a_tied_parameter_back():
    norm = nn.BatchNorm1d(2)
    assert undone(norm, lambda m: m.register_buffer("running_mean", None), "moving_mean") is norm.running_mean
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight

    def untie(m):
        m[0].weight = nn.Parameter(torch.zeros(2, 2))
        m[1].weight = nn.Parameter(torch.zeros(2, 2))

    assert undone(tied, untie) is tied[0].weight is tied[1].weight


def test_restore_tells_a_recurrent_layer_of_its_old_weight():
    layer = nn.LSTM(2, 2)
    x = torch.ones(1, 1, 2)
    before = layer(x)[0]
    undone(layer, lambda m: setattr(m, "weight_ih_l0", nn.Parameter(torch.zeros(8, 2))))
    assert torch.equal(layer(x)[0], before)


def test_restore_brings_requires_grad_back():
    undone(nn.Linear(2, 2), lambda m: m.requires_grad_(False))


def test_restore_of_an_expanded_parameter_works_although_it_can_not_be_written():
    layer = Holder(torch.ones(3, 1).expand(3, 4))
    undone(layer, lambda m: m.w[:, :1].zero_())


def test_restore_says_so_where_the_parameter_was_parametrized_meanwhile():
    layer = nn.Linear(3, 3)
    p = one(layer)
    kept = p.backup()
    torch.nn.utils.parametrizations.spectral_norm(layer)
    with pytest.raises(WriteError, match="remove_parametrizations"):
        p.restore(kept)
