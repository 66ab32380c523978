"""The adapter notices every change of a module, and its cache has no side effects."""

from __future__ import annotations

import copy
import gc
import io
import weakref

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrize  # noqa: E402
from torch_models import MODEL, Model, by_name, describe, names, parameters_of, uncached  # noqa: E402

from xweights.core.parameter import Parameter  # noqa: E402
from xweights.errors import TargetError  # noqa: E402
from xweights_torch.adapter import ModuleAdapter  # noqa: E402
from xweights_torch.walk import walk  # noqa: E402

# What must be noticed: the adapter remembers a model, and these change it in every way.


def _replace_parameter(m):
    m.head.weight = nn.Parameter(torch.ones(2, 3))


def _replace_by_another_shape(m):
    m.head.weight = nn.Parameter(torch.ones(4, 3))


def _swap_data_for_half(m):
    m.head.weight.data = m.head.weight.data.half()


def _delete_parameter(m):
    m.head.bias = None


def _add_parameter(m):
    m.extra = nn.Parameter(torch.zeros(1))


def _add_buffer(m):
    m.register_buffer("more", torch.zeros(1))


def _make_buffer_transient(m):
    m.register_buffer("table", torch.zeros(2), persistent=False)


def _replace_module(m):
    m.head = nn.Bilinear(3, 3, 2)


def _replace_module_by_one_of_equal_shapes(m):
    m.blocks[0].dense = nn.Embedding(3, 3)


def _add_module(m):
    m.tail = nn.Linear(1, 1)


def _delete_module(m):
    del m.blocks[1]


def _share_module(m):
    m.blocks[1] = m.blocks[0]


def _tie(m):
    m.blocks[1].dense.weight = m.blocks[0].dense.weight


def _tie_by_memory(m):
    m.blocks[1].dense.weight.data = m.blocks[0].dense.weight.data


def _rename(m):
    m._modules["foot"] = m._modules.pop("head")


def _parametrize(m):
    torch.nn.utils.parametrizations.weight_norm(m.head)


def _prune(m):
    torch.nn.utils.prune.identity(m.head, "weight")


def _freeze(m):
    m.head.requires_grad_(False)


def _double(m):
    m.double()


def _write_registry(m):
    m.head._parameters["weight"] = nn.Parameter(torch.zeros(2, 3))


def _change_class(m):
    m.head.__class__ = nn.Identity


CHANGES = [
    _replace_parameter, _replace_by_another_shape, _swap_data_for_half, _delete_parameter, _add_parameter, _add_buffer,
    _make_buffer_transient, _replace_module, _replace_module_by_one_of_equal_shapes, _add_module, _delete_module,
    _share_module, _tie, _tie_by_memory, _rename, _parametrize, _prune, _freeze, _double, _write_registry,
    _change_class,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda one: one.__name__.strip("_"))
def test_a_change_of_the_model_is_noticed(change):
    model = Model()
    before = [describe(p) for p in parameters_of(model)]
    change(model)
    after = [describe(p) for p in parameters_of(model)]
    assert after == uncached(model)
    assert after != before


def test_the_settings_that_axes_depend_on_are_noticed():
    attention, conv = nn.MultiheadAttention(8, 2), nn.Conv2d(4, 4, 2, groups=4)
    assert by_name(attention)["qkv/kernel"].shape == (8, 3, 2, 4)
    assert "kernel" in by_name(conv)
    attention.num_heads = 4
    conv.in_channels = 8
    assert by_name(attention)["qkv/kernel"].shape == (8, 3, 4, 2)
    assert "kernel" in by_name(conv)


def test_removing_a_parametrization_brings_the_plain_parameter_back():
    model = Model()
    before = names(model)
    _parametrize(model)
    assert [p.name for p in parameters_of(model) if not p.hidden or p.name == "scratch"] == before
    parametrize.remove_parametrizations(model.head, "weight")
    assert names(model) == before


def test_a_parameter_keeps_working_when_its_data_is_swapped():
    layer = nn.Linear(2, 2)
    p = by_name(layer)["kernel"]
    layer.weight.data = torch.full((2, 2), 5.0)
    assert (p.read() == 5).all()


def test_the_cache_keeps_no_model_and_no_tensor_alive():
    model = Model()
    parameters_of(model)
    old = weakref.ref(model.head.weight)
    model.head.weight = nn.Parameter(torch.ones(2, 3))
    gc.collect()
    assert old() is None
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_copies_and_pickles_of_a_model_are_not_affected():
    model = Model()
    before = set(vars(model))
    parameters_of(model)
    assert set(vars(model)) == before
    twin = copy.deepcopy(model)
    assert names(twin) == MODEL
    assert not {p.identity() for p in parameters_of(twin)} & {p.identity() for p in parameters_of(model)}
    file = io.BytesIO()
    torch.save(model.state_dict(), file)


def test_a_module_with_its_own_equality_is_no_obstacle():
    class Odd(nn.Linear):
        def __eq__(self, other):
            return True

        __hash__ = None

    assert names_without_hash(Odd(2, 2)) == ["kernel", "bias"]


def names_without_hash(module):
    return [p.name for p in ModuleAdapter().parameters(module)]


def test_cached_facts_contain_no_tensor_and_so_cannot_be_stale():
    def leaves(value):
        if isinstance(value, (tuple, list)):
            for one in value:
                yield from leaves(one)
        else:
            yield value

    assert not any(isinstance(value, (torch.Tensor, nn.Module)) for value in leaves(walk(Model()).facts))


def test_the_fast_construction_of_a_parameter_fills_every_slot():
    p = parameters_of(nn.Linear(2, 2))[0]
    assert all(hasattr(p, slot) for slot in Parameter.__slots__)


def test_two_parameters_of_one_name_are_refused():
    class Clash(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_parameter("a/weight", nn.Parameter(torch.zeros(1)))
            self.a = nn.Module()
            self.a.weight = nn.Parameter(torch.zeros(1))

    with pytest.raises(TargetError, match=r"two parameters would both be called 'a/weight': a/weight, a\.weight"):
        parameters_of(Clash())
