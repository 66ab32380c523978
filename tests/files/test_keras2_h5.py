"""The HDF5 files of Keras 2, and those of Keras 3 in that layout: names, axes, values, CuDNN's arrays, bad files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import xweights as xw

h5py = pytest.importorskip("h5py", reason="HDF5 needs h5py: python -m pip install 'xweights-nn[files]'")
Groups = Mapping[str, Mapping[str, Any]]


def write(path: str, groups: Groups, *, config: Any = None, split: int = 1, optimizer: Any = None) -> str:
    """Write a file as Keras 2 does: ``groups`` has the arrays of each layer by their variables' names."""

    def put(group: Any, name: str, texts: Sequence[str]) -> None:
        parts = np.array_split(np.asarray([text.encode() for text in texts]), split)
        for number, part in enumerate(parts):
            group.attrs[f"{name}{number}" if split > 1 else name] = part

    with h5py.File(path, "w") as file:
        top = file if config is None else file.create_group("model_weights")
        listed = [name for name in groups if name != "top_level_model_weights"]
        put(top, "layer_names", listed)
        top.attrs["backend"], top.attrs["keras_version"] = b"tensorflow", b"2.15.0"
        for layer, arrays in groups.items():
            group = top.create_group(layer)
            put(group, "weight_names", [f"{name}:0" for name in arrays])
            for name, array in arrays.items():
                group.create_dataset(f"{name}:0", data=array)
        if config is not None:
            file.attrs["model_config"] = config if isinstance(config, (bytes, str)) else json.dumps(config)
        if optimizer:
            group = file.create_group("optimizer_weights")
            put(group, "weight_names", list(optimizer))
            for name, array in optimizer.items():
                group.create_dataset(name, data=array)
    return path


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed + sum(shape)).normal(size=shape).astype("f4")


def dense(inputs: int, outputs: int, prefix: str) -> dict[str, Any]:
    return {f"{prefix}/kernel": normal(inputs, outputs), f"{prefix}/bias": normal(outputs)}


def facts_of(target: Any) -> dict[str, Any]:
    return {p.name: (p.axes, p.role, p.gates, p.layer, p.trainable) for p in xw.parameters(target)}


def names_of(path: str) -> list[str]:
    return [p.name for p in xw.parameters(path)]


# Names from what is listed.


def test_names_come_from_what_keras_made_up_and_from_what_the_user_gave(tmp_path: Any) -> None:
    groups = {
        "input_1": {},
        "dense_7": dense(2, 3, "dense_7"),
        "mine": dense(3, 4, "mine"),
        "dense_9": dense(4, 1, "dense_9"),
        "block1/conv": {"block1/conv/kernel": normal(3, 3, 2, 4), "block1/conv/bias": normal(4)},
        "time_distributed_3": {"time_distributed_3/kernel": normal(4, 2)},
        "top_level_model_weights": {"scale": normal(2)},
    }
    path = write(str(tmp_path / "w.h5"), groups)
    assert names_of(path) == [
        *("dense/0/kernel", "dense/0/bias", "mine/kernel", "mine/bias", "dense/2/kernel", "dense/2/bias"),
        *("block1/conv/kernel", "block1/conv/bias", "time_distributed/0/kernel", "scale"),
    ]
    facts = facts_of(path)
    assert facts["mine/kernel"][0] == facts["time_distributed/0/kernel"][0] == ("in", "out")
    assert facts["block1/conv/kernel"][0] == ("h", "w", "in", "out")


