"""Checks of `test_jax_processes`, run in two processes of `jax.distributed` with two devices each."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

RANK, ADDRESS, SHARED = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(ADDRESS, 2, RANK)

import keras  # noqa: E402
import numpy as np  # noqa: E402
from fresh_process import report  # noqa: E402
from jax.experimental import multihost_utils  # noqa: E402
from keras_calls import BATCH, GOAL, UP, compare, other, reads, refused, small, writes  # noqa: E402

import xweights as xw  # noqa: E402
from xweights_keras.storage import jax_groups  # noqa: E402

jax_groups.SECONDS = 20.0
FOLDER = Path(tempfile.mkdtemp())
KEPT = np.arange(8 * 18).reshape(8, 18) % 3 > 0


def data_parallel() -> Any:
    mesh = keras.distribution.DeviceMesh((4,), ("batch",), keras.distribution.list_devices("cpu"))
    return keras.distribution.DataParallel(device_mesh=mesh, auto_shard_dataset=False)


def model_parallel() -> Any:
    mesh = keras.distribution.DeviceMesh((2, 2), ("outer", "inner"), keras.distribution.list_devices("cpu"))
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*dense/kernel"] = (None, "outer")  # cut between the processes
    layouts[".*dense/bias"] = ("outer",)
    layouts[".*dense_1/kernel"] = ("outer", "inner")  # and between the devices of each
    layouts[".*embeddings"] = ("inner", None)  # whole in each process
    layouts[".*conv1d/kernel"] = (None, None, "outer")
    return keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="inner", auto_shard_dataset=False)


def distributed(make: Callable[[], Any], optimizer: Callable[[], Any] | None = None) -> Any:
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)  # or Keras draws other first values in each process, and refuses to place them
    keras.distribution.set_distribution(make())
    try:
        model = small()
        if optimizer is not None:
            model.compile(optimizer(), "mse")
        return model
    finally:
        keras.distribution.set_distribution(None)


def whole(variable: Any) -> list[Any]:
    """Return the whole value, put together by JAX from the devices of both processes."""
    value = variable._value
    return [np.asarray(value if value.is_fully_addressable else multihost_utils.process_allgather(value, tiled=True))]


def keeps(make: Callable[[], Any], calls: dict[str, Callable[[Any], Any]]) -> None:
    model, plain = distributed(make), small()
    before = [variable._value.sharding for variable in model.weights]
    compare(calls, model, plain, whole)
    assert [variable._value.sharding for variable in model.weights] == before


def forget_result(call: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda model: call(model) and None


def without(calls: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: call for name, call in calls.items() if not any(part in name for part in names)}


def slow_calls_that_write_keep_the_copies_of_two_processes() -> None:
    keeps(data_parallel, writes(FOLDER))


def slow_calls_that_read_give_the_values_of_copies() -> None:
    keeps(data_parallel, reads(FOLDER))


def check_calls_that_write_keep_the_blocks_of_two_processes() -> None:
    calls = without(writes(FOLDER), "bound", "hold")
    # What prune returns are the masks of this process' blocks.
    calls |= {name: forget_result(call) for name, call in calls.items() if name.startswith("prune")}
    keeps(model_parallel, calls)


def check_calls_that_read_gather_blocks() -> None:
    keeps(model_parallel, without(reads(FOLDER), "save", "copy", "effective", "penalty"))


def fit(model: Any, make: Callable[[], Any]) -> None:
    keras.distribution.set_distribution(make())
    try:
        model.fit(BATCH[8 * RANK : 8 * RANK + 8], GOAL[8 * RANK : 8 * RANK + 8], batch_size=4, epochs=2, verbose=0)
    finally:
        keras.distribution.set_distribution(None)


def check_holds_freezes_rates_and_averages_are_kept_on_copies_while_both_processes_fit() -> None:
    model = distributed(data_parallel, lambda: keras.optimizers.AdamW(0.05, weight_decay=0.1))
    before = xw.get_params(model)
    xw.hold(model, xw.Mask(KEPT), where=UP)
    held = xw.hold(model, xw.Clip(-0.01, 0.01), where="conv/kernel")
    xw.freeze(model, where="emb/embeddings", entries=(slice(3, 9),))
    xw.freeze(model, where="head/*")
    xw.multiply_lr(model, {"down/*": 0.0})
    averages = xw.average(model, decay=0.5, where="up/bias")
    fit(model, data_parallel)
    held.check()
    up, conv, emb, head, down = (
        whole(v)[0]
        for v in (model.up.kernel, model.conv.kernel, model.emb.embeddings, model.head.kernel, model.down.kernel)
    )
    assert np.array_equal(up, np.where(KEPT, up, np.float32(0)))
    assert not np.array_equal(up[KEPT], before[UP][KEPT])
    assert np.abs(conv).max() == np.float32(0.01)
    assert emb[3:9].tobytes() == before["emb/embeddings"][3:9].tobytes()
    assert head.tobytes() == before["head/kernel"].tobytes()
    assert down.tobytes() == before["down/kernel"].tobytes()
    averages.copy_to(model)
    assert whole(model.up.bias)[0].tobytes() == averages.params["up/bias"].tobytes()
    state = xw.get_optimizer(model, model.optimizer)
    xw.set_optimizer(model, model.optimizer, state)


def check_what_runs_in_a_compiled_step_is_refused_on_blocks() -> None:
    model = distributed(model_parallel, lambda: keras.optimizers.SGD(0.05))
    for call in (
        lambda: xw.hold(model, xw.Mask(KEPT), where=UP),
        lambda: xw.freeze(model, where="up/*"),
        lambda: xw.freeze(model, where=UP, entries=(slice(3, 9),)),
        lambda: xw.average(model, decay=0.5, where="up/bias"),
        lambda: xw.prune(model, fraction=0.5, where=UP, hold=True),
    ):
        with refused(xw.XweightsError, "'up/", "processes"):
            call()
    assert model.up.kernel.constraint is None
    before = xw.checksum(model)
    for call in (
        lambda: xw.effective_params(model),
        lambda: xw.bind(model, xw.Noise(0.1, seed=4), where=UP),
    ):
        with refused(xw.XweightsError, "Fix: "):
            call()
    assert xw.checksum(model) == before


def check_blocks_are_saved_by_the_first_process_and_loaded_by_both() -> None:
    model = distributed(model_parallel)
    xw.noise(model, 0.1, seed=3, where=...)
    xw.save(model, SHARED / "blocks.safetensors")
    multihost_utils.sync_global_devices("saved")
    again = distributed(model_parallel)
    xw.set_params(again, SHARED / "blocks.safetensors")
    assert xw.checksum(again) == xw.checksum(model)
    assert xw.equal(again, xw.load(SHARED / "blocks.safetensors"))


def check_values_of_one_process_reach_both() -> None:
    for make in (data_parallel, model_parallel):
        model = distributed(make)
        xw.set_params(model, other() if RANK == 0 else None, on_rank=0)
        assert all(value.tobytes() == other()[name].tobytes() for name, value in xw.get_params(model).items())


def check_a_process_that_refuses_or_asks_for_something_else_is_named_by_both() -> None:
    for make in (data_parallel, model_parallel):
        model = distributed(make)
        before = xw.checksum(model)
        with refused(xw.SelectionError, "nothing/*"):
            xw.scale(model, 0.5, where="nothing/*" if RANK else UP)
        with refused(xw.RankError, "rank 0", "rank 1"):
            xw.scale(model, 0.5 + RANK, where=UP)
        with refused(xw.RankError, "disagree"):
            xw.noise(model, 0.5, seed=RANK, where=UP)
        assert xw.checksum(model) == before


def check_a_copy_that_one_process_changed_alone_is_named() -> None:
    model = distributed(data_parallel)
    variable = model.up.kernel
    value = variable._value
    parts = [jax.device_put(np.asarray(part.data) + np.float32(RANK), part.device) for part in value.addressable_shards]
    variable._value = jax.make_array_from_single_device_arrays(value.shape, value.sharding, parts)
    with refused(xw.RankError, "'up/kernel'"):
        xw.scale(model, 0.5)
    values = xw.get_params(model) if RANK == 0 else None
    xw.set_params(model, values, on_rank=0)
    xw.scale(model, 0.5)


def check_a_model_of_one_process_is_edited_by_it_alone() -> None:
    if RANK == 0:
        model = small()
        xw.scale(model, 0.5)
        xw.hold(model, xw.Clip(-1, 1), where="*/kernel").release()
        assert xw.get_params(model)[UP].tobytes() == np.asarray(model.up.kernel).tobytes()


def fit_alike(model: Any, make: Callable[[], Any]) -> None:
    """Fit with the same batches in both processes, as a mesh wants that doesn't cut batches between them."""
    keras.distribution.set_distribution(make())
    try:
        model.fit(BATCH, GOAL, batch_size=8, verbose=0, shuffle=False)
    finally:
        keras.distribution.set_distribution(None)


