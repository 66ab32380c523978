"""Checkpoints of TensorFlow and SavedModel folders: names, slots, averages, partitioned variables."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xweights as xw
from xweights.files.formats import tf_names
from xweights.files.formats.tf_checkpoint import encode_slice


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tf() -> Any:
    return pytest.importorskip("tensorflow")


def parts_of(path: str) -> dict[str, str]:
    return {part.name: part.kind for part in xw.parts(path)}


# TensorFlow 1.


def save_tf1(tf: Any, path: str, *, average: bool = False) -> dict[str, np.ndarray]:
    """Save a partitioned variable, two plain ones, and what optimizers add; return the values of the variables."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        with v1.variable_scope("net", partitioner=v1.fixed_size_partitioner(3)):
            table = v1.get_variable("table", [7, 4])
        with v1.variable_scope("net"):
            kernel, bias = v1.get_variable("kernel", [4, 3]), v1.get_variable("bias", [3])
            v1.get_variable("kernel/adam_m", [4, 3])
            v1.get_variable("kernel/adam_v", [4, 3])
        whole = tf.convert_to_tensor(table)
        loss = tf.reduce_sum((v1.placeholder(tf.float32, [None, 7]) @ whole) @ kernel + bias)
        step = v1.train.get_or_create_global_step()
        for optimizer in (
            v1.train.AdamOptimizer(0.1),
            v1.train.MomentumOptimizer(0.1, 0.9),
            v1.train.FtrlOptimizer(0.1),
        ):
            optimizer.minimize(loss, global_step=step)
        if average:
            tf.train.ExponentialMovingAverage(0.9).apply([kernel, bias])
        session.run(v1.global_variables_initializer())
        values = session.run({"net/table": whole, "net/kernel": kernel, "net/bias": bias})
        v1.train.Saver().save(session, path, write_meta_graph=False)
        return dict(values)


def test_a_checkpoint_is_found_by_its_usual_name_and_by_its_data_file_and_its_slots_are_left_out(tf: Any) -> None:
    values = save_tf1(tf, "./bert_model.ckpt")
    for name in ("bert_model.ckpt", "bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"):
        opened = xw.load(name)
        assert opened.format == "tensorflow"
        assert set(opened) == set(values)
        for key, value in values.items():
            np.testing.assert_array_equal(opened[key], value)
    assert parts_of("bert_model.ckpt") == {"model": "weights", "optimizer": "optimizer"}
    left_out = {
        "global_step",
        "beta1_power",
        "beta2_power",
        "net/kernel/Adam",
        "net/kernel/Adam_1",
        "net/bias/Momentum",
    }
    assert left_out | {"net/kernel/adam_m", "net/kernel/adam_v", "net/table/Ftrl_1"} <= set(opened.ignored)


def test_a_file_of_that_very_name_is_what_is_read(tf: Any) -> None:
    save_tf1(tf, "./w.ckpt")
    xw.save({"w": np.ones(2)}, "other.pt")
    Path("other.pt").rename("w.ckpt")
    assert xw.load("w.ckpt").format == "pt"


def test_averages_of_tensorflow_1_are_a_part_of_their_own(tf: Any) -> None:
    values = save_tf1(tf, "./w.ckpt", average=True)
    assert parts_of("w.ckpt") == {"model": "weights", "ema": "weights", "optimizer": "optimizer"}
    with pytest.raises(xw.SelectionError, match="2 parts that hold weights"):
        xw.get_params("w.ckpt")
    average = xw.load("w.ckpt", part="ema")
    assert set(average) == {"net/kernel", "net/bias"}
    np.testing.assert_array_equal(average["net/kernel"], values["net/kernel"])


def test_partitioned_variables_are_joined_and_read_in_parts(tf: Any) -> None:
    values = save_tf1(tf, "./w.ckpt")
    record = next(p.handle for p in xw.parameters("w.ckpt") if p.name == "net/table")
    flat = values["net/table"].reshape(-1)
    for start, count in ((0, 28), (0, 1), (3, 9), (11, 5), (27, 1)):
        part = np.empty(count, np.float32)
        record.read_into(part, start)
        np.testing.assert_array_equal(part, flat[start : start + count])