def test_what_names_and_shapes_leave_open_stays_open(tmp_path: Any) -> None:
    groups = {
        "square": {"square/kernel": normal(3, 3, 4, 4), "square/bias": normal(4)},  # transposed, or not
        "conv2d_1": {"conv2d_1/kernel": normal(3, 3, 1, 4)},  # one input channel, or one group for each
        "custom": {"custom/w": normal(2, 2)},
        "nested": {**dense(2, 2, "dense_4"), **dense(2, 2, "dense_3")},  # frozen layers are listed last
    }
    path = write(str(tmp_path / "w.h5"), groups)
    assert names_of(path)[2:] == [
        *("conv2d/1/kernel", "custom/w"),
        *("nested/dense_4/kernel", "nested/dense_4/bias", "nested/dense_3/kernel", "nested/dense_3/bias"),
    ]
    facts = facts_of(path)
    assert facts["square/kernel"][0] is facts["conv2d/1/kernel"][0] is facts["custom/w"][0] is None


def test_a_named_layer_of_an_open_kind_leaves_numbers_open_only_where_they_could_be_mixed_up(tmp_path: Any) -> None:
    def conv(name: str, *shape: int) -> dict[str, Any]:
        return {f"{name}/kernel": normal(3, *shape), f"{name}/bias": normal(4)}

    one = {"mine": conv("mine", 4, 4), "conv1d_transpose_1": conv("conv1d_transpose_1", 4, 2)}
    path = write(str(tmp_path / "w.h5"), one | {"conv1d": conv("conv1d", 2, 4), "conv1d_9": conv("conv1d_9", 2, 4)})
    assert names_of(path)[2::2] == ["conv1d_transpose/0/kernel", "conv1d/kernel", "conv1d_9/kernel"]
    path = write(str(tmp_path / "w.h5"), one | {"conv1d": conv("conv1d", 2, 4)})
    assert names_of(path)[2::2] == ["conv1d_transpose/0/kernel", "conv1d/1/kernel"]


def test_lists_that_are_too_long_for_one_attribute_are_put_together(tmp_path: Any) -> None:
    layers = {f"l{n}": dense(1, 1, f"l{n}") for n in range(5)}
    path = write(str(tmp_path / "w.h5"), layers, split=2)
    assert names_of(path) == [f"l{n}/{role}" for n in range(5) for role in ("kernel", "bias")]


@pytest.mark.parametrize("kind", [bytes, str])
def test_a_whole_model_is_read_by_its_configuration_and_its_optimizer_is_no_weight(tmp_path: Any, kind: Any) -> None:
    inner = {"name": "inner", "layers": [{"class_name": "Dense", "config": {"name": "dense", "use_bias": True}}]}
    layers = [
        {"class_name": "Conv2D", "config": {"name": "c", "use_bias": True, "groups": 2, "trainable": False}},
        {"class_name": "Functional", "config": inner},
        {"class_name": "pack>Odd", "config": {"name": "odd_1"}},
    ]
    text = json.dumps({"class_name": "Sequential", "config": layers})  # as Keras 2.0 to 2.2 wrote it
    groups = {
        "c": {"c/kernel": normal(3, 3, 1, 4), "c/bias": normal(4)},
        "inner": dense(2, 2, "dense"),
        "odd_1": {"odd_1/w": normal(2)},
    }
    slots = {"Adam/iter:0": np.int64(3), "Adam/m/dense/kernel:0": normal(2, 2)}
    path = write(str(tmp_path / "m.h5"), groups, config=text.encode() if kind is bytes else text, optimizer=slots)
    assert names_of(path) == ["c/kernel", "c/bias", "inner/dense/0/kernel", "inner/dense/0/bias", "odd/0/w"]
    assert facts_of(path)["c/kernel"][0] == ("h", "w", "in", "mult")
    assert not facts_of(path)["c/bias"][4]
    optimizer = next(part for part in xw.parts(path) if part.name == "optimizer_weights")
    assert optimizer.kind == "optimizer"
    np.testing.assert_array_equal(optimizer.arrays["Adam/m/dense/kernel:0"].read(), normal(2, 2))
    assert set(xw.load(path).ignored) == {f"optimizer_weights/{name}" for name in slots}


# CuDNN.


