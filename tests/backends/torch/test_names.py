"""Names of a torch module's parameters: paths, wrappers, tied parameters."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch_models import MODEL, Model, by_name, describe, names, parameters_of  # noqa: E402

from xweights_torch import backend  # noqa: E402


def test_names_are_attribute_paths_in_the_order_of_state_dict():
    model = Model()
    found = parameters_of(model)
    assert [p.name for p in found] == MODEL
    assert [p.native_name for p in found if not p.hidden] == list(model.state_dict())
    assert by_name(model)["blocks/1/dense/kernel"].layer == "blocks/1/dense"


def test_a_lone_layer_and_a_lone_parameter_have_no_path():
    assert [(p.name, p.layer) for p in parameters_of(nn.Linear(2, 2))] == [("kernel", ""), ("bias", "")]
    (one,) = parameters_of(nn.Parameter(torch.zeros(2, 3)))
    assert (one.name, one.native_name, one.axes, one.shape) == ("parameter", "parameter", None, (2, 3))


def test_buffers_are_not_trainable_and_those_that_are_not_persistent_are_hidden():
    found = by_name(Model())
    assert (found["table"].trainable, found["table"].hidden) == (False, False)
    assert (found["scratch"].trainable, found["scratch"].hidden) == (False, True)
    assert [p.name for p in found.values() if p.hidden] == ["scratch"]


def test_trainable_is_read_live():
    model = Model()
    p = by_name(model)["head/bias"]
    assert p.trainable
    model.head.bias.requires_grad_(False)
    assert not p.trainable


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
    assert [describe(p)[:8] for p in parameters_of(scripted)] == [describe(p)[:8] for p in parameters_of(plain)]
    one = by_name(scripted)["2/kernel"]
    one.write(np.ones((3, 3), np.float32))
    assert scripted(torch.zeros(1, 4, 4, 4)).shape[-1] == 3
    assert bool((scripted.state_dict()["2.weight"] == 1).all())
    traced = torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))
    assert names(traced) == ["kernel", "bias"]


# Ties


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_a_tied_parameter_appears_once_with_the_role_and_axes_of_its_first_path():
    (p,) = parameters_of(Tied())
    assert (p.name, p.role, p.axes, p.aliases) == (
        "embed/embeddings",
        "embeddings",
        ("vocab", "dim"),
        ("head/kernel",),
    )


def test_a_shared_module_appears_once():
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, nn.Sequential(nn.ReLU(), layer), layer)
    found = parameters_of(model)
    assert [p.name for p in found] == ["0/kernel", "0/bias"]
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
