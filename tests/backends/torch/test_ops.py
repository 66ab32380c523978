"""Array math of torch against its definitions, bit by bit, eagerly and compiled."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402

from xweights_torch import backend  # noqa: E402
from xweights_torch.dtypes import BITS, NUMPY_OF, from_host, host_view  # noqa: E402

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -3.0, float("inf"), float("-inf"), float("nan")]
OPS = backend.ops(torch.zeros(1))

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler (g++)")
BACKENDS = ["eager", "aot_eager", pytest.param("inductor", marks=needs_compiler)]


def bits(tensor):
    return tensor.detach().view(BITS[tensor.itemsize])


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def raw(dtype, shape=(64,), seed=0):
    """Draw every kind of bit pattern: normals, subnormals, zeros, infinities, NaNs with payloads."""
    data = np.random.default_rng(seed).integers(0, 256, (*shape, dtype.itemsize), dtype=np.uint8)
    tensor = torch.from_numpy(data).view(dtype).reshape(shape).clone()
    flat = tensor.view(-1)
    flat[: len(SPECIAL)] = torch.tensor(SPECIAL, dtype=dtype)[: flat.numel()]
    bits(flat)[len(SPECIAL) - 1 : len(SPECIAL)] |= 5
    return tensor


def normals(dtype, shape=(40, 50), seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def number(value, dtype):
    return OPS.constant(np.asarray(value).astype(NUMPY_OF[dtype]), torch.zeros(1))


def reference_clip(x, low, high):
    new = list(bits(x))
    for i, value in enumerate(x.tolist()):
        if high is not None and value > high.item():
            new[i] = bits(high)
        if low is not None and value < low.item():
            new[i] = bits(low)
    return torch.stack([entry.reshape(()) for entry in new]).view(x.dtype)


@given(
    st.sampled_from(FLOATS),
    st.one_of(st.none(), st.sampled_from(SPECIAL[:-1])),
    st.one_of(st.none(), st.sampled_from(SPECIAL[:-1])),
    st.integers(0, 1000),
)
def test_clip_is_its_definition_for_every_bit_pattern(dtype, low, high, seed):
    low, high = (None if bound is None else number(bound, dtype) for bound in (low, high))
    x = raw(dtype, seed=seed)
    expected = reference_clip(x, low, high)
    assert same(OPS.clip(x.clone(), low, high), expected)


def test_torch_s_own_clamp_gives_other_bits():
    # If this fails, torch has changed, and the quicker clamp may serve.
    x = torch.tensor([-0.0] * 20)
    assert not same(torch.clamp(x, min=torch.tensor(0.0)), OPS.clip(x, torch.tensor(0.0), None))
    x = raw(torch.bfloat16, (640,))
    assert not same(torch.clamp(x, -1.0, 1.0), OPS.clip(x, number(-1.0, x.dtype), number(1.0, x.dtype)))


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int8, torch.int64, torch.bool], ids=str)
def test_keep_and_choose_move_bits(dtype):
    x = raw(dtype) if dtype.is_floating_point else torch.arange(64).to(dtype)
    y = raw(dtype, seed=1) if dtype.is_floating_point else torch.ones(64).to(dtype)
    mask = torch.arange(64) % 3 != 0
    kept, chosen = OPS.keep(x.clone(), mask), OPS.choose(x.clone(), mask, y)
    assert torch.equal(bits(kept), torch.where(mask, bits(x), 0))
    assert torch.equal(bits(chosen), torch.where(mask, bits(x), bits(y)))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_multiply_add_and_fill_round_once_and_edit_in_place(dtype):
    x, y = normals(dtype), normals(dtype, seed=1)
    wide = torch.float64
    for edit, expected in (
        (OPS.multiply, (x.to(wide) * y.to(wide)).to(dtype) if dtype != wide else x * y),
        (OPS.add, x + y),
        (OPS.fill, y),
    ):
        target = x.clone()
        new = edit(target, y)
        assert new is target
        assert same(new, expected)
    assert same(OPS.fill(x.clone(), number(0.5, dtype)), torch.full_like(x, 0.5))


def test_a_number_reaches_float16_as_a_float16():
    x = normals(torch.float16)
    expected = host_view(x) * np.float16(0.9)
    assert np.array_equal(host_view(OPS.multiply(x.clone(), number(0.9, torch.float16))), expected)


@pytest.mark.parametrize(
    "index",
    [(0,), (slice(None), 2), (slice(1, 3), slice(0, 5, 2)), (slice(3, 0, -1), slice(None)), (1, slice(4, None, -2)),
     (slice(2, 2, -1), slice(None)), (slice(None, None, -1), slice(None, None, -3))],
    ids=str,
)  # fmt: skip
def test_set_at_sets_the_same_entries_as_numpy(index):
    x = np.arange(30, dtype=np.float32).reshape(5, 6)
    part = x[index]
    for value in (np.float32(-1), -np.arange(part.size, dtype=np.float32).reshape(part.shape)):
        expected = x.copy()
        expected[index] = value
        assert np.array_equal(OPS.set_at(torch.from_numpy(x.copy()), index, from_host(np.asarray(value))), expected)


def test_set_at_takes_a_mask_with_one_value_or_one_for_each_true_entry():
    x = np.arange(30, dtype=np.float32).reshape(5, 6)
    mask = x % 4 == 1
    for value in (np.float32(-1), -np.arange(mask.sum(), dtype=np.float32)):
        expected = x.copy()
        expected[mask] = value
        for index in (mask, torch.from_numpy(mask)):
            assert np.array_equal(
                OPS.set_at(torch.from_numpy(x.copy()), (index,), from_host(np.asarray(value))), expected
            )
    rows = np.array([True, False, True, False, True])
    expected = x.copy()
    expected[rows, 2] = 7
    assert np.array_equal(OPS.set_at(torch.from_numpy(x.copy()), (rows, 2), torch.tensor(7.0)), expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_sum_of_squares_is_in_float64_over_the_axes_that_it_is_asked_for(dtype):
    x = normals(dtype, (3, 4, 5))
    wide = x.to(torch.float64).numpy() ** 2
    for axes, shape in (((0, 2), (1, 4, 1)), ((), (3, 4, 5)), (None, ()), ((1,), (3, 1, 5))):
        got = OPS.sum_squares(x, axes)
        assert (got.dtype, tuple(got.shape)) == (torch.float64, shape)
        np.testing.assert_allclose(got, wide.sum(axis=axes, keepdims=axes is not None), rtol=1e-14)


def test_sum_over_no_axes_is_no_sum():
    x = normals(torch.float32, (3, 4))
    assert same(OPS.sum(x, ()), x)
    assert same(OPS.sum(x, (0,)), x.sum(0, keepdim=True))
    assert OPS.sum(x.half(), (0, 1)).dtype == torch.float16


def test_the_largest_singular_value_is_in_float64():
    x = normals(torch.float32, (5, 3))
    got = OPS.largest_singular_value(x)
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got, np.linalg.svd(x.double().numpy(), compute_uv=False).max(), rtol=1e-12)
    assert OPS.largest_singular_value(x[:, :0]) == 0


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rank_is_the_position_in_the_stable_order_with_nan_last(dtype):
    x = torch.tensor([2.0, 0.0, float("nan"), -0.0, 2.0, float("-inf"), 0.0], dtype=dtype)
    assert OPS.rank(x).tolist() == [4, 1, 6, 2, 5, 0, 3]
    assert OPS.rank(x).dtype == torch.int64


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_measures_do_not_change_their_arguments(dtype):
    x, y = normals(dtype, (6, 6)).abs(), normals(dtype, (6, 6), seed=1)
    before = x.clone()
    OPS.sum_squares(x, None), OPS.largest_singular_value(x), OPS.rank(x.reshape(-1)), OPS.abs(x), OPS.sqrt(x)
    OPS.divide(x, y), OPS.minimum(x, y), OPS.sum(x, (0,)), OPS.greater(x, y), OPS.where(x > y, x, y)
    OPS.cast(x, np.dtype(np.float32)), OPS.concatenate([x.reshape(-1), y.reshape(-1)])
    assert same(x, before)


def test_cast_knows_every_dtype():
    for dtype, other in NUMPY_OF.items():
        assert OPS.cast(torch.ones(1, dtype=torch.int8), other).dtype == dtype


def test_constants_and_buffers_never_alias_read_only_arrays():
    array = np.ones(3, np.float32)
    array.flags.writeable = False
    OPS.constant(array, torch.zeros(1)).add_(1)
    assert (array == 1).all()
    source = np.ones(3, np.float32)
    buffer = OPS.buffer(source, torch.zeros(1))
    OPS.refill(buffer, np.full(3, 2, np.float32))
    assert (source == 1).all()
    assert OPS.current(buffer) is buffer
    assert (buffer == 2).all()


# Compiled


def edits(dtype):
    """Return chains of edits that change bits if a compiler fuses them or computes in a wider type."""
    s, t, b = number(0.9, dtype), number(1.37, dtype), number(0.123, dtype)
    low, high, zero = number(-0.7, dtype), number(0.7, dtype), number(0.0, dtype)
    mask = torch.from_numpy(np.arange(2000).reshape(40, 50) % 3 != 0)
    noise = OPS.buffer(host_view(normals(dtype, seed=3)), torch.zeros(1))
    return [
        lambda w: OPS.multiply(w, s), lambda w: OPS.add(w, b), lambda w: OPS.multiply(w, t),
        lambda w: OPS.clip(w, low, high), lambda w: OPS.add(w, OPS.current(noise)), lambda w: OPS.multiply(w, s),
        lambda w: OPS.keep(w, mask), lambda w: OPS.clip(w, zero, None), lambda w: OPS.choose(w, mask, b),
        lambda w: OPS.set_at(w, (slice(3, 0, -1), 4), t), lambda w: OPS.set_at(w, (mask,), s), lambda w: OPS.add(w, s),
    ]  # fmt: skip


def step_of(model, rules, order=(1, 0)):
    """Return the steps of a bound rule: native, neutral order, rule, fence, stored order, commit."""
    parameters = [p for p in backend.adapter(model).parameters(model) if p.shape == (40, 50)]

    def step():
        for rule in rules:
            for p in parameters:
                with p.storage.guard():
                    native = p.native(tensor=True)
                    w = OPS.transpose(native, order)
                    new = rule(w)
                    if new is w:
                        p.commit(native, native)
                    else:
                        p.commit(native, OPS.transpose(OPS.fence(new), order))

    return step


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def pair(dtype):
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(nn.Linear(40, 50).to(dtype))
    return models


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("compiler", BACKENDS)
def test_a_chain_of_rules_in_one_compiled_step_is_bit_identical_to_eager_code(compiler, dtype):
    eager, compiled = pair(dtype)
    before = [(id(p), p.data_ptr(), p.requires_grad, p._version) for p in compiled.parameters()]
    step_of(eager, edits(dtype))()
    torch.compile(step_of(compiled, edits(dtype)), fullgraph=True, backend=compiler)()
    for a, b in zip(eager.parameters(), compiled.parameters(), strict=True):
        assert same(a, b)
    after = [(id(p), p.data_ptr(), p.requires_grad, p._version) for p in compiled.parameters()]
    assert [facts[:3] for facts in before] == [facts[:3] for facts in after]
    assert after[0][3] > before[0][3]


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_without_the_fence_inductor_gives_other_bits(dtype):
    # If this fails, inductor rounds by itself, and the fence may go.
    x, s, t = normals(dtype), number(0.9, dtype), number(1.37, dtype)
    expected = (x * s) * t
    assert not same(torch.compile(lambda: (x * s) * t, backend="inductor")(), expected)
    assert same(torch.compile(lambda: OPS.fence(x * s) * t, backend="inductor")(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("compiler", BACKENDS)
def test_compiled_code_moves_bits_where_bits_are_moved(compiler, dtype):
    layer = nn.ParameterList([nn.Parameter(raw(dtype))])
    (p,) = backend.adapter(layer).parameters(layer)
    mask = torch.arange(64) % 7 != 0
    low, high = number(-1, dtype), number(1, dtype)
    expected = OPS.clip(OPS.keep(layer[0].detach().clone(), mask), low, high)

    def step():
        with p.storage.guard():
            native = p.native(tensor=True)
            p.commit(native, OPS.fence(OPS.clip(OPS.fence(OPS.keep(native, mask)), low, high)))

    torch.compile(step, fullgraph=True, backend=compiler)()
    assert same(layer[0], expected)


@pytest.mark.parametrize("compiler", BACKENDS)
def test_a_refilled_buffer_is_seen_by_the_step_that_was_compiled_before(compiler):
    w = torch.zeros(4)
    buffer = OPS.buffer(np.ones(4, np.float32), w)
    step = torch.compile(lambda: OPS.add(w.clone(), OPS.current(buffer)), fullgraph=True, backend=compiler)
    assert step().tolist() == [1] * 4
    OPS.refill(buffer, np.full(4, 2, np.float32))
    assert step().tolist() == [2] * 4


@pytest.mark.parametrize("compiler", BACKENDS)
def test_measures_can_be_compiled(compiler):
    x = normals(torch.float32, (6, 4))

    def measures():
        squares = OPS.sum_squares(x, (0,))
        scale = OPS.cast(OPS.divide(OPS.constant(np.asarray(1.0), x), OPS.sqrt(squares)), np.dtype(np.float32))
        ranks = OPS.rank(OPS.reshape(OPS.abs(x), (24,)))
        sums = OPS.concatenate([OPS.sum(x, (1,))[:, 0], OPS.sum(x, (0,))[0]])
        return scale, OPS.largest_singular_value(x), ranks, sums

    for got, expected in zip(torch.compile(measures, backend=compiler)(), measures(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("compiler", BACKENDS)
def test_a_bound_edit_and_the_model_s_own_forward_pass_share_one_step(compiler):
    torch.manual_seed(0)
    model = nn.Linear(40, 50)
    x = torch.ones(1, 40)
    step = step_of(model, [lambda w: OPS.multiply(w, torch.tensor(0.5))])

    def train():
        before = model(x)
        step()
        return before, model(x)

    whole = (x @ model.weight.T + model.bias).detach()
    half = (x @ (model.weight * 0.5).T + model.bias).detach()
    before, after = torch.compile(train, fullgraph=True, backend=compiler)()
    torch.testing.assert_close(before, whole)
    torch.testing.assert_close(after, half)