def test_the_keys_of_slices_are_those_that_tensorflow_writes(tf: Any) -> None:
    from tensorflow.python.training import saver

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        slices = []
        for start, size in ((0, 100), (100, 8200), (8300, 3)):
            variable = v1.get_variable(f"v{start}", [size, 2])
            variable._set_save_slice_info(tf.Variable.SaveSliceInfo("big", [8303, 2], [start, 0], [size, 2]))
            slices.append(variable)
        session.run(v1.global_variables_initializer())
        values = np.concatenate(session.run(slices))
        saver.Saver(slices).save(session, "./big.ckpt", write_meta_graph=False)
    np.testing.assert_array_equal(xw.load("big.ckpt")["big"], values)
    assert encode_slice("a", [(0, -1)]) == b"\x00a\x00\x01\x01\x01\x80\x7f"


def test_a_weight_that_is_called_like_a_slot_is_a_weight_if_there_is_no_variable_before_it() -> None:
    described = tf_names.describe_by_names(["net/Adam", "net/w", "net/w/Adam", "ema/w/ExponentialMovingAverage"])
    kinds = {name: found.kind for name, found in described.items()}
    assert kinds == {
        "net/Adam": "weights",
        "net/w": "weights",
        "net/w/Adam": "optimizer",
        "ema/w/ExponentialMovingAverage": "weights",
    }


# TensorFlow 2: the graph of objects.


