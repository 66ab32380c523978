"""With a sample, skeleton writes what a model was seen to compute, and proves it before it returns the code."""

from __future__ import annotations

import numpy as np
import pytest

import xweights as xw
from xweights.porting.skeletons.constants import TABLE, code_of_array
from xweights.porting.skeletons.graph import BatchTimes, Operation, merge_runs
from xweights.porting.skeletons.orders import permuted, reshaped
from xweights.porting.skeletons.proving import _compare
from xweights.porting.skeletons.weights import Written, store

keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")
L, nn, functional = keras.layers, torch.nn, torch.nn.functional


def normals(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def twin_of(code):
    space = {}
    exec(code, space)
    return space["Twin"]()


class ChannelNorm(nn.LayerNorm):
    """A norm over channels first, with a forward of its own."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.channels = ChannelNorm(8)
        self.gamma = nn.Parameter(torch.full((8, 1, 1), 0.5))
        self.up = nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, output_padding=1)
        self.head = nn.Linear(8 * 9 + 2, 5)

    def forward(self, x):
        y = functional.max_pool2d(functional.relu_(self.norm(self.stem(x))), 3, 2, 1)
        y = y + self.gamma * self.channels(self.deep(y))
        a, b = self.up(y).chunk(2, dim=1)
        z = functional.avg_pool2d(torch.cat([a, b], 1), 3, 2, 1, ceil_mode=True, count_include_pad=False)
        z = functional.interpolate(z, scale_factor=2, mode="bilinear", align_corners=False)
        shuffled = functional.pixel_shuffle(z, 2).mean((2, 3))
        return self.head(torch.cat([functional.adaptive_avg_pool2d(z, (3, 3)).flatten(1), shuffled], 1))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.cls = nn.Parameter(torch.zeros(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 7, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, ids):
        x = torch.cat([self.cls.expand(ids.shape[0], -1, -1), self.embed(ids)], 1) + self.position
        return {"tokens": (y := self.block(x))[:, 1:], "logits": y[:, 0] @ self.embed.weight.T}


@pytest.mark.keras_backend
@pytest.mark.parametrize(
    ("make", "sample", "names"),
    [
        (Images, normals(2, 3, 32, 32), ("self.stem = layers.Conv2D", "self.gamma = Scale((8,))")),
        (Tokens, np.arange(12).reshape(2, 6) % 11, ("self.cls = self.add_weight", "'tokens'", "batch = ")),
    ],
)
def test_a_torch_module_that_calls_functions_is_written_and_proved(make, sample, names):
    torch.manual_seed(0)
    model = make()
    before = {name: array.clone() for name, array in model.state_dict().items()}
    code = xw.skeleton(model, "keras", sample=sample)
    assert all(name in code for name in names)
    assert model.training
    assert all(torch.equal(array, before[name]) for name, array in model.state_dict().items())
    other = np.concatenate([sample, sample, sample])
    output = twin_of(code)(np.moveaxis(other, 1, -1) if other.ndim == 4 else other)
    assert all(len(part) == 6 for part in (output.values() if isinstance(output, dict) else [output]))


class SelfAttention(nn.Module):
    def __init__(self, masked):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)
        self.mask = nn.Transformer.generate_square_subsequent_mask(5) if masked else None

    def forward(self, x):
        y, _ = self.attention(x, x, x, attn_mask=self.mask, need_weights=False)
        return torch.sin(self.head(x + y))  # no layer: it is recorded


@pytest.mark.parametrize("masked", [False, True])
def test_attention_keeps_the_batch_first_and_is_ported_into(masked):
    torch.manual_seed(0)
    module, x = SelfAttention(masked).eval(), normals(2, 5, 8)
    usual = nn.MultiheadAttention.forward
    code = xw.skeleton(module, "keras", sample=x)
    assert nn.MultiheadAttention.forward is usual
    assert "(1, 0, 2)" not in code
    twin = twin_of(code)
    twin(x)
    assert xw.port(module, twin, sample=x).ok
    with torch.no_grad():
        np.testing.assert_allclose(keras.ops.convert_to_numpy(twin(x)), module(torch.from_numpy(x)).numpy(), atol=1e-5)


class Scaled(L.Layer):
    def build(self, shape):
        self.table = self.add_weight(shape=(9, shape[-1]), name="table")
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, x):
        rows = keras.ops.convert_to_tensor(self.table)[: x.shape[1]]
        return x * self.scale + keras.ops.expand_dims(rows, 0)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.conv = L.Conv2D(8, 3, strides=2, padding="same", activation="swish")
        self.deep = L.SeparableConv2D(8, 3, padding="same")
        self.scaled, self.attend, self.head = Scaled(), L.MultiHeadAttention(2, 4), L.Dense(5)

    def call(self, x):
        y = self.deep(self.conv(x))
        y = keras.ops.average_pool(y, 2, 2, padding="same")
        batch, height, width, channels = keras.ops.shape(y)
        tokens = self.scaled(keras.ops.reshape(y, (batch, height * width, channels)))
        return self.head(keras.ops.mean(tokens + self.attend(tokens, tokens), axis=1))


def test_a_subclassed_keras_model_is_written_in_torch_and_proved():
    keras.utils.set_random_seed(0)
    model, x = Subclassed(), normals(2, 9, 9, 3)
    expected = np.asarray(model(x))
    nodes = len(model.head._inbound_nodes)
    code = xw.skeleton(model, "torch", sample=x)
    assert "self.conv = nn.Conv2d(3, 8" in code
    assert "self.scaled_table = nn.Parameter" in code
    assert len(model.head._inbound_nodes) == nodes
    assert np.array_equal(np.asarray(model(x)), expected)
    assert twin_of(code)(torch.from_numpy(np.moveaxis(normals(4, 9, 9, 3), -1, 1).copy())).shape == (4, 5)


def test_code_that_computes_something_else_is_refused(monkeypatch):
    from xweights_keras.skeleton.graph_writing import KerasGraphWriter

    source = KerasGraphWriter.source
    monkeypatch.setattr(
        KerasGraphWriter, "source", lambda self: source(self).replace("strides=(2, 2)", "strides=(1, 1)")
    )
    with pytest.raises(xw.PortError, match="the skeleton"):
        xw.skeleton(Images(), "keras", sample=normals(2, 3, 32, 32))
    monkeypatch.setattr(KerasGraphWriter, "source", lambda self: source(self).replace("ops.relu(", "ops.abs("))
    with pytest.raises(xw.PortError, match=r"output 0 of the skeleton differs\ngot: .*\nexpected: at most.*\nFix: "):
        xw.skeleton(Images(), "keras", sample=normals(2, 3, 32, 32))
    assert "ops.abs(" in xw.skeleton(Images(), "keras", sample=normals(2, 3, 32, 32), verify=False)


def test_an_infinite_output_of_the_other_sign_is_refused():
    array = np.array([1, np.inf, np.nan], "float32")
    written = Written("", {}, [], [(0,)])
    _compare([array], [array.copy()], written)
    with pytest.raises(xw.PortError, match="in another way"):
        _compare([array], [array * [1, -1, 1]], written)


def test_a_sample_that_the_model_cannot_take_is_refused():
    with pytest.raises(xw.PortError, match=r"(?s)can't be called with this sample.*\nFix: "):
        xw.skeleton(Subclassed(), "torch", sample=normals(2, 9))
    with pytest.raises(xw.PortError, match=r"(?s)can't be exported.*\nFix: "):
        xw.skeleton(Images(), "keras", sample=normals(2, 9))


class Named(nn.Module):
    """A module whose outputs have names."""

    def __init__(self, *keys):
        super().__init__()
        self.keys, self.head = keys, nn.Linear(3, 3)

    def forward(self, x):
        return {key: torch.sin(self.head(x)) * place for place, key in enumerate(self.keys, 1)}


class KerasNamed(keras.Model):
    """A model whose outputs have names."""

    def __init__(self, *keys):
        super().__init__()
        self.keys, self.head = keys, L.Dense(3)

    def call(self, x):
        return {key: keras.ops.sin(self.head(x)) * place for place, key in enumerate(self.keys, 1)}


@pytest.mark.parametrize(("make", "framework"), [(Named, "keras"), (KerasNamed, "torch")])
def test_names_of_outputs_are_literals_in_the_code(make, framework):
    keys = ('a"b', "'\\", 7, '": print(), "')
    twin = twin_of(xw.skeleton(make(*keys), framework, sample=normals(2, 3)))
    given = normals(2, 3) if framework == "keras" else torch.from_numpy(normals(2, 3))
    assert set(twin(given)) == set(keys)
    with pytest.raises(xw.PortError, match=r"a mapping with 1\.5, which is neither a string nor an integer"):
        xw.skeleton(make(1.5), framework, sample=normals(2, 3))


def test_a_sample_that_proves_nothing_is_refused():
    with pytest.raises(xw.PortError, match="have no finite number, which proves nothing\nFix: give another sample"):
        xw.skeleton(Named("y"), "keras", sample=normals(2, 3) * np.nan)
    with pytest.raises(xw.errors.ArgumentError, match=r"the sample has no examples\ngot: .*\(0, 3\)\nFix: "):
        xw.skeleton(Named("y"), "keras", sample=normals(0, 3))


def test_an_operation_without_a_recipe_is_refused_by_name():
    class Sorts(nn.Module):
        def forward(self, x):
            return torch.sort(x, 1)[0]

    with pytest.raises(xw.PortError, match=r"torch's sort.* has no recipe for code"):
        xw.skeleton(Sorts(), "keras", sample=normals(2, 5))

    class Asks(keras.Model):
        def call(self, x):
            return keras.ops.sort(x)

    before = [keras.Operation.symbolic_call, keras.Layer.symbolic_call, keras.ops.add, keras.Variable.__add__]
    with pytest.raises(xw.PortError, match=r"Sort has no recipe for code"):
        xw.skeleton(Asks(), "torch", sample=normals(2, 5))
    after = [keras.Operation.symbolic_call, keras.Layer.symbolic_call, keras.ops.add, keras.Variable.__add__]
    assert all(one is other for one, other in zip(before, after, strict=True))


def test_a_branch_that_depends_on_numbers_is_refused():
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(xw.PortError, match=r"(?s)can't be exported.*\nFix: "):
        xw.skeleton(Branches(), "keras", sample=normals(2, 5))


@pytest.mark.parametrize(
    ("kept", "before", "after", "expected"),
    [
        ((0, 2, 3, 1), (BatchTimes(1), 8, 4, 4), (BatchTimes(1), 8, 16), (0, 2, 1)),
        ((0, 2, 3, 1), (BatchTimes(1), 8, 1, 1), (BatchTimes(1), 8), (0, 1)),
        ((0, 2, 3, 1), (BatchTimes(1), 8, 4, 4), (BatchTimes(1), 128), None),
        ((0, 1, 2), (BatchTimes(1), 49, 96), (BatchTimes(49), 96), (0, 1)),
        ((0, 1), (6, 4), (BatchTimes(1), 8), None),
    ],
)
def test_a_reshape_keeps_the_order_where_no_axes_are_torn_apart(kept, before, after, expected):
    assert reshaped(kept, before, after) == expected


def test_a_permutation_changes_the_order_alone():
    array = normals(2, 3, 4, 5)
    kept, axes = (0, 2, 3, 1), (0, 3, 1, 2)
    order = permuted(kept, axes)
    assert np.array_equal(array.transpose(axes).transpose(order), array.transpose(kept))


def test_lengths_that_grow_with_the_batch_are_found_and_others_are_refused():
    def run(rows, length):
        return [Operation("y", "reshape", ("x",), {}, (rows, length))]

    assert merge_runs(run(12, 7), run(20, 7), (3, 5))[0].shape == (BatchTimes(4), 7)
    with pytest.raises(xw.PortError, match="'y' has 7 where it has 9 on a batch of another size"):
        merge_runs(run(3, 7), run(5, 9), (3, 5))


@pytest.mark.parametrize(
    "array",
    [
        np.full((2, 3), -np.inf, "float32"), np.arange(3, 40, 2).reshape(1, -1), np.tril(np.ones((5, 5), bool)),
        np.array([True, False]), np.random.default_rng(0).integers(0, 169, (49, 49)),
        np.array([[0.1, np.nan]], "float32"),
    ],
)  # fmt: skip
def test_an_array_in_source_code_is_the_same_array(array):
    space = {"np": np, "base64": __import__("base64"), "zlib": __import__("zlib")}
    exec(TABLE, space)
    made = eval(code_of_array(array), space)
    assert made.dtype == array.dtype
    assert np.array_equal(made, array, equal_nan=array.dtype.kind == "f")


def test_a_table_that_would_fill_pages_is_no_source_code():
    assert code_of_array(normals(200, 200)) is None


def test_a_kernel_is_stored_with_its_axes_in_order_and_comes_back():
    array = normals(4, 3, 2, 2)
    place = store("conv.kernel", array.shape, "oihw", "hwio")
    made = place.convert(array)
    assert made.shape == (2, 2, 3, 4)
    assert np.array_equal(made.transpose(place.back), array)
