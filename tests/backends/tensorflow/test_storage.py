"""Reading and writing ``tf.Variable``s: no aliasing, no lost bits, and undo for writes of any origin."""

import ml_dtypes
import numpy as np
import pytest

from xweights.errors import TraceError, WriteError

tf = pytest.importorskip("tensorflow")
from tensorflow.python.ops.resource_variable_ops import UninitializedVariable  # noqa: E402

from xweights_tensorflow import backend  # noqa: E402

DTYPES = [
    "float32",
    "float64",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "int32",
    "int64",
    "uint8",
    "bool",
]
each_dtype = pytest.mark.parametrize("name", DTYPES)


def dtype_of(name):
    return np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.dtype(name)


def any_bits(name, shape, seed=0):
    dtype = dtype_of(name)
    raw = np.random.default_rng(seed).integers(
        0, 2 if name == "bool" else 256, int(np.prod(shape)) * dtype.itemsize, np.uint8
    )
    return raw.view(dtype).reshape(shape)


def raw(array):
    return np.ascontiguousarray(array).tobytes()


def at_offset(array, offset):
    """Copy values to a chosen distance from a 64-byte boundary."""
    room = np.zeros(array.nbytes + 256, np.uint8)
    start = -room.ctypes.data % 64 + offset
    placed = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    placed[...] = array
    return placed


@each_dtype
@pytest.mark.parametrize("shape", [(5, 7), (), (0, 3), (1,)])
def test_written_values_are_read_back_bit_by_bit(name, shape):
    value = any_bits(name, shape)
    variable = tf.Variable(np.zeros(shape, dtype_of(name)))
    storage = backend.storage(variable)
    storage.write(variable, value)
    got = storage.read(variable)
    assert got.dtype == value.dtype
    assert got.shape == value.shape
    assert raw(got) == raw(value)


@each_dtype
def test_a_read_is_a_read_only_view(name):
    variable = tf.Variable(any_bits(name, (64, 3)))
    storage = backend.storage(variable)
    first, second = storage.read(variable), storage.read(variable)
    assert not first.flags.writeable
    assert np.shares_memory(first, second)


@each_dtype
def test_a_write_never_aliases_the_callers_array_at_any_alignment(name):
    value = any_bits(name, (64, 3))
    for offset in range(0, 128, 8):
        source = at_offset(value, offset)
        variable = tf.Variable(np.zeros_like(value))
        storage = backend.storage(variable)
        storage.write(variable, source)
        assert not np.shares_memory(storage.read(variable), source)
        source[...] = np.zeros_like(value)
        assert raw(storage.read(variable)) == raw(value)


def test_arrays_of_any_strides_are_written_in_their_order():
    value = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for source in (value.transpose(2, 0, 1), value[:, ::-1], value[..., ::2], np.broadcast_to(value[:1], (5, 3, 4))):
        variable = tf.Variable(np.zeros(source.shape, np.float32))
        backend.storage(variable).write(variable, source)
        assert np.array_equal(variable.numpy(), source)


def test_a_view_of_one_variable_written_to_another_leaves_them_independent():
    one, two = tf.Variable(np.arange(1000.0)), tf.Variable(np.zeros(1000))
    storage = backend.storage(one)
    storage.write(two, storage.read(one))
    assert not np.shares_memory(storage.read(one), storage.read(two))


WRITES = {
    "assign": lambda v: v.assign(tf.ones_like(v)),
    "assign_add": lambda v: v.assign_add(tf.ones_like(v)),
    "slice": lambda v: v[2:5].assign([7.0, 7.0, 7.0]),
    "scatter": lambda v: v.scatter_update(tf.IndexedSlices(tf.constant([9.0, 9.0]), tf.constant([0, 3]))),
    "scatter_nd": lambda v: v.scatter_nd_update([[1]], [3.0]),
    "graph": tf.function(lambda v: v.assign(v * 2)),
    "graph_add": tf.function(lambda v: v.assign_add(v)),
    "xla": tf.function(lambda v: v.assign(v * 2), jit_compile=True),
    "xla_add": tf.function(lambda v: v.assign_add(v), jit_compile=True),
    "sgd": lambda v: tf.raw_ops.ResourceApplyGradientDescent(var=v.handle, alpha=0.5, delta=tf.ones_like(v)),
}
each_write = pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)


