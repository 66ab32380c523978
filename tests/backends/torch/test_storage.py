"""Reading and writing torch tensors: in place, bit by bit, and visible to autograd."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402
from torch_tensors import DTYPES, FLOATS, Holder, bits, parameter_of, special  # noqa: E402

from xweights.errors import TargetError, WriteError  # noqa: E402
from xweights_torch import backend  # noqa: E402
from xweights_torch.dtypes import NUMPY_OF, from_host, host_view  # noqa: E402

# Reading


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_read_is_a_view_of_the_parameter_s_memory_with_exactly_its_bits(dtype):
    tensor = torch.ones(3, 2, dtype=torch.uint8).to(dtype)
    p = parameter_of(Holder(tensor))
    array = p.read()
    assert array.dtype == p.dtype == NUMPY_OF[dtype]
    assert array.__array_interface__["data"][0] == p.handle.tensor.data_ptr()
    assert torch.equal(bits(from_host(array)), bits(tensor))


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float8_e4m3fn], ids=str)
def test_views_of_any_strides_are_read_and_written_in_place(dtype):
    base = special(dtype, (6, 8))
    for make in (lambda t: t.T, lambda t: t[::2, 1::3], lambda t: t[2], lambda t: t[1, 1]):
        p = parameter_of(Holder(make(base.clone())))
        tensor = p.handle.tensor
        assert p.refusal(writing=True) is None
        array = p.read()
        assert torch.equal(bits(from_host(array)), bits(tensor))
        value = np.array(np.flip(array))
        p.write(value)
        assert torch.equal(bits(tensor), bits(from_host(value)))


def test_a_lazy_conjugate_or_negative_reads_as_its_values_and_is_written_as_them():
    for tensor in (torch.tensor([1 + 2j, 3 - 4j]).conj(), torch.tensor([1 + 2j, 3 - 4j]).conj().imag):
        p = parameter_of(nn.ParameterList([nn.Parameter(tensor, requires_grad=False)]))
        assert np.array_equal(p.read(), tensor.resolve_conj().resolve_neg().numpy())
        p.write(np.array([5, 6], p.dtype))
        assert tensor.tolist() == [5, 6]
        assert isinstance(p.native(), torch.Tensor)


# Writing


@pytest.mark.parametrize("shape", [(), (3, 2), (300, 500)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_write_keeps_the_object_its_memory_and_its_gradient_flag_and_moves_every_bit(dtype, shape):
    layer = Holder(torch.zeros(shape, dtype=dtype))
    p, tensor = parameter_of(layer), layer.w
    before = (id(layer.w), tensor.data_ptr(), tensor.dtype, tensor.requires_grad, tensor.is_leaf)
    value = host_view(special(dtype, shape))
    for source in (value, np.array(value, order="F"), value[..., ::-1] if shape else value):
        p.write(source)
        assert torch.equal(bits(tensor), bits(from_host(source)))
        assert not np.shares_memory(p.read(), source)
    assert before == (id(layer.w), tensor.data_ptr(), tensor.dtype, tensor.requires_grad, tensor.is_leaf)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_sources_in_any_order_are_written_whole(dtype):
    for shape, order in (((1100, 1999), (1, 0)), ((300, 500, 3, 5), (3, 2, 0, 1)), ((2_200_001,), (0,))):
        p = parameter_of(Holder(torch.zeros(shape, dtype=dtype)))
        value = host_view(special(dtype, tuple(np.array(shape)[list(order)]))).transpose(np.argsort(order))
        p.write(value)
        assert p.read().tobytes() == value.tobytes()


def test_a_read_only_source_is_written_without_a_warning(recwarn):
    for shape in ((2, 2), (400, 400)):
        p = parameter_of(Holder(torch.zeros(shape)))
        source = np.ones(shape, np.float32)
        source.flags.writeable = False
        p.write(source)
    assert not recwarn.list


@pytest.mark.parametrize("size", [3, 400])
def test_a_view_of_the_parameter_itself_is_a_lawful_source(size):
    p = parameter_of(Holder(torch.arange(size * size, dtype=torch.float32).reshape(size, size)))
    array = p.read()
    expected = array.T.copy()
    p.write(array.T)
    assert np.array_equal(array, expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("how", ["write", "array", "native", "result", "restore"])
def test_every_kind_of_write_raises_the_version_counter(how, dtype):
    p = parameter_of(Holder(torch.ones(2, 2, dtype=dtype)))
    storage, handle, tensor = p.storage, p.handle, p.handle.tensor
    before = tensor._version
    with storage.guard():
        array = storage.native_array(handle, tensor=how == "native")
        if how == "write":
            storage.write(handle, np.zeros((2, 2), p.dtype))
        elif how == "restore":
            storage.restore(handle, storage.backup(handle))
        elif how == "result":
            storage.commit(handle, array, array * array)
        else:
            array *= array
            storage.commit(handle, array, array)
    assert tensor._version > before


def test_an_edit_between_forward_and_backward_makes_backward_raise():
    layer = nn.Linear(2, 2)
    p = parameter_of(layer)
    loss = layer(layer(torch.ones(1, 2))).sum()
    p.write(np.zeros((2, 2), np.float32))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_read_leaves_the_version_counter_alone():
    p = parameter_of(nn.Linear(2, 2))
    before = p.handle.tensor._version
    p.read()
    p.native()
    p.backup()
    assert p.handle.tensor._version == before


def test_a_write_of_another_shape_or_dtype_is_refused():
    p = parameter_of(nn.Linear(2, 3))
    for value in (np.zeros((2, 3), np.float32), np.zeros((3, 2)), np.zeros(2, np.float32)):
        with pytest.raises(WriteError, match="expected: float32"):
            p.write(value)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_native_array_is_numpy_where_numpy_is_quick_and_a_detached_tensor_otherwise(dtype):
    p = parameter_of(Holder(torch.ones(2, 2, dtype=dtype)))
    default, native = p.native(), p.native(tensor=True)
    assert isinstance(default, np.ndarray) == (dtype in (torch.float32, torch.float64))
    assert isinstance(native, torch.Tensor)
    assert not native.requires_grad
    assert native.data_ptr() == p.handle.tensor.data_ptr()


# Refusals


def reasons(tensor, *, writing=True):
    p = parameter_of(nn.ParameterList([nn.Parameter(tensor, requires_grad=False)]))
    return p.refusal(writing=writing)


def test_tensors_without_values_are_refused_with_a_way_out():
    assert "to_empty" in reasons(torch.zeros(2, device="meta"), writing=False)
    gone = torch.zeros(4)
    gone.untyped_storage().resize_(0)
    assert "given back" in reasons(gone, writing=False)
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        assert "FakeTensorMode" in reasons(torch.zeros(2), writing=False)


@pytest.mark.filterwarnings("ignore")
def test_sparse_quantized_and_nested_tensors_are_refused():
    assert "to_dense" in reasons(torch.eye(3).to_sparse(), writing=False)
    quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    assert "quantize it again" in backend.storage(quantized).refusal(quantized, writing=False)
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    assert "unbind" in backend.storage(nested).refusal(nested, writing=False)
    with pytest.raises(TargetError, match="can't be read"):
        backend.to_host(quantized)


def test_entries_that_share_memory_can_be_read_and_not_written():
    for tensor in (torch.zeros(3, 1).expand(3, 4), torch.zeros(9).as_strided((4, 3), (2, 1))):
        assert reasons(tensor, writing=False) is None
        assert "share one place" in reasons(tensor)
    assert reasons(torch.zeros(12).as_strided((2, 3), (3, 2))) is None
    assert reasons(torch.zeros(5, 1).expand(5, 1)) is None


def test_an_inference_tensor_is_written_in_inference_mode_only():
    with torch.inference_mode():
        layer = nn.Linear(2, 2)
    p = parameter_of(layer)
    assert p.refusal(writing=False) is None
    assert "inference_mode" in p.refusal(writing=True)
    with torch.inference_mode():
        assert p.refusal(writing=True) is None
        p.write(np.ones((2, 2), np.float32))
    assert (p.read() == 1).all()


@pytest.mark.filterwarnings("ignore")
def test_a_sharded_parameter_is_refused():
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.tensor import distribute_tensor

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        lone = nn.Parameter(distribute_tensor(torch.zeros(2), mesh))
        assert "sharded" in reasons(lone, writing=False)
        model = nn.Sequential(nn.Linear(2, 2))
        fully_shard(model, mesh=mesh)
        model.unshard()
        assert "FSDP2 gathered" in reasons(model[0].weight, writing=False)
        with pytest.raises(TargetError, match="FSDP2 gathered"):
            backend.to_host(model[0].weight)
        p = parameter_of(model)  # which gives it its shards back
        assert type(p.handle.tensor).__name__ == "DTensor"
        assert "sharded" in p.refusal(writing=False)
        for original in (True, False):
            wrapped = FullyShardedDataParallel(nn.Linear(2, 2), device_id=torch.device("cpu"), use_orig_params=original)
            p = parameter_of(wrapped)
            assert "FSDP" in p.refusal(writing=True)
    finally:
        dist.destroy_process_group()


def test_parameters_inside_of_a_function_transform_are_refused():
    layer = nn.Linear(2, 2)
    seen = []

    class Looking(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = layer

        def forward(self, x):
            p = parameter_of(self)
            seen.append(p.refusal(writing=True))
            return self.inner(x).sum()

    module = Looking()
    weights = dict(module.named_parameters())
    stacked = {name: torch.stack([w, w]) for name, w in weights.items()}
    torch.vmap(lambda w: torch.func.functional_call(module, w, (torch.ones(2),)))(stacked)
    assert "placeholder" in seen[0]


def test_a_tensor_subclass_that_hides_its_values_is_refused_by_name():
    from torch.testing._internal.two_tensor import TwoTensor

    tensor = TwoTensor(torch.ones(2), torch.ones(2))
    assert "TwoTensor" in backend.storage(tensor).refusal(tensor, writing=False)


def test_a_harmless_subclass_of_parameter_is_not():
    class Mine(nn.Parameter):
        pass

    layer = nn.Linear(2, 2)
    layer.weight = Mine(torch.zeros(2, 2))
    p = parameter_of(layer)
    assert p.refusal(writing=True) is None


# Trainable


def test_trainable_is_requires_grad_and_buffers_can_not_be_trained():
    layer = nn.BatchNorm1d(2)
    gamma, mean = parameter_of(layer), parameter_of(layer, "moving_mean")
    gamma.set_trainable(False)
    assert not layer.weight.requires_grad
    gamma.set_trainable(True)
    assert layer.weight.requires_grad
    mean.set_trainable(False)
    with pytest.raises(WriteError, match=r"no nn\.Parameter"):
        mean.set_trainable(True)
    whole = parameter_of(nn.ParameterList([nn.Parameter(torch.ones(2, dtype=torch.int32), requires_grad=False)]))
    with pytest.raises(WriteError, match=r"can't train torch\.int32"):
        whole.set_trainable(True)


def test_a_bare_tensor_counts_as_trainable_where_it_is_floating():
    for tensor, expected in ((torch.ones(2), True), (torch.ones(2, dtype=torch.int64), False)):
        storage = backend.storage(tensor)
        assert storage.trainable(tensor) is expected
        with pytest.raises(WriteError, match=r"no nn\.Parameter"):
            storage.set_trainable(tensor, not expected)


@given(
    st.sampled_from(FLOATS),
    st.lists(st.integers(1, 4), min_size=0, max_size=3),
    st.integers(0, 2**32 - 1),
)
def test_written_values_are_read_back_bit_by_bit(dtype, shape, seed):
    raw = np.random.default_rng(seed).integers(0, 256, (*shape, dtype.itemsize), dtype=np.uint8)
    value = raw.view(NUMPY_OF[dtype]).reshape(shape)
    p = parameter_of(Holder(torch.zeros(shape, dtype=dtype)))
    p.write(value)
    assert p.read().tobytes() == value.tobytes()


def test_dtypes_cross_as_ml_dtypes():
    assert host_view(torch.zeros(2, dtype=torch.bfloat16)).dtype == ml_dtypes.bfloat16
    assert host_view(torch.zeros(2, dtype=torch.float8_e4m3fn)).dtype == ml_dtypes.float8_e4m3fn
