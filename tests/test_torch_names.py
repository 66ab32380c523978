"""What the parameters of a torch module are called, and that no change of its structure goes unnoticed."""

from __future__ import annotations

import copy
import gc
import io
import weakref

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrize  # noqa: E402

from xweights.errors import TargetError  # noqa: E402
from xweights.parameter import Parameter  # noqa: E402
from xweights_torch import backend  # noqa: E402
from xweights_torch.adapter import ModuleAdapter  # noqa: E402
from xweights_torch.walking import walk  # noqa: E402


def listed(module):
    return list(backend.adapter(module).parameters(module))


def by_name(module):
    return {one.name: one for one in listed(module)}


def names(module):
    return [one.name for one in listed(module)]


def uncached(module):
    return [describe(one) for one in ModuleAdapter().parameters(module)]


def describe(one):
    return (
        one.name, one.native_name, one.role, one.layer, one.gates, one.aliases, one.layout, one.dtype, one.hidden,
        one.trainable, one.storage.identity(one.handle),
    )  # fmt: skip


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.norm(self.dense(x)) * self.scale


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(3, 2)
        self.register_buffer("table", torch.zeros(2))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


BLOCK = ["scale", "dense/kernel", "dense/bias", "norm/gamma", "norm/beta", "norm/moving_mean", "norm/moving_variance",
         "norm/num_batches_tracked"]  # fmt: skip
MODEL = ["table", "scratch", *[f"blocks/{i}/{name}" for i in range(2) for name in BLOCK], "head/kernel", "head/bias"]


def test_names_are_attribute_paths_in_the_order_of_state_dict():
    model = Model()
    found = listed(model)
    assert [one.name for one in found] == MODEL
    assert [one.native_name for one in found if not one.hidden] == list(model.state_dict())
    assert by_name(model)["blocks/1/dense/kernel"].layer == "blocks/1/dense"


def test_a_lone_layer_and_a_lone_parameter_have_no_path():
    assert [(one.name, one.layer) for one in listed(nn.Linear(2, 2))] == [("kernel", ""), ("bias", "")]
    (one,) = listed(nn.Parameter(torch.zeros(2, 3)))
    assert (one.name, one.native_name, one.axes, one.shape) == ("parameter", "parameter", None, (2, 3))


def test_buffers_are_not_trainable_and_those_that_are_not_persistent_are_hidden():
    found = by_name(Model())
    assert (found["table"].trainable, found["table"].hidden) == (False, False)
    assert (found["scratch"].trainable, found["scratch"].hidden) == (False, True)
    assert [one.name for one in found.values() if one.hidden] == ["scratch"]


def test_trainable_is_read_live():
    model = Model()
    one = by_name(model)["head/bias"]
    assert one.trainable
    model.head.bias.requires_grad_(False)
    assert not one.trainable


def test_bare_tensors_and_other_objects_are_no_targets():
    assert backend.is_tensor(torch.zeros(2))
    assert not backend.is_tensor(nn.Parameter(torch.zeros(2)))
    assert backend.adapter(torch.zeros(2)) is None
    assert backend.adapter(torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=1.0)) is None


# Wrappers


def test_the_prefix_of_a_compiled_module_is_stripped_at_any_depth():
    assert names(torch.compile(Model(), backend="eager")) == MODEL
    model = Model()
    model.head = torch.compile(model.head, backend="eager")
    assert names(model) == MODEL
    assert by_name(model)["head/kernel"].native_name == "head._orig_mod.weight"


def test_the_prefix_of_data_parallel_is_stripped():
    assert names(nn.DataParallel(Model())) == MODEL
    assert names(torch.compile(nn.DataParallel(Model()), backend="eager")) == MODEL


def test_an_average_of_a_model_has_the_names_of_the_model():
    assert names(torch.optim.swa_utils.AveragedModel(Model())) == ["n_averaged", *MODEL]


def test_a_module_that_is_merely_called_module_keeps_its_name():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)
            self._orig_mod = nn.Linear(2, 2)

    assert names(Holder()) == ["module/kernel", "module/bias", "_orig_mod/kernel", "_orig_mod/bias"]


def test_ddp_is_seen_through():
    import torch.distributed as dist

    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert names(nn.parallel.DistributedDataParallel(Model())) == MODEL
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_module_has_the_names_and_axes_of_the_module_it_was_made_from():
    plain = nn.Sequential(nn.Conv2d(4, 8, 2, groups=4), nn.BatchNorm2d(8), nn.Linear(3, 3))
    scripted = torch.jit.script(plain)
    assert [describe(one)[:8] for one in listed(scripted)] == [describe(one)[:8] for one in listed(plain)]
    one = by_name(scripted)["2/kernel"]
    one.storage.write(one.handle, np.ones((3, 3), np.float32))
    assert scripted(torch.zeros(1, 4, 4, 4)).shape[-1] == 3
    assert bool((scripted.get_parameter("2.weight") == 1).all())
    traced = torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))
    assert names(traced) == ["kernel", "bias"]