@pytest.mark.parametrize("gates", [3, 4])
@pytest.mark.parametrize("inside", ["", "forward_cu_dnn/"])
def test_arrays_of_cudnn_layers_are_those_of_the_plain_layers(tmp_path: Any, gates: int, inside: str) -> None:
    kind = {3: "gru", 4: "lstm"}[gates]
    inputs, units = 5, 3
    kernel, recurrent = normal(inputs, gates * units), normal(units, gates * units)
    bias = normal(2 * gates * units)
    name = "bidirectional_2" if inside else f"cu_dnn{kind}_1"
    arrays = {"kernel": kernel, "recurrent_kernel": recurrent, "bias": bias}
    path = write(str(tmp_path / "w.h5"), {name: {f"{name}/{inside}{role}": value for role, value in arrays.items()}})
    plain = "bidirectional/0/forward" if inside else f"{kind}/0"
    opened = xw.load(path)
    # cuDNN multiplies from the left: its matrix of a gate is (units, inputs) in memory, whatever shape Keras gave it.
    for gate in range(gates):
        cut = slice(gate * units, (gate + 1) * units)
        matrix = np.ascontiguousarray(kernel[:, cut]).reshape(units, inputs)
        x = normal(inputs, seed=7)
        np.testing.assert_allclose(x @ opened[f"{plain}/kernel"][:, cut], matrix @ x, rtol=1e-5)
        np.testing.assert_array_equal(opened[f"{plain}/recurrent_kernel"][:, cut], recurrent[:, cut].T)
    halves = bias.reshape(2, -1)
    np.testing.assert_array_equal(opened[f"{plain}/bias"], halves if kind == "gru" else halves[0] + halves[1])
    assert facts_of(path)[f"{plain}/bias"][2] == {"gru": ("z", "r", "h"), "lstm": ("i", "f", "c", "o")}[kind]


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_cudnn_arrays_are_converted_as_keras_2_converted_them(tmp_path: Any, kind: str) -> None:
    reason = "TensorFlow has Keras 2's own conversion in it"
    pytest.importorskip("tensorflow", reason=reason)
    hdf5_format = pytest.importorskip("tensorflow.python.keras.saving.hdf5_format", reason=reason)
    recurrent = pytest.importorskip("tensorflow.python.keras.layers.recurrent", reason=reason)
    gates = {"GRU": 3, "LSTM": 4}[kind]
    layer = getattr(recurrent, kind)(3, **({"reset_after": True} if kind == "GRU" else {}))
    layer.build((None, 2, 5))
    arrays = [normal(5, gates * 3), normal(3, gates * 3), normal(2 * gates * 3)]
    expected = hdf5_format.preprocess_weights_for_loading(layer, [array.copy() for array in arrays])
    name = f"cu_dnn{kind.lower()}"
    roles = [f"{name}/{role}" for role in ("kernel", "recurrent_kernel", "bias")]
    path = write(str(tmp_path / "w.h5"), {name: dict(zip(roles, arrays, strict=True))})
    for p, value in zip(xw.parameters(path), expected, strict=True):
        np.testing.assert_array_equal(p.read(), value)


def test_arrays_of_cudnn_layers_are_converted_by_out_and_not_edited_in_their_own_order(tmp_path: Any) -> None:
    arrays = {"r/kernel": normal(5, 12), "r/recurrent_kernel": normal(3, 12), "r/bias": normal(24)}
    path = write(str(tmp_path / "w.h5"), {"r": arrays, "d": dense(2, 2, "d")})
    before = (tmp_path / "w.h5").read_bytes()
    for rule, options in ((xw.Scale(0.5), {}), (xw.SetEntries(0, 1.0), {"where": "r/bias"})):
        with pytest.raises(xw.RefusedFileError, match=r"(?s)CuDNN.*Fix: out="):
            xw.edit_file(path, rule, **options)
        assert (tmp_path / "w.h5").read_bytes() == before
    xw.edit_file(path, xw.Scale(0.5), where="d/*")
    out = str(tmp_path / "w.safetensors")
    xw.edit_file(path, xw.Scale(0.5), where="r/*", out=out)
    np.testing.assert_array_equal(xw.load(out)["r/bias"], (arrays["r/bias"][:12] + arrays["r/bias"][12:]) / 2)
    np.testing.assert_array_equal(xw.load(out)["d/kernel"], normal(2, 2) / 2)


