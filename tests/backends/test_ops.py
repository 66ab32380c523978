"""Array math of JAX and TensorFlow against NumPy's, eagerly and in each way that the framework compiles.

Exact operations bit by bit over 100,000 entries and every special value; measures within the rtol on top of the test.
Subnormal results are outside the promise for arithmetic, and left out here: XLA and TensorFlow flush them. PyTorch's
math is tested in tests/backends/torch.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xweights.core.numpy_backend import NumpyOps

NUMPY = NumpyOps()
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), BFLOAT16]
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}

# Ops need no Keras: those of JAX run where Keras runs on JAX, and not again for each of Keras' backends.
ON_JAX = (
    pytest.mark.keras_backend,
    pytest.mark.skipif(os.environ.get("KERAS_BACKEND", "jax") != "jax", reason="runs with Keras on JAX"),
)


@dataclass(frozen=True)
class Framework:
    """A framework's ops, its arrays, and the ways to run a function of them."""

    ops: Any
    array: Callable[[Any], Any]
    modes: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]]


@functools.cache
def jax_framework() -> Framework:
    jax = pytest.importorskip("jax")
    from xweights_jax.ops import JaxOps, x64

    def array(value):
        with x64():
            return jax.numpy.array(value)

    def jit(function):
        compiled = jax.jit(function)

        def run(*arguments):
            # A float64 array can't be an input of a jitted function unless the caller, too, is in the 64-bit mode.
            if any(argument.dtype == np.float64 for argument in arguments):
                with x64():
                    return compiled(*arguments)
            return compiled(*arguments)

        return run

    return Framework(JaxOps(), array, {"eager": lambda function: function, "jit": jit})


@functools.cache
def tensorflow_framework() -> Framework:
    tf = pytest.importorskip("tensorflow")
    from xweights_tensorflow.ops import TensorFlowOps

    modes = {
        "eager": lambda function: function,
        "graph": lambda function: tf.function(function, autograph=False),
        "xla": lambda function: tf.function(function, autograph=False, jit_compile=True),
    }
    return Framework(TensorFlowOps(), tf.constant, modes)


@dataclass(frozen=True)
class Mode:
    """A framework and one way to run its ops; the framework is imported by the first test that needs it."""

    load: Callable[[], Framework]
    name: str

    @property
    def ops(self) -> Any:
        return self.load().ops

    def array(self, value: Any) -> Any:
        return self.load().array(value)

    def run(self, function: Callable[..., Any], *arrays: Any) -> Any:
        """Run a function on NumPy arrays."""
        return self.load().modes[self.name](function)(*[self.array(array) for array in arrays])


MODES = [
    pytest.param(Mode(jax_framework, "eager"), id="jax-eager", marks=ON_JAX),
    pytest.param(Mode(jax_framework, "jit"), id="jax-jit", marks=ON_JAX),
    *(pytest.param(Mode(tensorflow_framework, name), id=f"tensorflow-{name}") for name in ("eager", "graph", "xla")),
]
each_mode = pytest.mark.parametrize("mode", MODES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=[dtype.name for dtype in DTYPES])


