"""TensorFlow's array maths against NumPy's, eagerly, in ``tf.function`` and compiled by XLA.

Exact ones bit by bit over 100,000 entries and every special value; measures within the rtol on top of the test.
Outside of the promise for arithmetic, and left out here: subnormal results (TensorFlow flushes them).
"""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xweights.core.numpy_backend import NumpyOps

tf = pytest.importorskip("tensorflow")
from xweights_tensorflow.ops import TensorFlowOps  # noqa: E402

OPS = TensorFlowOps()
NUMPY = NumpyOps()
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), BFLOAT16]
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def run_in_a_graph(function):
    return tf.function(function, autograph=False)


def run_in_xla(function):
    return tf.function(function, autograph=False, jit_compile=True)


MODES = [
    pytest.param(lambda function: function, id="eager"),
    pytest.param(run_in_a_graph, id="graph"),
    pytest.param(run_in_xla, id="xla"),
]
each_mode = pytest.mark.parametrize("mode", MODES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=[one.name for one in DTYPES])


def bits(array):
    array = np.asarray(array)
    return np.ascontiguousarray(array).view(UNSIGNED[array.dtype.itemsize]).reshape(array.shape)


def number(value, dtype):
    return np.asarray(value, np.float64).astype(dtype)


def ordinary(dtype, size=100_003, seed=0):
    """Random normals with every special value in front, in the middle and at the end (kernels treat tails apart)."""
    info = ml_dtypes.finfo(dtype)
    most, least = float(info.max), float(info.smallest_normal) * 8
    special = number([0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1, -1, 0.5, -0.5, most, -most, least, -least], dtype)
    x = np.random.default_rng(seed).standard_normal(size).astype(dtype)
    for start in (0, size // 2, size - len(special)):
        x[start : start + len(special)] = special
    return x


def any_bits(dtype, size=100_003, seed=0):
    """Random bit patterns: subnormals, NaN payloads, signalling NaNs and all."""
    raw = np.random.default_rng(seed).integers(0, 256, size * dtype.itemsize, dtype=np.uint8)
    return raw.view(dtype)


def subnormal(array):
    if array.dtype.kind in "iub":
        return np.zeros(array.shape, np.bool_)
    with np.errstate(invalid="ignore"):
        wide = np.asarray(array).astype(np.float64)
    least = float(ml_dtypes.finfo(array.dtype).smallest_normal)
    return (wide != 0) & (np.abs(wide) < least)


def assert_same_numbers(got, expected):
    """Same bits, but where NumPy has a subnormal; the sign of a NaN that an operation made is the processor's."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    both_nan = np.isnan(got.astype(np.float64)) & np.isnan(expected.astype(np.float64))
    wrong = (bits(got) != bits(expected)) & ~both_nan & ~subnormal(expected)
    assert not wrong.any(), f"{wrong.sum()} differ: {got[wrong][:4]} for {expected[wrong][:4]}"


def assert_same_bits(got, expected):
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert np.array_equal(bits(got), bits(expected))


@each_mode
@each_dtype
@pytest.mark.parametrize("factor", [0.9, 0.0, -0.0, 1.0, -3.0, 1e-3])
def test_multiply_rounds_once_as_numpy_does(mode, dtype, factor):
    x, y = ordinary(dtype), number(factor, dtype)
    got = mode(lambda w: OPS.multiply(w, OPS.constant(y, w)))(tf.constant(x))
    with np.errstate(all="ignore"):
        assert_same_numbers(got, NUMPY.multiply(x.copy(), y))


@each_mode
@each_dtype
def test_multiply_and_add_take_arrays(mode, dtype):
    x, y = ordinary(dtype).reshape(1, -1), ordinary(dtype, seed=1).reshape(1, -1)[:, ::-1]
    with np.errstate(all="ignore"):
        product, total = NUMPY.multiply(x.copy(), y), NUMPY.add(x.copy(), y)
    assert_same_numbers(mode(lambda w: OPS.multiply(w, OPS.constant(y, w)))(tf.constant(x)), product)
    assert_same_numbers(mode(lambda w: OPS.add(w, OPS.constant(y, w)))(tf.constant(x)), total)


@each_mode
@each_dtype
@pytest.mark.parametrize("delta", [0.3, 0.0, -0.0, -1.0])
def test_add_keeps_the_rules_of_signed_zeros(mode, dtype, delta):
    x, y = ordinary(dtype), number(delta, dtype)
    got = mode(lambda w: OPS.add(w, OPS.constant(y, w)))(tf.constant(x))
    assert_same_numbers(got, NUMPY.add(x.copy(), y))


@each_mode
@each_dtype
@pytest.mark.parametrize(
    ("low", "high"),
    [(-1, 1), (-0.3, 0.7), (0.1, 0.2), (0.0, 1), (-0.0, 1), (-1, 0.0), (-1, -0.0), (0.0, 0.0), (-np.inf, 0.5),
     (None, 0.25), (0.25, None), (0.0, None), (None, 0.0), (-0.0, None), (np.inf, None)],
)  # fmt: skip
def test_clip_is_its_definition(mode, dtype, low, high):
    x = any_bits(dtype)
    x[subnormal(x)] = 0
    x = np.concatenate([x, ordinary(dtype)])
    bounds = [None if one is None else number(one, dtype) for one in (low, high)]
    # from the definition and not from NumPy's clip
    expected = x.copy()
    with np.errstate(invalid="ignore"):
        if bounds[0] is not None:
            expected[x < bounds[0]] = bounds[0]
        if bounds[1] is not None:
            expected[x > bounds[1]] = bounds[1]

    def clip(w):
        return OPS.clip(w, *[None if one is None else OPS.constant(one, w) for one in bounds])

    assert_same_bits(mode(clip)(tf.constant(x)), expected)


@each_mode
@each_dtype
def test_clip_takes_arrays_as_bounds(mode, dtype):
    x = ordinary(dtype, 300).reshape(20, 15)
    low, high = number(np.linspace(-1, 0, 15), dtype), number(np.linspace(0, 1, 20), dtype).reshape(20, 1)
    got = mode(lambda w: OPS.clip(w, OPS.constant(low, w), OPS.constant(high, w)))(tf.constant(x))
    assert_same_bits(got, np.where(x < low, low, np.where(x > high, high, x)))


@each_mode
@each_dtype
def test_what_only_moves_bits_keeps_every_bit(mode, dtype):
    x, y = any_bits(dtype), any_bits(dtype, seed=1)
    mask = np.random.default_rng(2).random(x.shape) < 0.5
    kept = np.where(mask, bits(x), 0).astype(UNSIGNED[dtype.itemsize]).view(dtype)
    assert_same_bits(mode(lambda w: OPS.keep(w, OPS.constant(mask, w)))(tf.constant(x)), kept)
    expected = np.where(mask, bits(x), bits(y)).view(dtype)
    assert_same_bits(mode(lambda w: OPS.choose(w, OPS.constant(mask, w), OPS.constant(y, w)))(tf.constant(x)), expected)
    assert_same_bits(mode(lambda w: OPS.fence(w))(tf.constant(x)), x)
    assert_same_bits(mode(lambda w: OPS.fill(w, OPS.constant(y, w)))(tf.constant(x)), y)
    one = y[:1].reshape(())
    assert_same_bits(mode(lambda w: OPS.fill(w, OPS.constant(one, w)))(tf.constant(x)), np.full(x.shape, one))
    row = y[:3]
    assert_same_bits(
        mode(lambda w: OPS.fill(w, OPS.constant(row, w)))(tf.constant(x[:6].reshape(2, 3))), np.stack([row, row])
    )


INDICES = [
    (1, slice(None), slice(None)),
    (slice(None), slice(0, 3, 2), -1),
    (slice(1, 3), slice(4, 0, -2), 2),
    (slice(None), 2, slice(1, None)),
    (np.random.default_rng(0).random((4, 5, 6)) < 0.3,),
    (np.random.default_rng(0).random((4, 5)) < 0.3, slice(1, 3)),
    (slice(None), np.array([True, False, True, False, True]), slice(None)),
    (2, 3, 4),
]


@each_mode
@each_dtype
@pytest.mark.parametrize("index", INDICES, ids=range(len(INDICES)))
@pytest.mark.parametrize("whole", [True, False], ids=["number", "array"])
def test_set_at_writes_what_numpy_writes(mode, dtype, index, whole):
    x, y = any_bits(dtype, 120).reshape(4, 5, 6), any_bits(dtype, 240, seed=1)
    value = y[0].reshape(()) if whole else y[: x[index].size].reshape(x[index].shape)
    expected = x.copy()
    view = expected.view(UNSIGNED[dtype.itemsize])
    view[index] = bits(value)
    got = mode(lambda w: OPS.set_at(w, index, OPS.constant(np.asarray(value), w)))(tf.constant(x))
    assert_same_bits(got, expected)


@each_mode
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8, np.bool_])
def test_edits_that_make_sense_work_on_integers_and_bools(mode, dtype):
    x = np.arange(12).reshape(3, 4).astype(dtype)
    mask = x % 2 == 0
    assert_same_bits(
        mode(lambda w: OPS.keep(w, OPS.constant(mask, w)))(tf.constant(x)), np.where(mask, x, 0).astype(dtype)
    )
    value = np.asarray(1, dtype)
    assert_same_bits(mode(lambda w: OPS.fill(w, OPS.constant(value, w)))(tf.constant(x)), np.full_like(x, 1))
    expected = x.copy()
    expected[1, 2:] = value
    assert_same_bits(
        mode(lambda w: OPS.set_at(w, (1, slice(2, None)), OPS.constant(value, w)))(tf.constant(x)), expected
    )
    assert_same_bits(mode(OPS.fence)(tf.constant(x)), x)
    if dtype is not np.bool_:
        low, high = np.asarray(3, dtype), np.asarray(7, dtype)
        got = mode(lambda w: OPS.clip(w, OPS.constant(low, w), OPS.constant(high, w)))(tf.constant(x))
        assert_same_bits(got, np.clip(x, 3, 7))


@each_mode
@each_dtype
def test_a_chain_with_fences_has_the_bits_of_one_op_after_the_other(mode, dtype):
    x = ordinary(dtype, 100_003)
    a, b, c, d = (number(one, dtype) for one in (0.9, 0.3, 1.1, 1.7))

    def chain(ops, w):
        w = ops.fence(ops.multiply(w, ops.constant(a, w)))
        w = ops.fence(ops.multiply(w, ops.constant(c, w)))
        w = ops.fence(ops.add(w, ops.constant(b, w)))
        w = ops.fence(ops.clip(w, ops.constant(-d, w), ops.constant(d, w)))
        w = ops.fence(ops.multiply(w, ops.constant(c, w)))
        return ops.fence(ops.add(w, ops.constant(-b, w)))

    with np.errstate(all="ignore"):
        expected = chain(NUMPY, x.copy())
    assert_same_numbers(mode(lambda w: chain(OPS, w))(tf.constant(x)), expected)


def test_without_fences_xla_changes_the_bits_of_a_chain():
    x = ordinary(np.dtype(np.float32))
    a, b = number(0.9, np.float32), number(0.3, np.float32)

    def chain(w):
        return OPS.add(OPS.multiply(w, OPS.constant(a, w)), OPS.constant(b, w))

    assert np.any(bits(run_in_xla(chain)(tf.constant(x))) != bits(x * a + b)), "the fences guard against nothing"


def test_fences_hold_wherever_they_are_first_met():
    x = ordinary(np.dtype(np.float32))
    a, b = number(0.9, np.float32), number(0.3, np.float32)
    with np.errstate(all="ignore"):
        expected = x * a + b

    def chain(w):
        return OPS.add(OPS.fence(OPS.multiply(w, OPS.constant(a, w))), OPS.constant(b, w))

    inner = tf.function(chain, autograph=False)
    assert_same_numbers(inner(tf.constant(x)), expected)  # traced now, and compiled by XLA as it is below
    outer = tf.function(lambda w: inner(w), autograph=False, jit_compile=True)
    assert_same_numbers(outer(tf.constant(x)), expected)

    @tf.function(jit_compile=True, autograph=False)
    def looped(w):
        return tf.while_loop(lambda i, _: i < 1, lambda i, v: (i + 1, chain(v)), (0, w))[1]

    assert_same_numbers(looped(tf.constant(x)), expected)
    assert_same_numbers(
        run_in_a_graph(lambda w: tf.cond(w[0] > 9, lambda: w, lambda: chain(w)))(tf.constant(x)), expected
    )
    with tf.Graph().as_default():
        made = chain(tf.constant(x))
        with tf.compat.v1.Session() as session:
            assert_same_numbers(session.run(made), expected)
    assert_same_numbers(run_in_xla(chain)(tf.constant(x)), expected)


@each_mode
@each_dtype
@pytest.mark.parametrize("axes", [None, (0,), (0, 1), (2,)])
def test_sum_squares_is_close_to_numpy_within_1e_14(mode, dtype, axes):
    x = number(np.random.default_rng(0).standard_normal((7, 31, 13)), dtype)
    got = np.asarray(mode(lambda w: OPS.sum_squares(w, axes))(tf.constant(x)))
    expected = NUMPY.sum_squares(x, axes)
    assert got.dtype == np.float64
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-14)


@each_mode
@each_dtype
def test_a_units_norm_and_the_factor_made_of_it_have_numpys_bits(mode, dtype):
    x = number(np.random.default_rng(0).standard_normal((64, 500)) * 0.2, dtype)
    most, one = np.asarray(1.5), np.asarray(1.0)

    def scaled(ops, w):
        norm = ops.sqrt(ops.sum_squares(w, (0,)))
        m, o = ops.constant(most, w), ops.constant(one, w)
        factor = ops.where(ops.greater(norm, m), ops.divide(m, norm), o)
        return ops.multiply(w, ops.fence(ops.cast(factor, dtype)))

    got, expected = mode(lambda w: scaled(OPS, w))(tf.constant(x)), scaled(NUMPY, x.copy())
    if dtype == np.float64:
        np.testing.assert_allclose(
            got, expected, rtol=1e-15
        )  # sums differ in the last place, and nothing rounds it off
    else:
        assert_same_numbers(got, expected)


# XLA takes seconds to compile the decomposition, and it runs in float64 whatever comes in.
SINGULAR = [(mode, dtype) for mode in MODES for dtype in DTYPES if mode.id != "xla" or dtype == np.float32]


@pytest.mark.parametrize(
    ("mode", "dtype"), [pytest.param(mode.values[0], dtype, id=f"{dtype.name}-{mode.id}") for mode, dtype in SINGULAR]
)
def test_the_largest_singular_value_is_close_to_numpy_within_1e_12(mode, dtype):
    x = number(np.random.default_rng(0).standard_normal((40, 23)), dtype)
    for one in (x, x.T.copy(), x[:1], np.zeros((0, 4), dtype)):
        got = mode(OPS.largest_singular_value)(tf.constant(one))
        assert got.dtype == tf.float64
        assert got.shape == ()
        np.testing.assert_allclose(got, NUMPY.largest_singular_value(one), rtol=1e-12)


@each_mode
@each_dtype
def test_rank_is_numpys_stable_order_with_nan_last(mode, dtype):
    x = np.concatenate([ordinary(dtype, 3001), ordinary(dtype, 500), number(np.repeat([2, -2, 0, -0.0], 50), dtype)])
    got = mode(OPS.rank)(tf.constant(x))
    assert got.dtype == tf.int64
    assert np.array_equal(got, NUMPY.rank(x))


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 2.5]), min_size=1, max_size=40))
def test_rank_is_stable_for_any_ties(values):
    x = np.asarray(values, np.float32)
    graph = tf.function(OPS.rank, autograph=False, input_signature=[tf.TensorSpec([None], tf.float32)])
    assert np.array_equal(graph(tf.constant(x)), NUMPY.rank(x))


@each_mode
@pytest.mark.parametrize("wanted", [*DTYPES, np.dtype(np.int64)], ids=lambda one: one.name)
@each_dtype
def test_cast_rounds_as_numpy_does(mode, dtype, wanted):
    x = ordinary(dtype)
    if wanted.kind == "i":
        x = number(np.arange(-50, 50), dtype)
    if dtype == np.float64 and wanted == np.float16:
        # half-way cases, which a detour over float32 rounds twice
        half = np.random.default_rng(3).standard_normal(20_000).astype(np.float16)
        x = np.concatenate([x, half + np.spacing(half) * (0.5 + 1e-9), half + np.spacing(half) * (0.5 - 1e-9)])
    with np.errstate(all="ignore"):
        assert_same_numbers(mode(lambda w: OPS.cast(w, wanted))(tf.constant(x)), NUMPY.cast(x, wanted))


@each_mode
@each_dtype
def test_the_other_measures_agree_with_numpy(mode, dtype):
    x = ordinary(dtype, 240).reshape(4, 5, 12)
    y = ordinary(dtype, 240, seed=1).reshape(4, 5, 12)
    x[~np.isfinite(x)] = 2
    x[np.abs(x) > 100] = 4
    y[~np.isfinite(y) | (y == 0) | (np.abs(y) > 100)] = 3
    a, b = tf.constant(x), tf.constant(y)
    with np.errstate(all="ignore"):
        assert_same_bits(mode(OPS.abs)(a), NUMPY.abs(x))
        assert_same_numbers(mode(OPS.sqrt)(tf.abs(a)), NUMPY.sqrt(np.abs(x)))
        assert_same_numbers(mode(OPS.divide)(a, b), NUMPY.divide(x, y))
        assert_same_numbers(mode(OPS.minimum)(a, b), NUMPY.minimum(x, y))
    assert np.array_equal(mode(OPS.greater)(a, b), NUMPY.greater(x, y))
    assert_same_bits(mode(lambda w: OPS.where(OPS.greater(w, b), w, b))(a), np.where(x > y, x, y))
    assert_same_bits(mode(lambda w: OPS.reshape(w, (20, 12)))(a), x.reshape(20, 12))
    assert_same_bits(mode(lambda w: OPS.transpose(w, (2, 0, 1)))(a), x.transpose(2, 0, 1))
    assert_same_bits(mode(lambda w: OPS.concatenate([tf.reshape(w, [-1])] * 2))(a), np.concatenate([x.ravel()] * 2))
    got = np.asarray(mode(lambda w: OPS.sum(w, (0, 2)))(tf.constant(np.abs(y)))).astype(np.float64)
    rtol = {2: 0.02, 4: 1e-6, 8: 1e-14}[dtype.itemsize]
    np.testing.assert_allclose(got, NUMPY.sum(np.abs(y), (0, 2)).astype(np.float64), rtol=rtol)


@each_mode
@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_rounds_as_ml_dtypes_does(mode, name):
    dtype = np.dtype(getattr(ml_dtypes, name))
    x = np.arange(256, dtype=np.uint8).view(dtype)
    y, low, high = number(0.75, dtype), number(-1, dtype), number(0.0, dtype)
    mask = np.arange(256) % 3 > 0
    with np.errstate(all="ignore"):
        assert_same_numbers(mode(lambda w: OPS.multiply(w, OPS.constant(y, w)))(tf.constant(x)), x * y)
        assert_same_numbers(mode(lambda w: OPS.add(w, OPS.constant(y, w)))(tf.constant(x)), x + y)
        expected = np.where(x < low, low, np.where(x > high, high, x))
    assert_same_numbers(
        mode(lambda w: OPS.clip(w, OPS.constant(low, w), OPS.constant(high, w)))(tf.constant(x)), expected
    )
    kept = np.where(mask, bits(x), 0).astype(np.uint8).view(dtype)
    assert_same_numbers(mode(lambda w: OPS.keep(w, OPS.constant(mask, w)))(tf.constant(x)), kept)