# With Keras.


def functional(keras: Any, seed: int = 0) -> Any:
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    given = keras.Input((6, 8))
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(3), layers.Dense(3)], name="inner")
    ends = [
        layers.LSTM(4)(given),
        layers.Bidirectional(layers.GRU(3))(layers.MultiHeadAttention(2, 4)(given, given)),
        layers.SeparableConv1D(3, 2)(given),
        layers.Conv1D(8, 3, groups=8, name="mine")(given),
        layers.Conv1DTranspose(2, 3)(layers.BatchNormalization()(given)),
        layers.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d")(layers.LayerNormalization()(given)),
        layers.TimeDistributed(inner)(given),
        layers.TimeDistributed(layers.Dense(2))(given),
        layers.DepthwiseConv1D(2)(given),
        layers.RNN(layers.LSTMCell(3))(given),
        layers.ConvLSTM1D(2, 2)(layers.Reshape((6, 8, 1))(given)),
        layers.Dense(8)(given[:, :1]),
    ]
    return keras.Model(given, ends)


@pytest.fixture
def keras() -> Any:
    return pytest.importorskip("keras")


@pytest.mark.keras_backend
def test_a_whole_model_of_keras_legacy_writer_has_the_names_of_the_live_model(keras: Any, tmp_path: Any) -> None:
    model, other = functional(keras), functional(keras, 1)
    path = str(tmp_path / "m.h5")
    model.save(path)
    assert names_of(path) == [p.name for p in xw.parameters(model)]
    known = {name: fact for name, fact in facts_of(path).items() if fact[0] is not None}
    assert known == {name: fact for name, fact in facts_of(model).items() if name in known}
    assert {name.partition("/")[0] for name in facts_of(path).keys() - known.keys()} == {"rnn", "conv_lstm1d"}
    assert xw.equal(model, path)
    xw.set_params(other, path)
    assert xw.equal(model, other)


@pytest.mark.keras_backend
def test_weights_alone_go_where_keras_own_loader_puts_them(keras: Any, tmp_path: Any) -> None:
    legacy = pytest.importorskip("keras.src.legacy.saving.legacy_h5_format")
    model, other, referee = functional(keras), functional(keras, 1), functional(keras, 2)
    path = str(tmp_path / "w.h5")
    with h5py.File(path, "w") as file:
        legacy.save_weights_to_hdf5_group(file, model)
    with pytest.raises(xw.LayoutError, match=r'(?s)mine/kernel.*Fix: layout="native"'):
        xw.set_params(other, path)  # the file doesn't say that it is a convolution of groups
    xw.set_params(other, path, layout="native")
    with h5py.File(path) as file:
        legacy.load_weights_from_hdf5_group(file, referee)
    assert xw.equal(other, referee)