# Ties


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_a_tied_parameter_appears_once_with_the_role_and_axes_of_its_first_place():
    (one,) = listed(Tied())
    assert (one.name, one.role, one.axes, one.aliases) == ("embed/embeddings", "embeddings", ("vocab", "dim"), ("head/kernel",))


def test_a_shared_module_appears_once():
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, nn.Sequential(nn.ReLU(), layer), layer)
    found = listed(model)
    assert [one.name for one in found] == ["0/kernel", "0/bias"]
    assert found[0].aliases == ("1/1/kernel", "2/kernel")


def test_parameters_that_share_their_memory_are_one():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight.data = model[0].weight.data
    found = by_name(model)
    assert list(found) == ["0/kernel", "0/bias", "1/bias"]
    assert found["0/kernel"].aliases == ("1/kernel",)
    found["0/kernel"].storage.set_trainable(found["0/kernel"].handle, False)
    assert not model[0].weight.requires_grad
    assert not model[1].weight.requires_grad


def test_a_transposed_view_of_a_parameter_is_another_parameter():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight.data = model[0].weight.data.T
    assert names(model) == ["0/kernel", "0/bias", "1/kernel", "1/bias"]


def test_empty_parameters_are_never_tied():
    class Empty(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Parameter(torch.zeros(0))
            self.two = nn.Parameter(torch.zeros(0))

    assert names(Empty()) == ["one", "two"]


def test_a_module_that_contains_itself_is_walked_once():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].add_module("back", model)
    assert names(model) == ["0/kernel", "0/bias"]


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
    _share_module, _tie, _tie_by_memory, _rename, _parametrize, _prune, _freeze, _double, _write_registry, _change_class,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda one: one.__name__.strip("_"))
def test_a_change_of_the_model_is_noticed(change):
    model = Model()
    before = [describe(one) for one in listed(model)]
    change(model)
    after = [describe(one) for one in listed(model)]
    assert after == uncached(model)
    assert after != before


def test_the_settings_that_axes_depend_on_are_noticed():
    attention, conv = nn.MultiheadAttention(8, 2), nn.Conv2d(4, 4, 2, groups=4)
    assert by_name(attention)["qkv/kernel"].shape == (8, 3, 2, 4)
    assert "depthwise_kernel" in by_name(conv)
    attention.num_heads = 4
    conv.in_channels = 8
    assert by_name(attention)["qkv/kernel"].shape == (8, 3, 4, 2)
    assert "kernel" in by_name(conv)


def test_removing_a_parametrization_brings_the_plain_parameter_back():
    model = Model()
    before = names(model)
    _parametrize(model)
    assert [one.name for one in listed(model) if not one.hidden or one.name == "scratch"] == before
    parametrize.remove_parametrizations(model.head, "weight")
    assert names(model) == before


def test_a_parameter_keeps_working_when_its_data_is_swapped():
    layer = nn.Linear(2, 2)
    one = by_name(layer)["kernel"]
    layer.weight.data = torch.full((2, 2), 5.0)
    assert (one.storage.read(one.handle) == 5).all()


def test_what_is_remembered_keeps_no_model_and_no_tensor_alive():
    model = Model()
    listed(model)
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
    listed(model)
    assert set(vars(model)) == before
    twin = copy.deepcopy(model)
    assert names(twin) == MODEL
    assert not {one.storage.identity(one.handle) for one in listed(twin)} & {
        one.storage.identity(one.handle) for one in listed(model)
    }
    file = io.BytesIO()
    torch.save(model.state_dict(), file)


def test_a_module_with_its_own_equality_is_no_obstacle():
    class Odd(nn.Linear):
        def __eq__(self, other):
            return True

        __hash__ = None

    assert names_without_hash(Odd(2, 2)) == ["kernel", "bias"]


def names_without_hash(module):
    return [one.name for one in ModuleAdapter().parameters(module)]


def test_facts_hold_no_tensor_so_that_what_follows_from_them_cannot_be_stale():
    def leaves(value):
        if isinstance(value, (tuple, list)):
            for one in value:
                yield from leaves(one)
        else:
            yield value

    assert not any(isinstance(one, (torch.Tensor, nn.Module)) for one in leaves(walk(Model()).facts))


def test_the_quick_way_to_make_a_parameter_fills_every_slot():
    one = listed(nn.Linear(2, 2))[0]
    assert all(hasattr(one, slot) for slot in Parameter.__slots__)


def test_two_parameters_of_one_name_are_refused():
    class Clash(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_parameter("a/weight", nn.Parameter(torch.zeros(1)))
            self.a = nn.Module()
            self.a.weight = nn.Parameter(torch.zeros(1))

    with pytest.raises(TargetError, match=r"two parameters would both be called 'a/weight': a/weight, a\.weight"):
        listed(Clash())
