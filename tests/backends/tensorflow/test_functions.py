"""Verbs and bound rules in ``tf.function``: under AutoGraph, compiled by XLA, and in steps that compile themselves."""

import inspect

import numpy as np
import pytest

import xweights as xw

tf = pytest.importorskip("tensorflow")
from xweights_tensorflow import backend  # noqa: E402
from xweights_tensorflow.graphs import CompiledStep, has_outside  # noqa: E402
from xweights_tensorflow.ops import TensorFlowOps  # noqa: E402
from xweights_tensorflow.storage import VARIABLES  # noqa: E402

OPS = TensorFlowOps()

each_compiler = pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])


def module(count=3, size=1000, seed=0):
    rng = np.random.default_rng(seed)
    net = tf.Module()
    net.w = [tf.Variable(rng.standard_normal(size).astype(np.float32)) for _ in range(count)]
    return net


def values(net):
    return {f"w/{i}": variable.numpy() for i, variable in enumerate(net.w)}


def assert_same(net, mapping):
    for name, array in values(net).items():
        assert array.tobytes() == mapping[name].tobytes(), name


@each_compiler
def test_several_verbs_in_one_step_have_numpys_bits(jit):
    net = module()
    mirror = values(net)
    keep = {name: np.random.default_rng(1).random(1000) < 0.7 for name in mirror}

    def edit(target):
        xw.scale(target, 0.9, where="*")
        xw.scale(target, 1.1, where="*")
        xw.add(target, 0.3, where="*")
        xw.clip(target, -1, 0.0, where="*")
        xw.mask(target, keep, where="*")
        xw.scale(target, -1 / 3, where="w/1")
        xw.set_entries(target, (slice(0, 5),), 7.0, where="w/0")

    @tf.function(jit_compile=jit, autograph=False)
    def step():
        edit(net)

    for _ in range(3):
        step()
        edit(mirror)
    assert step.experimental_get_tracing_count() == 1
    assert_same(net, mirror)


@each_compiler
def test_a_verb_works_in_a_function_that_autograph_converts(jit):
    net = module()
    mirror = values(net)
    generated = []

    def halve(w):
        generated.append(
            [frame.function for frame in inspect.stack() if "__autograph_generated_file" in frame.filename]
        )
        return w * 0.5

    @tf.function(jit_compile=jit)
    def step(x):
        if x > 0:
            x = x + 1
        xw.clip(net, -0.5, 0.5, where="*")
        xw.apply(net, halve, where="w/0")
        for one in tf.range(3):
            x = x + tf.cast(one, tf.float32)
        return x

    assert step(tf.constant(1.0)).numpy() == 5
    assert generated == [["tf__step"]], "AutoGraph converted xweights itself, which takes seconds"
    xw.clip(mirror, -0.5, 0.5, where="*")
    xw.scale(mirror, 0.5, where="w/0")
    assert_same(net, mirror)


def callables(owner):
    for name in getattr(owner, "__all__", vars(owner)):
        one = getattr(owner, name)
        if callable(one) and not isinstance(one, type) and not name.startswith("__"):
            yield one


def test_autograph_leaves_everything_public_alone():
    # AutoGraph converts whatever a tf.function calls, and what that calls, unless it finds this attribute.
    marked = [*callables(xw), *callables(xw.Bound), *callables(xw.Snapshot), *callables(xw.Parameter)]
    assert [function.__qualname__ for function in marked if not hasattr(function, "autograph_info__")] == []
    assert hasattr(xw.Bound, "autograph_info__")


def test_an_error_of_ours_comes_out_of_a_converted_function_as_itself():
    net = module()

    @tf.function
    def step():
        xw.clip(net, -1, 1, where="no such weight")

    with pytest.raises(xw.SelectionError, match="no such weight"):
        step()


@each_compiler
def test_a_bound_rule_runs_in_a_training_step(jit):
    net = module()
    mirror = values(net)
    bound = xw.bind(net, xw.Clip(-0.5, 0.5), where="*")

    @tf.function(jit_compile=jit)
    def step():
        for one in net.w:
            one.assign_add(tf.ones_like(one))
        bound()

    step()
    for name in mirror:
        mirror[name] += np.float32(1)
    xw.clip(mirror, -0.5, 0.5, where="*")
    assert_same(net, mirror)


def test_a_bound_rule_is_compiled_once_its_calls_have_taken_as_long(monkeypatch):
    net = module()
    mirror = values(net)
    bound = xw.bind(net, xw.Scale(0.9), where="*")
    for allowance in (1e9, 0.0, 0.0, 0.0):
        monkeypatch.setattr("xweights_tensorflow.graphs.SECONDS_PER_VARIABLE", allowance)
        bound()
        xw.scale(mirror, 0.9, where="*")
    assert_same(net, mirror)