@pytest.mark.keras_backend
def test_a_file_by_hand_in_keras_2_names_is_loaded_as_keras_loads_it(keras: Any, tmp_path: Any) -> None:
    legacy = pytest.importorskip("keras.src.legacy.saving.legacy_h5_format")
    layers = keras.layers
    models = [
        keras.Sequential(
            [
                keras.Input((4, 8)),
                layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
                layers.TimeDistributed(keras.Sequential([keras.Input((6,)), layers.Dense(2), layers.Dense(2)])),
                layers.DepthwiseConv1D(2),
                layers.BatchNormalization(name="norm"),
                layers.GRU(2, reset_after=False),
            ]
        )
        for _ in range(2)
    ]
    cell = {"kernel": normal(8, 12), "recurrent_kernel": normal(3, 12), "bias": normal(12)}
    gru = {"kernel": normal(2, 6), "recurrent_kernel": normal(2, 6), "bias": normal(6)}
    path = write(
        str(tmp_path / "w.h5"),
        {
            "bidirectional_4": {
                f"bidirectional_4/{side}_lstm_3/lstm_cell_{n}/{role}": value
                for n, side in enumerate(("forward", "backward"))
                for role, value in cell.items()
            },
            "time_distributed": {**dense(6, 2, "dense_8"), **dense(2, 2, "dense_9")},
            "depthwise_conv1d_2": {
                "depthwise_conv1d_2/depthwise_kernel": normal(2, 2, 1),
                "depthwise_conv1d_2/bias": normal(2),
            },
            "norm": {
                f"norm/{role}": abs(normal(2, seed=n))
                for n, role in enumerate(("gamma", "beta", "moving_mean", "moving_variance"))
            },
            "gru": {f"gru/gru_cell/{role}": value for role, value in gru.items()},
        },
    )
    xw.set_params(models[0], path)
    with h5py.File(path) as file:
        legacy.load_weights_from_hdf5_group(file, models[1])
    assert xw.equal(*models)
    assert xw.equal(models[0], path)
    assert facts_of(path) == facts_of(models[0])


# Bad files.


def listing(layers: Any = (b"a",), weights: Any = (b"a/w:0",), **attributes: Any) -> Any:
    def make(file: Any) -> None:
        file.attrs["layer_names"] = layers
        file.create_group("a").create_dataset("a/w:0", data=np.ones((3, 3, 1, 1)))
        file["a"].attrs["weight_names"] = weights
        for name, value in attributes.items():
            file.attrs[name] = value

    return make


def whole(config: Any) -> Any:
    def make(file: Any) -> None:
        listing()(file.create_group("model_weights"))
        file.attrs["model_config"] = config

    return make


def cudnn(kernel: Any, recurrent: Any) -> Any:
    def make(file: Any) -> None:
        file.attrs["layer_names"] = [b"a"]
        group = file.create_group("a")
        group.attrs["weight_names"] = [b"kernel:0", b"recurrent_kernel:0", b"bias:0"]
        shapes = {"kernel:0": kernel, "recurrent_kernel:0": recurrent, "bias:0": (2 * recurrent[1],)}
        for name, shape in shapes.items():
            group.create_dataset(name, data=np.ones(shape))

    return make