@each_write
def test_a_backup_brings_every_bit_back_whoever_wrote(write):
    value = np.concatenate([any_bits("float32", (100,)), np.float32([0.0, -0.0, 1e-42, np.inf, np.nan])])
    variable = tf.Variable(value)
    storage = backend.storage(variable)
    kept = storage.backup(variable)
    for _ in range(3):
        write(variable)
    assert raw(variable.numpy()) != raw(value)
    storage.restore(variable, kept)
    assert raw(variable.numpy()) == raw(value)
    write(variable)
    storage.restore(variable, kept)
    assert raw(variable.numpy()) == raw(value)


@each_write
def test_two_variables_that_were_given_the_same_tensor_change_independently(write):
    one, two = tf.Variable(np.zeros(64, np.float32)), tf.Variable(np.zeros(64, np.float32))
    storage = backend.storage(one)
    tensor = tf.constant(np.linspace(1, 2, 64, dtype=np.float32))
    before = tensor.numpy()
    for variable in (one, two):
        storage.commit(variable, storage.native_array(variable), tensor)
    write(one)
    assert raw(two.numpy()) == raw(before)
    assert raw(tensor.numpy()) == raw(before)


def test_commit_leaves_an_unchanged_native_array_alone():
    variable = tf.Variable([1.0, 2.0])
    storage = backend.storage(variable)
    native = storage.native_array(variable)
    before = storage.read(variable)
    storage.commit(variable, native, native)
    assert np.shares_memory(storage.read(variable), before)


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_edits_in_a_tf_function_happen_in_program_order(jit):
    variable = tf.Variable([1.0, -0.0])
    storage = backend.storage(variable)

    @tf.function(jit_compile=jit, autograph=False)
    def step():
        variable.assign_add([1.0, 0.0])
        native = storage.native_array(variable)
        storage.commit(variable, native, native * 10.0)
        variable.assign_add([0.5, 1.0])
        kept = storage.backup(variable)
        storage.write(variable, np.float32([7, 7]))
        seen = variable.read_value()
        storage.restore(variable, kept)
        return seen

    assert step().numpy().tolist() == [7, 7]
    assert variable.numpy().tolist() == [20.5, 1.0]


def test_a_value_can_not_be_read_while_tracing():
    variable = tf.Variable([1.0])

    @tf.function(autograph=False)
    def step():
        backend.storage(variable).read(variable)

    with pytest.raises(TraceError, match="traced"):
        step()


def test_the_native_array_is_seen_by_a_gradient_tape():
    variable = tf.Variable([2.0])
    with tf.GradientTape() as tape:
        native = backend.storage(variable).native_array(variable, tensor=True)
        loss = tf.reduce_sum(native * native)
    assert tape.gradient(loss, variable).numpy().tolist() == [4.0]


def test_trainable_is_known_and_can_not_be_changed():
    variable = tf.Variable(1.0, trainable=False)
    storage = backend.storage(variable)
    assert storage.trainable(variable) is False
    storage.set_trainable(variable, False)
    with pytest.raises(WriteError, match="fixes whether"):
        storage.set_trainable(variable, True)


def test_an_ordinary_variable_is_not_refused():
    variable = tf.Variable(1.0)
    for _ in range(2):
        assert backend.storage(variable).refusal(variable, writing=True) is None


def test_a_variable_of_one_replica_is_no_reason_to_refuse():
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        variable = tf.Variable([1.0])
    storage = backend.storage(variable)
    assert storage.refusal(variable, writing=True) is None
    storage.write(variable, np.array([2.0], np.float32))
    assert storage.read(variable).tolist() == [2.0]


def test_a_variable_without_a_value_is_refused():
    made = []

    @tf.function
    def make():
        if not made:
            made.append(tf.Variable([1.0]))
        assert backend.storage(made[0]).refusal(made[0], writing=True) is None
        return made[0]

    make()
    assert backend.storage(made[0]).refusal(made[0], writing=True) is None
    empty = UninitializedVariable(shape=[1], dtype=tf.float32)
    assert "no value" in backend.storage(empty).refusal(empty, writing=True)
    empty.assign([1.0])
    assert backend.storage(empty).refusal(empty, writing=True) is None


def test_a_reference_variable_of_tensorflow_1_is_refused():
    with tf.Graph().as_default():
        variable = tf.compat.v1.Variable([1.0], use_resource=False)
        assert "TensorFlow 1" in backend.storage(variable).refusal(variable, writing=True)