def plain_twin(optimizer: Callable[[], Any], seed: int = 0) -> Any:
    model = small(seed)
    model.compile(optimizer(), "mse")
    return model


def slow_penalties_and_merges_of_blocks_have_the_values_of_whole_arrays() -> None:
    model = distributed(model_parallel)
    units = ["up/kernel", "down/kernel", "conv/kernel"]
    for options in (
        {"l1": 0.5, "l2": 1.0},
        {"orthogonal": 1.0},
        {"group": 1.0, "per": "out", "where": units},
        {"group": 1.0, "per": "in", "where": units},
    ):
        assert float(xw.penalty(model, **options)) == float(xw.penalty(small(), **options)), options
    bound = xw.bind_penalty(model, l2=1.0)
    for method, options in (
        ("average", {"weights": (1, 3, 2)}),
        ("ties", {"density": 0.5, "base": other(3)}),
    ):
        merged, expected = (
            xw.merge([target, other(), other(2)], method, layout="neutral", **options) for target in (model, small())
        )
        assert xw.equal(merged, expected), method
    options = {"t": 0.3, "layout": "neutral"}
    xw.merge([model, other()], "slerp", into=model, **options)
    assert xw.equal(model, xw.merge([small(), other()], "slerp", **options))
    assert float(bound()) == float(xw.penalty(xw.get_params(model), l2=1.0, where=[*units, "emb/*", "head/kernel"]))
    with refused(xw.RankError, "disagree"):
        xw.merge([model, other()], weights=(1, 1 + RANK), into=model, layout="neutral")


