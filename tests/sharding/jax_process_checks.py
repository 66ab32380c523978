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
from xweights_jax import processes  # noqa: E402

processes.SECONDS = 20.0
keras.utils.set_random_seed(0)  # or Keras draws other first values in each process, and refuses to place them
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
    held = xw.hold(model, xw.Clip(-0.3, 0.3), where="conv/kernel")
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
    assert np.abs(conv).max() == np.float32(0.3)
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


def check_a_process_that_does_not_come_is_not_waited_for() -> None:  # the last: the barriers differ after it
    keras.utils.set_random_seed(0)
    model = distributed(model_parallel)
    processes.SECONDS = 2.0
    if RANK == 0:
        with refused(xw.RankError, "Fix: make the call in every process"):
            xw.scale(model, 0.5)


if __name__ == "__main__":
    report(globals(), *sys.argv[4:])
    sys.stdout.flush()
    multihost_utils.sync_global_devices("end")
    os._exit(0)  # or each waits for the other to shut down
