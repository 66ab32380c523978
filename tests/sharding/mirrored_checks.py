"""Checks of `test_mirrored`, run in a process with two devices of TensorFlow."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from fresh_process import report, run_example
from keras_calls import BATCH, GOAL, UP, compare, reads, refused, small, writes

import xweights as xw

(CPU,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(CPU, [tf.config.LogicalDeviceConfiguration()] * 2)
STRATEGY = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
FOLDER = Path(tempfile.mkdtemp())
KEPT = np.arange(8 * 18).reshape(8, 18) % 3 > 0


def mirrored() -> Any:
    with STRATEGY.scope():
        return small()


def copies(variable: Any) -> list[Any]:
    """Return what each replica has, read by TensorFlow alone."""
    native = getattr(variable, "_value", variable)
    return [copy.read_value().numpy() for copy in native.values]


def differing(model: Any) -> list[str]:
    """Return the trained variables whose copies differ."""
    return [v.path for v in model.trainable_variables if len({copy.tobytes() for copy in copies(v)}) > 1]


def compiled(model: Any, optimizer: str = "adamw", **options: Any) -> Any:
    with STRATEGY.scope():
        kind = {"adamw": keras.optimizers.AdamW, "sgd": keras.optimizers.SGD}[optimizer]
        model.compile(kind(0.05, **options), "mse")
    return model


def fit(model: Any, epochs: int = 2) -> None:
    model.fit(BATCH, GOAL, batch_size=4, epochs=epochs, verbose=0)


class Module(tf.Module):
    """A plain module whose statistics each replica has for itself."""

    def __init__(self) -> None:
        super().__init__()
        on_read = {"trainable": False, "synchronization": tf.VariableSynchronization.ON_READ}
        self.kernel = tf.Variable(np.arange(6, dtype=np.float32).reshape(2, 3) / 3)
        self.bias = tf.Variable(np.ones(3, np.float32), aggregation=tf.VariableAggregation.MEAN)
        self.first = tf.Variable([1.0, 2.0], aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA, **on_read)
        self.mean = tf.Variable([1.0, 2.0], aggregation=tf.VariableAggregation.MEAN, **on_read)


def module() -> Module:
    with STRATEGY.scope():
        return Module()


def check_every_call_that_writes_gives_both_replicas_the_bytes_of_a_plain_model() -> None:
    compare(writes(FOLDER), mirrored(), small(), copies)


def check_every_call_that_reads_returns_what_it_does_for_a_plain_model() -> None:
    compare(reads(FOLDER), mirrored(), small(), copies)


def check_calls_in_the_scope_of_the_strategy_do_the_same() -> None:
    model, plain = mirrored(), small()
    with STRATEGY.scope():
        xw.scale(model, 0.9)
        xw.noise(model, 0.1, seed=3)
        xw.set_entries(model, (1, 2), 3.0, where=UP)
        got = xw.get_params(model)
    xw.scale(plain, 0.9)
    xw.noise(plain, 0.1, seed=3)
    xw.set_entries(plain, (1, 2), 3.0, where=UP)
    assert xw.equal(got, plain)
    assert not differing(model)


def fit_under_holds(optimizer: str, **options: Any) -> None:
    model = compiled(mirrored(), optimizer, **options)
    before = xw.get_params(model)
    xw.hold(model, xw.Mask(KEPT), where=UP)
    held = xw.hold(model, xw.Clip(-0.01, 0.01), where="conv/kernel")  # a step is longer: some end at a bound
    xw.freeze(model, where="emb/embeddings", entries=(slice(3, 9),))
    xw.freeze(model, where="head/*")
    fit(model)
    held.check()
    for position in range(2):
        up, conv, emb, head = (
            copies(v)[position] for v in (model.up.kernel, model.conv.kernel, model.emb.embeddings, model.head.kernel)
        )
        assert np.array_equal(up, np.where(KEPT, up, np.float32(0)))
        assert not np.array_equal(up[KEPT], before[UP][KEPT])
        assert np.abs(conv).max() == np.float32(0.01)
        assert emb[3:9].tobytes() == before["emb/embeddings"][3:9].tobytes()
        assert not np.array_equal(emb[:3], before["emb/embeddings"][:3])
        assert head.tobytes() == before["head/kernel"].tobytes()
    assert not differing(model)


def check_a_mask_a_clip_and_frozen_entries_are_kept_on_both_replicas_while_a_model_is_fitted() -> None:
    fit_under_holds("adamw", weight_decay=0.1)


def slow_the_same_is_kept_with_momentum_and_averages() -> None:
    fit_under_holds("sgd", momentum=0.9, nesterov=True)
    fit_under_holds("sgd", use_ema=True, ema_momentum=0.9)


def slow_a_hold_begun_between_two_fits_is_kept_in_the_second() -> None:
    model = compiled(mirrored())
    fit(model, 1)
    with STRATEGY.scope():  # its buffers are made in the scope, too
        masks = xw.prune(model, fraction=0.5, where=UP, hold=True).masks
    fit(model, 1)
    up = copies(model.up.kernel)
    assert all(np.array_equal(copy != 0, masks[UP]) for copy in up)
    assert not differing(model)


def slow_a_pruning_schedule_averages_and_multiplied_rates_reach_both_replicas() -> None:
    model = compiled(mirrored(), "sgd")
    xw.prune(model, fraction=0.75, where=UP, hold=True, schedule=xw.Cubic(begin=0, end=6, every=2))
    averages = xw.average(model, decay=0.5, where=["up/bias", "head/kernel"])
    xw.multiply_lr(model, {"down/*": 0.0})
    before = xw.get_params(model)
    seen = []
    probe = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_, **__: seen.append(copies(model.up.bias)))
    model.fit(BATCH, GOAL, batch_size=4, epochs=2, verbose=0, callbacks=[probe])
    expected = seen[0][0]
    for first, _ in seen[1:]:
        expected = expected + np.float32(0.5) * (first - expected)
    assert averages.params["up/bias"].tobytes() == expected.tobytes()
    assert all(copy.tobytes() == before["down/kernel"].tobytes() for copy in copies(model.down.kernel))
    assert all((copy == 0).sum() == 108 for copy in copies(model.up.kernel))
    averages.copy_to(model)
    assert all(copy.tobytes() == averages.params["up/bias"].tobytes() for copy in copies(model.up.bias))
    assert not differing(model)


def slow_statistics_that_differ_by_replica_are_read_from_the_first_and_come_back_as_they_were() -> None:
    model = compiled(mirrored())
    fit(model)
    mean = model.stat.moving_mean
    first, second = copies(mean)
    assert first.tobytes() != second.tobytes()  # or this says nothing
    assert xw.get_params(model)["stat/moving_mean"].tobytes() == first.tobytes()
    with xw.transaction(model) as changes:
        xw.fill(model, 3.0, where="stat/moving_mean")
        assert all((copy == 3.0).all() for copy in copies(mean))
        changes.rollback()
    assert [copy.tobytes() for copy in copies(mean)] == [first.tobytes(), second.tobytes()]
    xw.scale(model, 1.0, where="stat/moving_mean")  # the first one's values are edited, and written to all
    assert all(copy.tobytes() == first.tobytes() for copy in copies(mean))


def slow_frozen_statistics_that_are_summed_over_replicas_stay_as_they_are() -> None:
    with STRATEGY.scope():
        model = keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(3), keras.layers.BatchNormalization(synchronized=True)]
        )
        model.compile("sgd", "mse")
    frozen = xw.freeze(model, where="*/moving_*")
    before = [copies(variable) for variable in model.non_trainable_variables]
    x = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    model.fit(x, x[:, :3], batch_size=4, verbose=0)
    after = [copies(variable) for variable in model.non_trainable_variables]
    assert [[c.tobytes() for c in pair] for pair in before] == [[c.tobytes() for c in pair] for pair in after]
    frozen.release()
    model.fit(x, x[:, :3], batch_size=4, verbose=0)
    assert copies(model.layers[-1].moving_mean)[1].any()


def check_a_trained_variable_that_differs_by_replica_is_refused_by_name() -> None:
    model = mirrored()
    held = xw.hold(model, xw.Clip(-9, 9), where="*/kernel")
    model.up.kernel._value.values[1].assign(tf.ones((8, 18)))
    before = [copies(variable) for variable in model.weights]
    words = ("'up/kernel'", "2 replicas have different values", "Fix: ")
    for call in (
        lambda: xw.scale(model, 0.5),
        lambda: xw.get_params(model),
        lambda: xw.checksum(model),
        lambda: xw.save(model, FOLDER / "no.npz"),
        lambda: xw.prune(model, fraction=0.5),
        lambda: xw.freeze(model, where=UP),
        lambda: xw.snapshot(model),
        lambda: xw.equal(model, model),
    ):
        with refused(xw.XweightsError, *words):
            call()
    with refused(xw.HoldError, *words):
        held.check()
    after = [copies(variable) for variable in model.weights]
    assert all(
        np.array_equal(a, b) for old, new in zip(before, after, strict=True) for a, b in zip(old, new, strict=True)
    )
    model.up.kernel.assign(model.up.kernel.numpy())  # the fix
    held.check()
    xw.scale(model, 0.5)
    assert not differing(model)


def check_a_module_is_read_and_written_on_both_replicas() -> None:
    net, plain = module(), Module()
    for target in (net, plain):
        xw.scale(target, 0.9, where=...)
        xw.noise(target, 0.1, seed=1, where=["kernel", "bias"])
        xw.set_entries(target, (1, 2), 5.0, where="kernel")
        xw.clip(target, -1, 1, where="kernel")
    for variable, twin in zip(net.variables, plain.variables, strict=True):
        assert [copy.tobytes() for copy in copies(variable)] == [twin.numpy().tobytes()] * 2
    assert xw.checksum(net) == xw.checksum(plain)
    xw.fill(net.kernel, 2.0)  # a variable by itself
    assert all((copy == 2).all() for copy in copies(net.kernel))


def check_statistics_that_are_averaged_when_read_have_the_value_that_tensorflow_reads() -> None:
    net = module()
    for copy, value in zip(net.mean.values, ([1.0, 2.0], [3.0, 6.0]), strict=True):
        copy.assign(value)
    for copy, value in zip(net.first.values, ([1.0, 2.0], [3.0, 6.0]), strict=True):
        copy.assign(value)
    found = xw.get_params(net)
    assert found["mean"].tolist() == [2.0, 4.0] == net.mean.read_value().numpy().tolist()
    assert found["first"].tolist() == [1.0, 2.0]
    xw.scale(net, 0.5, where=["mean", "first"])
    assert [copy.tolist() for copy in copies(net.mean)] == [[1.0, 2.0]] * 2
    assert [copy.tolist() for copy in copies(net.first)] == [[0.5, 1.0]] * 2


def check_a_verb_in_a_function_of_tensorflow_reaches_both_replicas() -> None:
    net, plain = module(), Module()
    mask = np.arange(6).reshape(2, 3) % 2 > 0

    def edit(target: Any) -> None:
        xw.scale(target, 0.9, where="kernel")
        xw.mask(target, mask, where="kernel")
        xw.add(target, 0.25, where="bias")

    edit(plain)
    traced = tf.function(lambda: edit(net))
    traced()
    for name in ("kernel", "bias"):
        assert [c.tobytes() for c in copies(getattr(net, name))] == [getattr(plain, name).numpy().tobytes()] * 2
    bound = xw.bind(net, xw.Scale(0.5), where="kernel")
    for _ in range(200):  # compiled by itself after some calls
        bound()
        xw.fill(net, 1.0, where="kernel")
    bound()
    assert all((copy == 0.5).all() for copy in copies(net.kernel))


def check_a_verb_in_a_step_of_each_replica_edits_its_own_copy() -> None:
    mask = np.arange(6).reshape(2, 3) % 2 > 0
    for compiled_step in (False, True):
        net, plain = module(), Module()

        def edit(target: Any) -> None:
            xw.scale(target, 0.9, where="kernel")
            xw.mask(target, mask, where="kernel")
            xw.set_entries(target, (1, 2), 5.0, where="kernel")

        def step(target: Any = net) -> None:
            edit(target)
            target.bias.assign_add(tf.ones(3))

        def run(step: Any = step) -> None:
            STRATEGY.run(step)

        (tf.function(run) if compiled_step else run)()
        edit(plain)
        assert [copy.tobytes() for copy in copies(net.kernel)] == [plain.kernel.numpy().tobytes()] * 2


def check_a_hold_in_a_loop_of_ones_own_is_kept_on_both_replicas() -> None:
    net = module()
    mask = np.arange(6).reshape(2, 3) % 2 > 0
    held = xw.hold(net, xw.Mask(mask), where="kernel")

    def step() -> None:
        net.kernel.assign_sub(tf.ones((2, 3)) * 0.1)
        held.apply()

    @tf.function
    def steps() -> None:
        for _ in range(3):
            STRATEGY.run(step)

    steps()
    STRATEGY.run(step)
    first, second = copies(net.kernel)
    assert first.tobytes() == second.tobytes()
    assert not first[~mask].any()
    assert first[mask].all()
    held.check()


def check_merge_call_edits_both_copies_once() -> None:
    net, plain = module(), Module()
    traced = tf.function(lambda: STRATEGY.run(lambda: merge(net)))

    def merge(target: Any) -> None:
        tf.distribute.get_replica_context().merge_call(lambda strategy: xw.scale(target, 0.5, where="kernel"))

    STRATEGY.run(lambda: merge(net))
    traced()
    xw.scale(plain, 0.25, where="kernel")
    assert [copy.tobytes() for copy in copies(net.kernel)] == [plain.kernel.numpy().tobytes()] * 2


def check_an_update_of_the_strategy_refuses_a_verb() -> None:
    net = module()
    with STRATEGY.scope(), refused(xw.WriteError, "strategy.extended.update", "merge_call"):
        STRATEGY.extended.update(net.kernel, lambda copy: xw.scale(net, 0.5, where="kernel"))
    assert not [1 for copy in copies(net.kernel) if copy.tobytes() != Module().kernel.numpy().tobytes()]


def check_a_step_of_another_strategy_refuses_a_verb() -> None:
    net = module()
    with refused(xw.WriteError, "another strategy"):
        tf.distribute.OneDeviceStrategy("CPU:0").run(lambda: xw.scale(net, 0.5, where="kernel"))


def check_what_is_summed_when_read_is_refused() -> None:
    on_read = {"synchronization": tf.VariableSynchronization.ON_READ, "trainable": False}
    with STRATEGY.scope():
        total = tf.Variable([8.0], aggregation=tf.VariableAggregation.SUM, **on_read)
    for call in (lambda: xw.get_params(total), lambda: xw.fill(total, 1.0, where=...)):
        with refused(xw.WriteError, "sum over all replicas"):
            call()


def slow_optimizer_state_is_read_and_written_on_both_replicas() -> None:
    model = compiled(mirrored())
    fit(model)
    state = xw.get_optimizer(model, model.optimizer)
    slots = {v.path: [copy.tobytes() for copy in copies(v)] for v in model.optimizer.variables}
    fit(model)
    xw.set_optimizer(model, model.optimizer, state)
    for variable in model.optimizer.variables:
        if variable.shape:
            assert [copy.tobytes() for copy in copies(variable)] == slots[variable.path], variable.path


def check_a_model_is_ported_to_and_from_plain_ones() -> None:
    model, plain = mirrored(), small(5)
    xw.port(plain, model, sample=BATCH[:2])
    assert all(copy.tobytes() == np.asarray(plain.up.kernel).tobytes() for copy in copies(model.up.kernel))
    xw.scale(model, 0.5)
    xw.port(model, plain, sample=BATCH[:2])
    assert np.asarray(plain.up.kernel).tobytes() == copies(model.up.kernel)[1].tobytes()


def check_a_variable_of_parameter_servers_or_one_central_device_is_refused() -> None:
    with tf.distribute.experimental.CentralStorageStrategy(["CPU:0", "CPU:1"]).scope():
        central = tf.Variable([1.0])
    if type(central).__module__.endswith("ps_values"):
        with refused(xw.WriteError, "ParameterServerStrategy"):
            xw.scale(central, 0.5)


def page_the_example_of_the_page_runs() -> None:
    run_example("tf.distribute")


if __name__ == "__main__":
    report(globals(), *sys.argv[1:])