def check_calls_that_run_or_copy_the_model_are_refused_on_blocks() -> None:
    model, plain, sample = distributed(model_parallel), small(5), BATCH[:2]
    before = xw.checksum(model)

    def traced(value: Any) -> Any:
        with keras.StatelessScope([(model.head.kernel, value)]):
            return xw.penalty(model, l2=1.0)

    for kind, call in (
        (xw.PortError, lambda: xw.port(plain, model, sample=sample)),
        (xw.PortError, lambda: xw.port(plain if RANK == 0 else None, model, sample=sample, on_rank=0)),
        (xw.PortError, lambda: xw.port(model, plain, sample=sample)),
        (xw.PortError, lambda: xw.verify(plain, model, sample=sample)),
        (xw.PortError, lambda: xw.handoff((plain, keras.optimizers.SGD(0.1)), (model, None), sample=sample)),
        (xw.PortError, lambda: xw.skeleton(model, "torch", sample=sample)),
        (xw.HoldError, lambda: xw.add_penalty(model, l2=1.0)),
        (xw.TraceError, lambda: jax.grad(traced)(model.head.kernel._value)),
        (xw.WriteError, lambda: xw.plot(model)),
        (xw.WriteError, lambda: xw.extract_lora(model, other(), rank=2, layout="neutral")),
        (xw.WriteError, lambda: xw.save(model, SHARED / "blocks.weights.h5")),
    ):
        with refused(kind, "Fix: "):
            call()
    with refused(xw.RankError, "add_penalty"):
        xw.add_penalty(model, l2=1.0 + RANK, where="head/kernel")
    assert model.head.kernel.regularizer is None
    assert xw.checksum(model) == before
    assert xw.equal(plain, small(5))


def slow_optimizer_state_is_read_and_written_in_blocks() -> None:
    rules = keras.optimizers
    for make in (
        lambda: rules.AdamW(0.05),
        lambda: rules.SGD(0.05, momentum=0.9),
        lambda: rules.Nadam(0.05),
        lambda: rules.AdamW(0.05, gradient_accumulation_steps=3),
    ):
        model, plain = distributed(model_parallel, make), plain_twin(make)
        fit_alike(model, model_parallel)
        optimizer = model.optimizer
        state, run = xw.get_optimizer(model, optimizer), xw.get_training_state(model, optimizer)
        kept = [(whole(v)[0], v._value.sharding) for v in optimizer.variables]
        plain.optimizer.build(plain.trainable_variables)
        xw.set_optimizer(plain, plain.optimizer, state)
        for (value, _), variable in zip(kept, plain.optimizer.variables, strict=True):
            assert np.asarray(variable._value).tobytes() == value.tobytes(), variable.path
        for write in (
            lambda: xw.set_optimizer(model, optimizer, state),  # noqa: B023
            lambda: xw.set_training_state(model, optimizer, run),  # noqa: B023
        ):
            fit_alike(model, model_parallel)
            write()
            for (value, sharding), variable in zip(kept, optimizer.variables, strict=True):
                assert whole(variable)[0].tobytes() == value.tobytes(), variable.path
                assert variable._value.sharding.is_equivalent_to(sharding, value.ndim), variable.path
        assert xw.equal(model, run.weights)
        with refused(xw.ArgumentError, "on rank 1", "grade"):
            xw.set_optimizer(model, optimizer, state, grade="stock" if RANK == 0 else "none")