BAD = {
    "no such group": (listing([b"a", b"b"]), xw.DamagedFileError, "b", "no such group"),
    "no group": (listing([b"a/a/w:0"]), xw.DamagedFileError, "a/a/w:0", "no such group"),
    "no such array": (listing(weights=[b"a/v:0"]), xw.DamagedFileError, "a/a/v:0", "no such array"),
    "a way out": (listing(weights=[b"../x"]), xw.DamagedFileError, "a/../x", "no such array"),
    "layer twice": (listing([b"a", b"a"]), xw.DamagedFileError, "/", "twice"),
    "weight twice": (listing(weights=[b"a/w:0"] * 2), xw.DamagedFileError, "a", "twice"),
    "numbers": (listing([1, 2]), xw.DamagedFileError, "/", "no text"),
    "numbers in a layer": (listing(weights=np.ones((2, 2))), xw.DamagedFileError, "a", "no text"),
    "no value": (listing(h5py.Empty("S3")), xw.DamagedFileError, "/", "no text"),
    "no UTF-8": (listing([b"\xff\xfe"]), xw.DamagedFileError, "\udcff\udcfe", "no such group"),
    "empty name": (listing([b"a", b""]), xw.DamagedFileError, "/", "no name"),
    "long name": (listing([b"a" * 20_000]), xw.DamagedFileError, "/", "no name"),
    "references": (
        lambda f: f.attrs.create("layer_names", np.array([f.ref], object), dtype=h5py.ref_dtype),
        *(xw.DamagedFileError, "/", "no text"),
    ),
    "no JSON": (whole(b"{"), xw.DamagedFileError, None, "no JSON"),
    "deep JSON": (whole("[" * 60_000), xw.DamagedFileError, None, "nested"),
    "numbers for JSON": (whole(3.0), xw.DamagedFileError, "model_config", "no text"),
    "many configurations": (whole([b"{}", b"{}"]), xw.DamagedFileError, "model_config", "2 texts"),
    "Keras 1": (listing(keras_version="1.2.2"), xw.RefusedFileError, None, "other orders"),
    "Theano": (
        lambda f: (listing(weights=[b"a/kernel:0"], backend="theano")(f), f["a"].move("a/w:0", "a/kernel:0")),
        *(xw.RefusedFileError, "a/a/kernel:0", "flipped"),
    ),
    "CuDNN of five gates": (cudnn((2, 15), (3, 15)), xw.DamagedFileError, "a/bias:0", "CuDNN"),
    "CuDNN of two widths": (cudnn((2, 9), (3, 12)), xw.DamagedFileError, "a/bias:0", "CuDNN"),
    "CuDNN of one axis": (cudnn((12,), (3, 12)), xw.DamagedFileError, "a/bias:0", "CuDNN"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_lies_ends_in_one_typed_error_with_its_reason(tmp_path: Any, name: str) -> None:
    make, error, key, reason = BAD[name]
    path = str(tmp_path / "w.h5")
    with h5py.File(path, "w") as file:
        make(file)
    with pytest.raises(error) as caught:
        xw.load(path)
    assert caught.value.key == key
    assert reason in str(caught.value)


def test_one_text_that_is_listed_a_thousand_times_is_not_copied_a_thousand_times(tmp_path: Any) -> None:
    """4,000 entries of 16 bytes fit in an attribute, and each may name the same megabyte."""
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        listing()(file)
        texts = np.array(["x" * (1 << 20)] + ["y"] * 3999, object)
        file["a"].attrs.create("weight_names", texts, dtype=h5py.string_dtype())
    data = path.read_bytes()
    length, one = (1 << 20).to_bytes(4, "little"), (1).to_bytes(4, "little")
    # Length, address of the heap, number 1: the only long text is the first of the list.
    first = next(at for at in range(len(data)) if data.startswith(length, at) and data[at + 12 : at + 16] == one)
    path.write_bytes(data[:first] + data[first : first + 16] * 4000 + data[first + 64_000 :])
    with pytest.raises(xw.RefusedFileError, match="max_bytes"):
        xw.load(path, max_bytes=1 << 20)


@pytest.mark.parametrize(
    "config",
    [
        {"config": {"layers": [{"class_name": "Dense", "config": {"name": "a", "use_bias": 3}}, 7, {"class_name": 1}]}},
        {"config": {"layers": [{"class_name": "LSTM", "config": {"name": ["a"]}}]}},
        {"config": {"layers": [{"class_name": "TimeDistributed", "config": {"name": "a", "layer": 5}}]}},
        {"config": {"layers": [{"class_name": "Bidirectional", "config": {"name": "a", "layer": {"config": []}}}]}},
        {"config": {"layers": [{"class_name": "Sequential", "config": {"name": "a", "layers": [[]]}}]}},
        {"config": 5},
    ],
)
def test_a_strange_configuration_leaves_the_arrays_their_own_names(tmp_path: Any, config: Any) -> None:
    path = str(tmp_path / "w.h5")
    with h5py.File(path, "w") as file:
        whole(json.dumps(config))(file)
    assert names_of(path) == ["a/w"]


def test_what_no_list_names_is_left_out_by_name(tmp_path: Any) -> None:
    path = write(str(tmp_path / "w.h5"), {"d": dense(2, 2, "d")})
    with h5py.File(path, "a") as file:
        file["extra"] = np.ones(3)
    assert names_of(path) == ["d/kernel", "d/bias"]
    assert xw.load(path).ignored == ("extra",)
