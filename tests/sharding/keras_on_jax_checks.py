"""Checks of `test_keras_on_jax`, run in a process with four devices of JAX."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
from fresh_process import report, run_example
from keras_calls import BATCH, GOAL, UP, compare, reads, small, writes

import xweights as xw

FOLDER = Path(tempfile.mkdtemp())
KEPT = np.arange(8 * 18).reshape(8, 18) % 3 > 0
CPUS = keras.distribution.list_devices("cpu")


def data_parallel() -> Any:
    mesh = keras.distribution.DeviceMesh((4,), ("batch",), CPUS)
    return keras.distribution.DataParallel(device_mesh=mesh)


def model_parallel() -> Any:
    mesh = keras.distribution.DeviceMesh((2, 2), ("batch", "model"), CPUS)
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*up/kernel|.*dense/kernel"] = (None, "model")
    layouts[".*up/bias|.*dense/bias"] = ("model",)
    layouts[".*dense_1/kernel"] = ("model", None)
    layouts[".*embeddings"] = ("batch", "model")
    layouts[".*conv1d/kernel"] = (None, "model", "batch")
    return keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")


def distributed(make: Callable[[], Any]) -> Any:
    """Return a model made under a distribution; its variables keep their layouts when it is gone."""
    keras.utils.clear_session(free_memory=False)
    keras.distribution.set_distribution(make())
    try:
        return small()
    finally:
        keras.distribution.set_distribution(None)


def compiled(make: Callable[[], Any], optimizer: Callable[[], Any]) -> Any:
    """Return a model that is ready to be trained; its optimizer has to be made under the distribution, too."""
    model = distributed(make)
    keras.distribution.set_distribution(make())
    try:
        model.compile(optimizer(), "mse")
    finally:
        keras.distribution.set_distribution(None)
    return model


def shards(variable: Any) -> list[Any]:
    """Return the whole value, put together from each device's block in turn, and check that copies are equal."""
    value = variable._value
    found = {}
    whole = np.zeros(value.shape, value.dtype)
    for shard in value.addressable_shards:
        data = np.array(shard.data)
        key = str(shard.index)
        assert found.setdefault(key, data).tobytes() == data.tobytes(), "copies differ"
        whole[shard.index] = data
    return [whole]


def shardings(model: Any) -> dict[str, Any]:
    return {variable.path: variable._value.sharding for variable in model.weights}


def keeps_shardings(make: Callable[[], Any], calls: dict[str, Callable[[Any], Any]]) -> None:
    model, plain = distributed(make), small()
    before = shardings(model)
    lost: list[str] = []

    def watched(call: Callable[[Any], Any], name: str) -> Callable[[Any], Any]:
        def run(target: Any) -> Any:
            result = call(target)
            if target is model:
                lost.extend(
                    f"{name}: {path}" for path, sharding in shardings(model).items() if sharding != before[path]
                )
            return result

        return run

    compare({name: watched(call, name) for name, call in calls.items()}, model, plain, shards)
    assert not lost, "\n".join(lost)


def check_the_model_is_spread_as_it_is_meant_to_be() -> None:
    model = distributed(model_parallel)
    spread = [path for path, sharding in shardings(model).items() if not sharding.is_fully_replicated]
    assert len(spread) == 5, spread
    assert all(len(sharding.device_set) == 4 for sharding in shardings(distributed(data_parallel)).values())


def slow_every_call_that_writes_keeps_copies_on_four_devices() -> None:
    keeps_shardings(data_parallel, writes(FOLDER))


def slow_every_call_that_reads_gives_the_values_of_copies_on_four_devices() -> None:
    keeps_shardings(data_parallel, reads(FOLDER))


def check_every_call_that_writes_keeps_blocks_on_two_by_two_devices() -> None:
    keeps_shardings(model_parallel, writes(FOLDER))


def check_every_call_that_reads_gives_the_values_of_blocks_on_two_by_two_devices() -> None:
    keeps_shardings(model_parallel, reads(FOLDER))


def fit_under_holds(make: Callable[[], Any], optimizer: Callable[[], Any]) -> None:
    model = compiled(make, optimizer)
    before, placed = xw.get_params(model), shardings(model)
    xw.hold(model, xw.Mask(KEPT), where=UP)
    held = xw.hold(model, xw.Clip(-0.01, 0.01), where="conv/kernel")  # a step is longer: some end at a bound
    xw.freeze(model, where="emb/embeddings", entries=(slice(3, 9),))
    xw.freeze(model, where="head/*")
    fit(model, make)
    held.check()
    up, conv, emb, head = (
        shards(v)[0] for v in (model.up.kernel, model.conv.kernel, model.emb.embeddings, model.head.kernel)
    )
    assert np.array_equal(up, np.where(KEPT, up, np.float32(0)))
    assert not np.array_equal(up[KEPT], before[UP][KEPT])
    assert np.abs(conv).max() == np.float32(0.01)
    assert emb[3:9].tobytes() == before["emb/embeddings"][3:9].tobytes()
    assert not np.array_equal(emb[:3], before["emb/embeddings"][:3])
    assert head.tobytes() == before["head/kernel"].tobytes()
    assert all(now.is_equivalent_to(placed[path], now_dims(model, path)) for path, now in shardings(model).items())