def make_module(tf: Any) -> Any:
    class Block(tf.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.w = tf.Variable(tf.random.stateless_normal((2, 3), (0, seed)), name="w")
            self.b = tf.Variable(tf.random.stateless_normal((3,), (1, seed)), name="b")

    class Net(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = [Block(0), Block(1)]
            self.table = {"x": tf.Variable(1.5)}
            self.first = self.blocks[0]

    return Net()


def test_a_module_is_read_from_its_checkpoint_and_its_saved_model_by_its_attributes(tf: Any) -> None:
    net = make_module(tf)
    tf.train.Checkpoint(net=net).write("plain")
    tf.saved_model.save(net, "saved")
    for path in ("plain", "saved", "saved/saved_model.pb", "saved/variables/variables"):
        opened = xw.load(path)
        prefix = "net/" if path == "plain" else ""
        names = ("blocks/1/w", "blocks/1/b", "first/w", "first/b", "table/x")
        assert set(opened) == {prefix + name for name in names}
        np.testing.assert_array_equal(opened[f"{prefix}blocks/1/w"], net.blocks[1].w.numpy())
        # A shared object is found by each of its paths.
        for name in ("first/w", "blocks/0/w"):
            np.testing.assert_array_equal(opened[prefix + name], net.first.w.numpy())


def test_steps_and_counters_of_saves_are_no_weights(tf: Any) -> None:
    checkpoint = tf.train.Checkpoint(net=make_module(tf), step=tf.Variable(3), epoch=tf.Variable(1))
    opened = xw.load(checkpoint.save("saved"))
    assert {"net/blocks/1/w", "net/first/w", "net/first/b", "net/blocks/1/b", "net/table/x"} == set(opened)
    assert {key.partition("/")[0] for key in opened.ignored} >= {"save_counter", "step", "epoch"}


def make_keras(seed: int = 0) -> Any:
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("checkpoints of TensorFlow are written under Keras' backend of TensorFlow")
    layers = keras.layers
    keras.utils.set_random_seed(seed)
    stack = [
        layers.Input((4,)),
        layers.Dense(3, name="fc"),
        layers.BatchNormalization(name="norm"),
        layers.Dropout(0.1),
    ]
    model = keras.Sequential([*stack, layers.Dense(2, name="out")], name="net")
    model.compile("adam", "mse")
    model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)
    return model


@pytest.mark.parametrize("words", [("model", "optimizer"), ("net", "opt")])
def test_weights_of_keras_are_told_from_the_optimizer_that_holds_them(words: tuple[str, str], tf: Any) -> None:
    # TensorFlow keeps trainable weights under the optimizer, whose path to them is the shortest.
    model = make_keras()
    tf.train.Checkpoint(**{words[0]: model, words[1]: model.optimizer}, step=tf.Variable(1)).write("saved")
    opened = xw.load("saved")
    values = {weight.path: weight.numpy() for weight in model.weights if "seed" not in weight.path}
    assert set(opened) == set(values)
    for name, value in values.items():
        np.testing.assert_array_equal(opened[name], value)
    assert parts_of("saved") == {"model": "weights", "optimizer": "optimizer"}


@pytest.mark.parametrize("how", ["export", "save"])
def test_a_saved_model_of_keras_is_read_by_the_names_of_its_variables(how: str, tf: Any) -> None:
    model = make_keras()
    if how == "export":
        model.export("saved", verbose=False)
    else:
        tf.saved_model.save(model, "saved")
    opened = xw.load("saved")
    assert opened.format == "saved model"
    values = {weight.path: weight.numpy() for weight in model.weights if "seed" not in weight.path}
    assert set(opened) == set(values)
    for name, value in values.items():
        np.testing.assert_array_equal(opened[name], value)
    xw.convert("saved", "w.safetensors")
    assert xw.equal("w.safetensors", opened)
    with pytest.raises(xw.RefusedFileError, match="only read"):
        xw.edit_file("saved", xw.Scale(2.0))


def node(children: Any = (), array: tuple[str, str] | None = None, slots: Any = ()) -> tf_names.Node:
    return tf_names.Node(tuple(children), () if array is None else (array,), tuple(slots))


def test_the_graph_of_keras_2_is_described_by_names_of_variables() -> None:
    """The graph that tf_keras 2.21 writes for Sequential([Dense]) with its older Adam: slots refer to variables."""
    value = tf_names.VALUE
    kernel, slot = (
        f"layer_with_weights-0/kernel{value}",
        f"layer_with_weights-0/kernel/.OPTIMIZER_SLOT/optimizer/m{value}",
    )
    nodes = [
        node([(1, "layer_with_weights-0"), (1, "layer-0"), (2, "optimizer"), (6, "keras_api"), (0, "root")]),
        node([(3, "kernel")]),
        node([(4, "iter"), (4, "learning_rate")], slots=[5]),
        node(array=("fc/kernel", kernel)),
        node(array=("Adam/iter", f"optimizer/iter{value}")),
        node(array=("Adam/fc/kernel/m", slot)),
        node([(7, "metrics")]),
        node(array=("total", f"keras_api/metrics/0/total{value}")),
    ]
    described = tf_names.describe_by_graph(nodes, [key for one in nodes for _, key in one.arrays])
    assert described[kernel] == tf_names.Variable("weights", ("fc/kernel",))
    assert described[slot] == tf_names.Variable(
        "optimizer", (slot.removesuffix(value),), ("layer_with_weights-0/kernel", "m")
    )
    assert [described[nodes[n].arrays[0][1]].kind for n in (4, 7)] == ["optimizer", "ignored"]


def test_names_of_variables_that_repeat_or_say_nothing_are_left_for_their_paths() -> None:
    value = tf_names.VALUE
    nodes = [node([(1, "layer-0"), (2, "layer-1"), (3, "z")]), *(node([(4 + n, "w")]) for n in range(2))]
    nodes += [node(array=("Variable", f"z{value}")), *(node(array=("w", f"layer-{n}/w{value}")) for n in range(2))]
    described = tf_names.describe_by_graph(nodes, [key for one in nodes for _, key in one.arrays])
    assert sorted(found.names[0] for found in described.values()) == ["layer-0/w", "layer-1/w", "z"]


def test_a_graph_with_circles_and_many_paths_costs_little() -> None:
    size = 400
    nodes = [
        node([((n + 1) % size, "a"), ((n + 1) % size, "b"), ((n * 7) % size, "c"), (0, "root")]) for n in range(size)
    ]
    nodes[-1] = node(array=("w", "w/.ATTRIBUTES/VARIABLE_VALUE"))
    described = tf_names.describe_by_graph(nodes, ["w/.ATTRIBUTES/VARIABLE_VALUE"])
    assert len(described) == 1


# SavedModel folders that can't be read.


def test_a_saved_model_without_variables_says_why(tf: Any) -> None:
    tf.saved_model.save(make_module(tf), "saved")
    shutil.rmtree("saved/variables")
    with pytest.raises(xw.RefusedFileError, match="constants of its program"):
        xw.load("saved")


def test_a_damaged_graph_of_objects_is_damage(tf: Any) -> None:
    path = tf.train.Checkpoint(make_module(tf)).write("saved")
    data = Path(f"{path}.data-00000-of-00001")
    whole = data.read_bytes()
    at = whole.index(b"blocks")
    for changed in (whole[: at - 1] + b"\xff" + whole[at:], whole[: at + 3]):
        data.write_bytes(changed)
        with pytest.raises(xw.DamagedFileError):
            xw.load(path)