def slow_an_optimizer_is_built_in_blocks_or_refused() -> None:
    model = distributed(model_parallel)
    keras.distribution.set_distribution(model_parallel())
    try:
        report = xw.set_optimizer(model, None, xw.optimizer_state(model, "lion", learning_rate=1e-3))
        model.compile(report.optimizer, "mse")
        model.fit(BATCH, GOAL, verbose=0)
        before = xw.checksum(model)
        state = xw.optimizer_state(model, "lamb", learning_rate=1e-3)
        with refused(xw.HandoffError, "isn't cut between the processes", "Fix: "):
            xw.set_optimizer(model, None, state)
        assert xw.checksum(model) == before
    finally:
        keras.distribution.set_distribution(None)


def slow_multiplied_rates_and_penalties_on_copies_are_those_of_one_process() -> None:
    def sgd() -> Any:
        return keras.optimizers.SGD(0.05)

    model, plain = distributed(model_parallel, sgd), plain_twin(sgd)
    for target in (model, plain):
        xw.multiply_lr(target, {"down/*": 0.5, "conv/*": 0.0})
        xw.add_penalty(target, l2=0.1, where="head/kernel")
    fit_alike(model, model_parallel)
    plain.fit(BATCH, GOAL, batch_size=8, verbose=0, shuffle=False)
    compare_closely(model, plain)
    assert xw.get_params(model)["conv/kernel"].tobytes() == xw.get_params(small())["conv/kernel"].tobytes()

    model, plain = distributed(data_parallel, sgd), plain_twin(sgd)
    for target in (model, plain):
        xw.add_penalty(target, l1=0.1, l2=0.1)
    keras.distribution.set_distribution(data_parallel())
    try:
        model.fit(BATCH[8 * RANK : 8 * RANK + 8], GOAL[8 * RANK : 8 * RANK + 8], batch_size=8, verbose=0, shuffle=False)
    finally:
        keras.distribution.set_distribution(None)
    plain.fit(BATCH, GOAL, batch_size=16, verbose=0, shuffle=False)
    compare_closely(model, plain)


def compare_closely(model: Any, plain: Any) -> None:
    expected = xw.get_params(plain)
    for name, value in xw.get_params(model).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)


def slow_blocks_are_ported_on_a_plain_model_as_the_refusal_says() -> None:
    model, plain, target = distributed(model_parallel), small(5), small(9)
    xw.port(small(7), plain, sample=BATCH[:2])
    xw.set_params(model, xw.get_params(plain))
    assert xw.equal(model, small(7))
    xw.scale(model, 0.5)
    xw.set_params(plain, xw.get_params(model))
    xw.port(plain, target, sample=BATCH[:2])
    assert xw.equal(model, target)


def slow_copies_are_ported_handed_over_and_written_as_code() -> None:
    def adamw() -> Any:
        return keras.optimizers.AdamW(0.05)

    model, plain, sample = distributed(data_parallel, adamw), plain_twin(adamw, 5), BATCH[:2]
    code = xw.skeleton(model, "torch", sample=sample)
    assert code == xw.skeleton(small(), "torch", sample=sample)
    xw.port(small(7), model, sample=sample)
    assert xw.equal(model, small(7))
    target = small(9)
    xw.port(model, target, sample=sample)
    assert xw.equal(model, target)
    assert xw.verify(model, target, sample=sample).ok
    pair = [xw.extract_lora(small(8), each, rank=2, where=UP) for each in (model, target)]
    assert repr(pair[0]) == repr(pair[1])
    plain.fit(BATCH, GOAL, verbose=0, shuffle=False)
    xw.handoff((plain, plain.optimizer), (model, model.optimizer), sample=sample)
    assert xw.equal(model, plain)
    state, expected = xw.get_optimizer(model, model.optimizer), xw.get_optimizer(plain, plain.optimizer)
    for name, slots in expected.slots.items():
        assert all(state.slots[name][slot].tobytes() == value.tobytes() for slot, value in slots.items()), name


def check_a_process_that_does_not_come_is_not_waited_for() -> None:  # the last: the barriers differ after it
    model = distributed(model_parallel)
    jax_groups.SECONDS = 2.0
    if RANK == 0:
        with refused(xw.RankError, "Fix: make the call in every process"):
            xw.scale(model, 0.5)


if __name__ == "__main__":
    report(globals(), *sys.argv[4:])
    sys.stdout.flush()
    multihost_utils.sync_global_devices("end")
    os._exit(0)  # or each waits for the other to shut down