def now_dims(model: Any, path: str) -> int:
    return next(len(variable.shape) for variable in model.weights if variable.path == path)


def fit(model: Any, make: Callable[[], Any], epochs: int = 2) -> None:
    keras.distribution.set_distribution(make())
    try:
        model.fit(BATCH, GOAL, batch_size=8, epochs=epochs, verbose=0)
    finally:
        keras.distribution.set_distribution(None)


def check_a_mask_a_clip_and_frozen_entries_are_kept_while_a_model_in_blocks_is_fitted() -> None:
    fit_under_holds(model_parallel, lambda: keras.optimizers.AdamW(0.05, weight_decay=0.1))


def slow_the_same_is_kept_on_copies_with_momentum_averages_and_accumulated_gradients() -> None:
    for make in (data_parallel, model_parallel):
        fit_under_holds(make, lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True))
        fit_under_holds(
            make, lambda: keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3)
        )
        fit_under_holds(make, lambda: keras.optimizers.AdamW(0.05, gradient_accumulation_steps=2))


def slow_a_schedule_averages_and_multiplied_rates_work_on_copies_and_blocks() -> None:
    for make in (data_parallel, model_parallel):
        model = compiled(make, lambda: keras.optimizers.SGD(0.05))
        placed = shardings(model)
        pruning = xw.prune(model, fraction=0.75, where=UP, hold=True, schedule=xw.Cubic(begin=0, end=3, every=1))
        averages = xw.average(model, decay=0.5, where=["up/bias", "head/kernel"])
        xw.multiply_lr(model, {"down/*": 0.0})
        before = xw.get_params(model)
        fit(model, make, 3)
        assert (shards(model.up.kernel)[0] == 0).sum() == 108 == (~pruning.masks[UP]).sum()
        assert shards(model.down.kernel)[0].tobytes() == before["down/kernel"].tobytes()
        averages.copy_to(model)
        assert shards(model.up.bias)[0].tobytes() == averages.params["up/bias"].tobytes()
        assert all(now.is_equivalent_to(placed[path], now_dims(model, path)) for path, now in shardings(model).items())


def slow_a_transaction_undoes_steps_that_gave_the_arrays_away() -> None:
    model = compiled(model_parallel, lambda: keras.optimizers.AdamW(0.05))
    placed, before = shardings(model), xw.checksum(model)
    with xw.transaction(model) as changes:
        fit(model, model_parallel)
        assert xw.checksum(model) != before
        changes.rollback()
    assert xw.checksum(model) == before
    assert shardings(model) == placed


def slow_optimizer_state_is_read_and_written_in_blocks() -> None:
    model = compiled(model_parallel, lambda: keras.optimizers.AdamW(0.05))
    fit(model, model_parallel)
    state = xw.get_optimizer(model, model.optimizer)
    slots = {v.path: (shards(v)[0].tobytes(), v._value.sharding) for v in model.optimizer.variables}
    fit(model, model_parallel)
    xw.set_optimizer(model, model.optimizer, state)
    for variable in model.optimizer.variables:
        assert shards(variable)[0].tobytes() == slots[variable.path][0], variable.path
        assert variable._value.sharding.is_equivalent_to(slots[variable.path][1], len(variable.shape)), variable.path


def check_a_variable_that_the_user_placed_stays_where_it_is() -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2), ("a", "b"))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("b", None))
    layer = keras.layers.Dense(6)
    layer.build((None, 8))
    layer.kernel._value = jax.device_put(layer.kernel._value, sharding)
    before = np.asarray(layer.kernel._value)
    for call in (
        lambda: xw.scale(layer, 0.5, where="kernel"),
        lambda: xw.apply(layer, lambda w: w * 0.5, where="kernel"),
        lambda: xw.bind(layer, xw.Scale(0.5), where="kernel")(),
        lambda: xw.set_params(layer, {"kernel": before * np.float32(0.0625)}, strict=False),
    ):
        call()
        assert layer.kernel._value.sharding == sharding
    assert shards(layer.kernel)[0].tobytes() == (before * np.float32(0.0625)).tobytes()


def check_models_are_ported_between_one_device_and_four() -> None:
    model, plain = distributed(model_parallel), small(5)
    placed = shardings(model)
    xw.port(plain, model, sample=BATCH[:2])
    assert shards(model.up.kernel)[0].tobytes() == np.asarray(plain.up.kernel).tobytes()
    assert shardings(model) == placed
    xw.scale(model, 0.5)
    xw.port(model, plain, sample=BATCH[:2])
    assert np.asarray(plain.up.kernel).tobytes() == shards(model.up.kernel)[0].tobytes()


def check_the_example_of_the_page_runs() -> None:
    try:
        run_example("keras.distribution.ModelParallel")
    finally:
        keras.distribution.set_distribution(None)


if __name__ == "__main__":
    report(globals(), *sys.argv[1:])