def on_jax(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test of JAX alone."""
    for mark in ON_JAX:
        test = mark(test)
    return test


def bits(array):
    array = np.asarray(array)
    return np.ascontiguousarray(array).view(UNSIGNED[array.dtype.itemsize]).reshape(array.shape)


def number(value, dtype):
    return np.asarray(value, np.float64).astype(dtype)


def ordinary(dtype, size=100_003, seed=0):
    """Draw normals with every special value in front, in the middle and at the end (kernels treat tails apart)."""
    info = ml_dtypes.finfo(dtype)
    most, least = float(info.max), float(info.smallest_normal) * 8
    special = number([0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1, -1, 0.5, -0.5, most, -most, least, -least], dtype)
    x = np.random.default_rng(seed).standard_normal(size).astype(dtype)
    for start in (0, size // 2, size - len(special)):
        x[start : start + len(special)] = special
    return x


def any_bits(dtype, size=100_003, seed=0):
    """Draw bit patterns: subnormals, NaN payloads, signalling NaNs and all."""
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
    """Assert the same bits, except where NumPy has a subnormal and for NaN, whose sign the processor chooses."""
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
    ops, x, y = mode.ops, ordinary(dtype), number(factor, dtype)
    got = mode.run(lambda w: ops.multiply(w, ops.constant(y, w)), x)
    with np.errstate(all="ignore"):
        assert_same_numbers(got, NUMPY.multiply(x.copy(), y))


@each_mode
@each_dtype
def test_multiply_and_add_take_arrays(mode, dtype):
    ops = mode.ops
    x, y = ordinary(dtype).reshape(1, -1), ordinary(dtype, seed=1).reshape(1, -1)[:, ::-1]
    with np.errstate(all="ignore"):
        product, total = NUMPY.multiply(x.copy(), y), NUMPY.add(x.copy(), y)
    assert_same_numbers(mode.run(lambda w: ops.multiply(w, ops.constant(y, w)), x), product)
    assert_same_numbers(mode.run(lambda w: ops.add(w, ops.constant(y, w)), x), total)


@each_mode
@each_dtype
@pytest.mark.parametrize("delta", [0.3, 0.0, -0.0, -1.0])
def test_add_keeps_the_rules_of_signed_zeros(mode, dtype, delta):
    ops, x, y = mode.ops, ordinary(dtype), number(delta, dtype)
    got = mode.run(lambda w: ops.add(w, ops.constant(y, w)), x)
    assert_same_numbers(got, NUMPY.add(x.copy(), y))


@each_mode
@each_dtype
@pytest.mark.parametrize(
    ("low", "high"),
    [(-1, 1), (-0.3, 0.7), (0.1, 0.2), (0.0, 1), (-0.0, 1), (-1, 0.0), (-1, -0.0), (0.0, 0.0), (-np.inf, 0.5),
     (None, 0.25), (0.25, None), (0.0, None), (None, 0.0), (-0.0, None), (np.inf, None)],
)  # fmt: skip
def test_clip_is_its_definition(mode, dtype, low, high):
    ops, x = mode.ops, any_bits(dtype)
    x[subnormal(x)] = 0
    x = np.concatenate([x, ordinary(dtype)])
    bounds = [None if bound is None else number(bound, dtype) for bound in (low, high)]
    # From the definition and not from NumPy's clip.
    expected = x.copy()
    with np.errstate(invalid="ignore"):
        if bounds[0] is not None:
            expected[x < bounds[0]] = bounds[0]
        if bounds[1] is not None:
            expected[x > bounds[1]] = bounds[1]

    def clip(w):
        return ops.clip(w, *[None if bound is None else ops.constant(bound, w) for bound in bounds])

    assert_same_bits(mode.run(clip, x), expected)


@each_mode
@each_dtype
def test_clip_takes_arrays_as_bounds(mode, dtype):
    ops, x = mode.ops, ordinary(dtype, 300).reshape(20, 15)
    low, high = number(np.linspace(-1, 0, 15), dtype), number(np.linspace(0, 1, 20), dtype).reshape(20, 1)
    got = mode.run(lambda w: ops.clip(w, ops.constant(low, w), ops.constant(high, w)), x)
    assert_same_bits(got, np.where(x < low, low, np.where(x > high, high, x)))


@each_mode
@each_dtype
def test_operations_that_only_move_bits_keep_every_bit(mode, dtype):
    ops, x, y = mode.ops, any_bits(dtype), any_bits(dtype, seed=1)
    mask = np.random.default_rng(2).random(x.shape) < 0.5
    kept = np.where(mask, bits(x), 0).astype(UNSIGNED[dtype.itemsize]).view(dtype)
    assert_same_bits(mode.run(lambda w: ops.keep(w, ops.constant(mask, w)), x), kept)
    expected = np.where(mask, bits(x), bits(y)).view(dtype)
    assert_same_bits(mode.run(lambda w: ops.choose(w, ops.constant(mask, w), ops.constant(y, w)), x), expected)
    assert_same_bits(mode.run(lambda w: ops.fence(w), x), x)
    assert_same_bits(mode.run(lambda w: ops.fill(w, ops.constant(y, w)), x), y)
    scalar = y[:1].reshape(())
    assert_same_bits(mode.run(lambda w: ops.fill(w, ops.constant(scalar, w)), x), np.full(x.shape, scalar))
    row = y[:3]
    assert_same_bits(mode.run(lambda w: ops.fill(w, ops.constant(row, w)), x[:6].reshape(2, 3)), np.stack([row, row]))


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
def test_set_at_writes_the_entries_that_numpy_writes(mode, dtype, index, whole):
    ops, x, y = mode.ops, any_bits(dtype, 120).reshape(4, 5, 6), any_bits(dtype, 240, seed=1)
    value = y[0].reshape(()) if whole else y[: x[index].size].reshape(x[index].shape)
    expected = x.copy()
    view = expected.view(UNSIGNED[dtype.itemsize])
    view[index] = bits(value)
    got = mode.run(lambda w: ops.set_at(w, index, ops.constant(np.asarray(value), w)), x)
    assert_same_bits(got, expected)


@each_mode
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8, np.bool_])
def test_edits_that_make_sense_work_on_integers_and_bools(mode, dtype):
    ops, x = mode.ops, np.arange(12).reshape(3, 4).astype(dtype)
    mask = x % 2 == 0
    assert_same_bits(mode.run(lambda w: ops.keep(w, ops.constant(mask, w)), x), np.where(mask, x, 0).astype(dtype))
    value = np.asarray(1, dtype)
    assert_same_bits(mode.run(lambda w: ops.fill(w, ops.constant(value, w)), x), np.full_like(x, 1))
    expected = x.copy()
    expected[1, 2:] = value
    assert_same_bits(mode.run(lambda w: ops.set_at(w, (1, slice(2, None)), ops.constant(value, w)), x), expected)
    assert_same_bits(mode.run(ops.fence, x), x)
    if dtype is not np.bool_:
        low, high = np.asarray(3, dtype), np.asarray(7, dtype)
        got = mode.run(lambda w: ops.clip(w, ops.constant(low, w), ops.constant(high, w)), x)
        assert_same_bits(got, np.clip(x, 3, 7))


@each_mode
@each_dtype
def test_a_chain_with_fences_has_the_bits_of_one_op_after_the_other(mode, dtype):
    x = ordinary(dtype, 100_003)
    a, b, c, d = (number(value, dtype) for value in (0.9, 0.3, 1.1, 1.7))

    def chain(ops, w):
        w = ops.fence(ops.multiply(w, ops.constant(a, w)))
        w = ops.fence(ops.multiply(w, ops.constant(c, w)))
        w = ops.fence(ops.add(w, ops.constant(b, w)))
        w = ops.fence(ops.clip(w, ops.constant(-d, w), ops.constant(d, w)))
        w = ops.fence(ops.multiply(w, ops.constant(c, w)))
        return ops.fence(ops.add(w, ops.constant(-b, w)))

    with np.errstate(all="ignore"):
        expected = chain(NUMPY, x.copy())
    assert_same_numbers(mode.run(lambda w: chain(mode.ops, w), x), expected)


@on_jax
def test_without_fences_xla_changes_the_bits_of_a_chain_in_jax():
    jax = pytest.importorskip("jax")
    x = ordinary(np.dtype(np.float32))
    a, b = number(0.9, np.float32), number(0.3, np.float32)

    def chain(w):
        return jax.lax.optimization_barrier(w * a) + b

    got = Mode(jax_framework, "jit").run(chain, x)
    assert np.any(bits(got) != bits(x * a + b)), "the fences guard against nothing"


def test_without_fences_xla_changes_the_bits_of_a_chain_in_tensorflow():
    ops = tensorflow_framework().ops
    x = ordinary(np.dtype(np.float32))
    a, b = number(0.9, np.float32), number(0.3, np.float32)

    def chain(w):
        return ops.add(ops.multiply(w, ops.constant(a, w)), ops.constant(b, w))

    got = Mode(tensorflow_framework, "xla").run(chain, x)
    assert np.any(bits(got) != bits(x * a + b)), "the fences guard against nothing"


@on_jax
def test_fences_hold_in_loops_branches_and_vmap():
    jax = pytest.importorskip("jax")
    ops, array = jax_framework().ops, jax_framework().array
    x = ordinary(np.dtype(np.float32), 60_000).reshape(3, 20_000)
    a, b = number(0.9, np.float32), number(0.3, np.float32)
    expected = x * a + b

    def chain(w):
        return ops.add(ops.fence(ops.multiply(w, ops.constant(a, w))), ops.constant(b, w))

    assert_same_numbers(jax.jit(jax.vmap(chain))(x), expected)
    assert_same_numbers(jax.lax.fori_loop(0, 1, lambda _, w: chain(w), array(x)), expected)
    assert_same_numbers(jax.lax.cond(True, chain, lambda w: w, array(x)), expected)


def test_fences_hold_wherever_tensorflow_first_traces_them():
    tf = pytest.importorskip("tensorflow")
    ops = tensorflow_framework().ops
    x = ordinary(np.dtype(np.float32))
    a, b = number(0.9, np.float32), number(0.3, np.float32)
    with np.errstate(all="ignore"):
        expected = x * a + b

    def chain(w):
        return ops.add(ops.fence(ops.multiply(w, ops.constant(a, w))), ops.constant(b, w))

    inner = tf.function(chain, autograph=False)
    assert_same_numbers(inner(tf.constant(x)), expected)  # traced now, and compiled by XLA as it is below
    outer = tf.function(lambda w: inner(w), autograph=False, jit_compile=True)
    assert_same_numbers(outer(tf.constant(x)), expected)

    @tf.function(jit_compile=True, autograph=False)
    def looped(w):
        return tf.while_loop(lambda i, _: i < 1, lambda i, v: (i + 1, chain(v)), (0, w))[1]

    assert_same_numbers(looped(tf.constant(x)), expected)
    branching = tf.function(lambda w: tf.cond(w[0] > 9, lambda: w, lambda: chain(w)), autograph=False)
    assert_same_numbers(branching(tf.constant(x)), expected)
    with tf.Graph().as_default():
        result = chain(tf.constant(x))
        with tf.compat.v1.Session() as session:
            assert_same_numbers(session.run(result), expected)
    assert_same_numbers(Mode(tensorflow_framework, "xla").run(chain, x), expected)


@each_mode
@each_dtype
@pytest.mark.parametrize("axes", [None, (0,), (0, 1), (2,)])
def test_sum_squares_is_close_to_numpy_within_1e_14(mode, dtype, axes):
    x = number(np.random.default_rng(0).standard_normal((7, 31, 13)), dtype)
    got = np.asarray(mode.run(lambda w: mode.ops.sum_squares(w, axes), x))
    expected = NUMPY.sum_squares(x, axes)
    assert got.dtype == np.float64
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-14)


@each_mode
@each_dtype
def test_a_units_norm_and_the_factor_computed_from_it_have_numpys_bits(mode, dtype):
    x = number(np.random.default_rng(0).standard_normal((64, 500)) * 0.2, dtype)
    most, unit = np.asarray(1.5), np.asarray(1.0)

    def scale(ops, w):
        norm = ops.sqrt(ops.sum_squares(w, (0,)))
        m, o = ops.constant(most, w), ops.constant(unit, w)
        factor = ops.where(ops.greater(norm, m), ops.divide(m, norm), o)
        return ops.multiply(w, ops.fence(ops.cast(factor, dtype)))

    got, expected = mode.run(lambda w: scale(mode.ops, w), x), scale(NUMPY, x.copy())
    if dtype == np.float64:
        # Sums differ in the last place, and nothing rounds it off.
        np.testing.assert_allclose(got, expected, rtol=1e-15)
    else:
        assert_same_numbers(got, expected)


# XLA takes seconds to compile TensorFlow's decomposition, and it runs in float64 whatever comes in.
SINGULAR = [
    pytest.param(*mode.values, dtype, id=f"{dtype.name}-{mode.id}", marks=mode.marks)
    for mode in MODES
    for dtype in DTYPES
    if mode.id != "tensorflow-xla" or dtype == np.float32
]


@pytest.mark.parametrize(("mode", "dtype"), SINGULAR)
def test_the_largest_singular_value_is_close_to_numpy_within_1e_12(mode, dtype):
    x = number(np.random.default_rng(0).standard_normal((40, 23)), dtype)
    for matrix in (x, x.T.copy(), x[:1], np.zeros((0, 4), dtype)):
        got = mode.run(mode.ops.largest_singular_value, matrix)
        assert got.dtype == np.float64
        assert got.shape == ()
        np.testing.assert_allclose(got, NUMPY.largest_singular_value(matrix), rtol=1e-12)


@each_mode
@each_dtype
def test_rank_is_numpys_stable_order_with_nan_last(mode, dtype):
    x = np.concatenate([ordinary(dtype, 3001), ordinary(dtype, 500), number(np.repeat([2, -2, 0, -0.0], 50), dtype)])
    got = mode.run(mode.ops.rank, x)
    assert got.dtype == np.int64
    assert np.array_equal(got, NUMPY.rank(x))


@functools.cache
def jax_rank() -> Callable[[Any], Any]:
    jax = pytest.importorskip("jax")
    return jax.jit(jax_framework().ops.rank)


TIES = st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 2.5]), min_size=1, max_size=40)


@on_jax
@given(TIES)
def test_rank_is_stable_for_any_ties_in_jax(values):
    x = np.asarray(values, np.float32)
    padded = np.concatenate([x, np.full(40 - len(x), np.nan, np.float32)])  # one shape, one compilation
    assert np.array_equal(jax_rank()(padded), NUMPY.rank(padded))


@given(TIES)
def test_rank_is_stable_for_any_ties_in_tensorflow(values):
    tf = pytest.importorskip("tensorflow")
    ops = tensorflow_framework().ops
    x = np.asarray(values, np.float32)
    graph = tf.function(ops.rank, autograph=False, input_signature=[tf.TensorSpec([None], tf.float32)])
    assert np.array_equal(graph(tf.constant(x)), NUMPY.rank(x))


@each_mode
@pytest.mark.parametrize("wanted", [*DTYPES, np.dtype(np.int64)], ids=lambda dtype: dtype.name)
@each_dtype
def test_cast_rounds_as_numpy_does(mode, dtype, wanted):
    x = ordinary(dtype)
    if wanted.kind == "i":
        x = number(np.arange(-50, 50), dtype)
    if dtype == np.float64 and wanted == np.float16:
        # Half-way cases, which a detour over float32 rounds twice.
        half = np.random.default_rng(3).standard_normal(20_000).astype(np.float16)
        x = np.concatenate([x, half + np.spacing(half) * (0.5 + 1e-9), half + np.spacing(half) * (0.5 - 1e-9)])
    with np.errstate(all="ignore"):
        assert_same_numbers(mode.run(lambda w: mode.ops.cast(w, wanted), x), NUMPY.cast(x, wanted))


@each_mode
@each_dtype
def test_the_other_measures_agree_with_numpy(mode, dtype):
    ops = mode.ops
    x = ordinary(dtype, 240).reshape(4, 5, 12)
    y = ordinary(dtype, 240, seed=1).reshape(4, 5, 12)
    x[~np.isfinite(x)] = 2
    x[np.abs(x) > 100] = 4
    y[~np.isfinite(y) | (y == 0) | (np.abs(y) > 100)] = 3
    b = mode.array(y)
    with np.errstate(all="ignore"):
        assert_same_bits(mode.run(ops.abs, x), NUMPY.abs(x))
        assert_same_numbers(mode.run(ops.sqrt, np.abs(x)), NUMPY.sqrt(np.abs(x)))
        assert_same_numbers(mode.run(ops.divide, x, y), NUMPY.divide(x, y))
        assert_same_numbers(mode.run(ops.minimum, x, y), NUMPY.minimum(x, y))
    assert np.array_equal(mode.run(ops.greater, x, y), NUMPY.greater(x, y))
    assert_same_bits(mode.run(lambda w: ops.where(ops.greater(w, b), w, b), x), np.where(x > y, x, y))
    assert_same_bits(mode.run(lambda w: ops.reshape(w, (20, 12)), x), x.reshape(20, 12))
    assert_same_bits(mode.run(lambda w: ops.transpose(w, (2, 0, 1)), x), x.transpose(2, 0, 1))
    assert_same_bits(
        mode.run(lambda w: ops.concatenate([ops.reshape(w, (-1,))] * 2), x), np.concatenate([x.ravel()] * 2)
    )
    got = np.asarray(mode.run(lambda w: ops.sum(w, (0, 2)), np.abs(y))).astype(np.float64)
    rtol = {2: 0.02, 4: 1e-6, 8: 1e-14}[dtype.itemsize]
    np.testing.assert_allclose(got, NUMPY.sum(np.abs(y), (0, 2)).astype(np.float64), rtol=rtol)


@each_mode
@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_rounds_as_ml_dtypes_does(mode, name):
    ops, dtype = mode.ops, np.dtype(getattr(ml_dtypes, name))
    x = np.arange(256, dtype=np.uint8).view(dtype)
    y, low, high = number(0.75, dtype), number(-1, dtype), number(0.0, dtype)
    mask = np.arange(256) % 3 > 0
    with np.errstate(all="ignore"):
        assert_same_numbers(mode.run(lambda w: ops.multiply(w, ops.constant(y, w)), x), x * y)
        assert_same_numbers(mode.run(lambda w: ops.add(w, ops.constant(y, w)), x), x + y)
        expected = np.where(x < low, low, np.where(x > high, high, x))
    assert_same_numbers(mode.run(lambda w: ops.clip(w, ops.constant(low, w), ops.constant(high, w)), x), expected)
    kept = np.where(mask, bits(x), 0).astype(np.uint8).view(dtype)
    assert_same_numbers(mode.run(lambda w: ops.keep(w, ops.constant(mask, w)), x), kept)