def test_a_step_compiles_itself_and_serves_inside_another_graph(monkeypatch):
    monkeypatch.setattr("xweights_tensorflow.graphs.SECONDS_PER_VARIABLE", 0.0)
    variable = tf.Variable(1.0)
    calls = []

    def edit():
        calls.append(tf.executing_eagerly())
        VARIABLES.commit(variable, None, VARIABLES.native_array(variable) * 2.0)

    step = backend.compiled(edit)
    assert isinstance(step, CompiledStep)
    for _ in range(5):
        step()
    assert calls == [True, False]
    tf.function(step, autograph=False)()
    assert calls == [True, False, False]
    assert variable.numpy() == 64


def test_a_step_that_xla_cannot_compile_is_compiled_without(monkeypatch):
    monkeypatch.setattr("xweights_tensorflow.graphs.SECONDS_PER_VARIABLE", 0.0)
    variable = tf.Variable(1.0)

    def edit():
        value = tf.strings.to_number(tf.strings.as_string(VARIABLES.native_array(variable) + 1.0))
        VARIABLES.commit(variable, None, value)

    step = backend.compiled(edit)
    for expected in range(2, 8):
        step()
        assert variable.numpy() == expected


def test_tracing_is_distinguished_from_eager_code():
    seen = []
    step = tf.function(lambda: seen.append((backend.tracing(), has_outside())), autograph=False)
    step()
    with tf.Graph().as_default():
        seen.append((backend.tracing(), has_outside()))
    assert backend.tracing() == "no"
    assert seen == [("inline", True), ("inline", False)]


@each_compiler
@pytest.mark.parametrize(
    "rule",
    [
        xw.ClipNorm(1.5),
        xw.ClipNorm(2.5, scope="global"),
        xw.Prune(fraction=0.8),
        xw.Prune(fraction=0.8, scope="global"),
    ],
    ids=repr,
)
def test_rules_that_measure_agree_with_numpy_in_a_compiled_step(jit, rule):
    net = module()
    mirror = values(net)
    tf.function(xw.bind(net, rule, where="*"), jit_compile=jit, autograph=False)()
    xw.apply(mirror, rule, where="*")
    assert_same(net, mirror)


def test_a_saved_function_with_fences_can_be_loaded(tmp_path):
    module = tf.Module()
    module.run = tf.function(
        lambda w: OPS.fence(OPS.multiply(w, OPS.constant(np.asarray(0.5, np.float32), w))),
        input_signature=[tf.TensorSpec([3], tf.float32)],
        jit_compile=True,
    )
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    assert np.asarray(loaded.run(tf.constant([1.0, 2.0, -0.0]))).tolist() == [0.5, 1.0, 0.0]


def test_a_constant_never_shares_memory_with_the_callers_array():
    for offset in range(0, 128, 4):
        room = np.zeros(8192, np.uint8)
        start = -room.ctypes.data % 64 + offset
        source = room[start : start + 4096].view(np.float32)
        assert not np.shares_memory(np.asarray(OPS.constant(source, None)), source)
    turned = np.arange(12.0).reshape(3, 4).T
    assert np.array_equal(OPS.constant(turned, None), turned)
    spread = np.broadcast_to(np.array([True, False]), (50, 2))
    assert np.array_equal(OPS.constant(spread, None), spread)


@each_compiler
def test_a_buffer_refilled_is_seen_by_a_compiled_step(jit):
    x = tf.constant(np.zeros(5, np.float32))
    buffer = OPS.buffer(np.arange(5, dtype=np.float32), x)
    step = tf.function(lambda: OPS.add(x, OPS.current(buffer)), jit_compile=jit, autograph=False)
    assert np.asarray(step()).tolist() == [0, 1, 2, 3, 4]
    OPS.refill(buffer, np.full(5, 7, np.float32))
    assert np.asarray(step()).tolist() == [7] * 5


def test_a_fence_is_left_out_where_only_bits_were_moved():
    bound = tf.constant(0.5)
    variable = tf.Variable([1.0, 2.0])

    @tf.function(autograph=False)
    def look():
        read = VARIABLES.native_array(variable)
        moved = OPS.reshape(OPS.clip(OPS.keep(read, tf.constant([True, False])), None, bound), (2,))
        assert OPS.fence(moved) is moved
        computed = OPS.keep(OPS.multiply(moved, bound), tf.constant([True, False]))
        assert OPS.fence(computed) is not computed
        assert OPS.fence(read * 2.0) is not read
        fenced = OPS.fence(computed)
        assert OPS.fence(fenced) is fenced

    look()
