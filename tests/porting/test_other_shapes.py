"""One weight in another shape or packing: convolutions as dense layers, fused kernels, tables with an offset."""

from __future__ import annotations

import numpy as np
import pytest

import xweights as xw

keras = pytest.importorskip("keras", reason="the twins are of Keras and of torch")
torch = pytest.importorskip("torch", reason="the twins are of Keras and of torch")
pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="once is enough")

nn, L, ops = torch.nn, keras.layers, keras.ops


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def channels_first(array):
    return np.ascontiguousarray(np.moveaxis(array, -1, 1)) if array.ndim == 4 else array


def functional(shape, *layers):
    given = keras.Input(shape)
    out = given
    for layer in layers:
        out = layer(out)
    return keras.Model(given, out)


def assert_ported_both_ways(make_keras, make_torch, sample, sample_torch=None):
    """Port a pair to torch and to Keras, and compare the outputs by hand; return the two reports."""
    sample_torch = channels_first(sample) if sample_torch is None else sample_torch
    reports = []
    for to_torch in (True, False):
        keras.utils.set_random_seed(1)
        torch.manual_seed(2)
        k, t = make_keras(), make_torch().eval()
        randomize(k, t)
        if to_torch:
            reports.append(xw.port(k, t, sample=sample, sample_target=sample_torch))
        else:
            reports.append(xw.port(t, k, sample=sample_torch, sample_target=sample))
        assert reports[-1].ok
        with torch.no_grad():
            got = t(torch.from_numpy(sample_torch)).numpy()
        expected = ops.convert_to_numpy(k(sample, training=False))
        np.testing.assert_allclose(got.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)
    return reports


def randomize(k, t):
    rng = np.random.default_rng(3)
    for variable in k.weights:
        variable.assign(rng.normal(size=variable.shape).astype("float32") * 0.5)
    with torch.no_grad():
        for p in t.parameters():
            p.copy_(torch.from_numpy(rng.normal(size=tuple(p.shape)).astype("float32") * 0.5))


class Pooled(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), head

    def forward(self, x):
        x = self.conv(x)
        x = x.mean((2, 3)) if isinstance(self.head, nn.Linear) else x.mean((2, 3), keepdim=True)
        return self.head(x).reshape(x.shape[0], -1)


def test_a_convolution_of_one_pixel_is_a_dense_layer():
    assert_ported_both_ways(
        lambda: functional(
            (8, 8, 3), L.Conv2D(4, 3), L.GlobalAveragePooling2D(keepdims=True), L.Conv2D(5, 1), L.Flatten()
        ),
        lambda: Pooled(nn.Linear(4, 5)),
        images(2, 8, 8, 3),
    )
    assert_ported_both_ways(
        lambda: functional((8, 8, 3), L.Conv2D(4, 3), L.GlobalAveragePooling2D(), L.Dense(5)),
        lambda: Pooled(nn.Conv2d(4, 5, 1)),
        images(2, 8, 8, 3),
    )


class Flattened(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 6)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x))).flatten(1)


def test_a_convolution_as_large_as_its_image_is_a_dense_layer_on_the_flattened_image():
    assert_ported_both_ways(
        lambda: functional((8, 8, 3), L.Conv2D(4, 3, activation="relu"), L.Flatten(), L.Dense(5)),
        Flattened,
        images(2, 8, 8, 3),
    )


class Patches(nn.Module):
    """Patches cut by hand, channels first in each."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(2 * 2 * 3, 6), nn.Linear(6, 4)

    def forward(self, x):
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, -1, c * 4)
        return self.head(self.embed(x)).mean(1)


def test_a_convolution_with_strides_as_large_as_its_kernel_is_a_dense_layer_on_patches():
    assert_ported_both_ways(
        lambda: functional(
            (8, 8, 3), L.Conv2D(6, 2, strides=2), L.Reshape((16, 6)), L.Dense(4), L.GlobalAveragePooling1D()
        ),
        Patches,
        images(2, 8, 8, 3),
    )


class Columns(nn.Module):
    """What TextCNNs do: a 2-D convolution as wide as the embedding."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 5, (3, 6)), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.conv(x[:, None])[..., 0].amax(-1))


def test_a_convolution_over_one_axis_is_one_over_two_as_wide_as_the_other():
    assert_ported_both_ways(
        lambda: functional((9, 6), L.Conv1D(5, 3), L.GlobalMaxPooling1D(), L.Dense(2)), Columns, images(2, 9, 6)
    )


class KerasAttention(keras.layers.Layer):
    def __init__(self, heads=2):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (L.Dense(8, name=name) for name in ("query", "key", "value"))
        self.out = L.Dense(8, name="out")

    def build(self, shape):
        for layer in (self.query, self.key, self.value, self.out):
            layer.build(shape)

    def call(self, x):
        n, length = ops.shape(x)[:2]

        def split(y):
            return ops.transpose(ops.reshape(y, (n, length, self.heads, -1)), (0, 2, 1, 3))

        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        weights = ops.softmax(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))))
        return self.out(ops.reshape(ops.transpose(ops.matmul(weights, v), (0, 2, 1, 3)), (n, length, 8)))


class TorchAttention(nn.Module):
    """Fused projections: ``by_head`` as GPT-NeoX and BLOOM have them, else in three blocks."""

    def __init__(self, by_head):
        super().__init__()
        self.by_head, self.qkv, self.out = by_head, nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        n, length, _ = x.shape
        if self.by_head:
            q, k, v = self.qkv(x).view(n, length, 2, 3, 4).permute(3, 0, 2, 1, 4)
        else:
            q, k, v = self.qkv(x).view(n, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return self.out(y.transpose(1, 2).reshape(n, length, 8))


@pytest.mark.parametrize("by_head", [False, True])
def test_query_key_and_value_may_be_one_kernel(by_head):
    to_torch, to_keras = assert_ported_both_ways(
        lambda: functional((5, 8), KerasAttention()), lambda: TorchAttention(by_head), images(2, 5, 8)
    )
    assert [entry.target for entry in to_torch.entries] == ["qkv", "qkv", "qkv", "out"]
    assert "packed as query, key, value" in to_torch.entries[0].evidence
    assert "part 1 of 3" in to_keras.entries[0].evidence
    assert ("in each of 2 groups" in to_torch.entries[0].evidence) == by_head


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up, self.down = nn.Linear(6, 16, bias=False), nn.Linear(8, 6)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(nn.functional.silu(gate) * up)


def test_gate_and_up_may_be_one_kernel():
    def make():
        given = keras.Input((5, 6))
        gate, up = (L.Dense(8, use_bias=False, name=name) for name in ("gate", "up"))
        return keras.Model(given, L.Dense(6)(L.Multiply()([L.Activation("silu")(gate(given)), up(given)])))

    assert_ported_both_ways(make, Gated, images(2, 5, 6))


class KerasPositions(keras.layers.Layer):
    def build(self, shape):
        self.table = self.add_weight(shape=(10, shape[-1]), name="table")

    def call(self, x):
        return x + self.table[: ops.shape(x)[1]]


class TorchPositions(nn.Module):
    """A table of which the first two rows are no positions, as in BART and OPT."""

    def __init__(self, offset=2):
        super().__init__()
        self.offset, self.table, self.head = offset, nn.Embedding(10 + offset, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(x + self.table(torch.arange(x.shape[1]) + self.offset))


@pytest.mark.parametrize("offset", [0, 2])
def test_a_table_of_positions_may_have_rows_before_the_first(offset):
    assert_ported_both_ways(
        lambda: functional((5, 6), KerasPositions(), L.Dense(4)), lambda: TorchPositions(offset), images(2, 5, 6)
    )
    k, t = functional((5, 6), KerasPositions(), L.Dense(4)), TorchPositions(offset)
    before = t.table.weight.detach().numpy().copy()
    report = xw.port(k, t, sample=images(2, 5, 6))
    assert report.notes == (("2 of 12 rows of table have no twin and were kept",) if offset else ())
    after = t.table.weight.detach().numpy()
    np.testing.assert_array_equal(after[offset:], ops.convert_to_numpy(k.layers[1].table))
    np.testing.assert_array_equal(after[:offset], before[:offset])


@pytest.mark.parametrize("rows", [1, -2])
def test_rows_of_such_a_table_that_are_shifted_are_named(rows):
    k, t = functional((5, 6), KerasPositions(), L.Dense(4)), TorchPositions()
    k.layers[1].table.assign(images(10, 6))
    xw.port(k, t, sample=images(2, 5, 6))
    with torch.no_grad():
        t.table.weight.copy_(t.table.weight.roll(rows, 0))
    found = xw.verify(k, t, sample=images(2, 5, 6)).first_divergence
    assert (found.layer, found.word, found.cause) == ("table", "rows", f"its rows are shifted by {rows}")


class KerasFused(keras.layers.Layer):
    """Query, key and value of each head in one einsum, as keras_hub's GPT-NeoX and BLOOM have them."""

    def __init__(self):
        super().__init__()
        self.qkv = L.EinsumDense("abc,cde->abde", output_shape=(None, 2, 12), bias_axes="de", name="qkv")
        self.out = L.Dense(8, name="out")

    def build(self, shape):
        self.qkv.build(shape)
        self.out.build(shape)

    def call(self, x):
        n, length = ops.shape(x)[:2]
        q, k, v = (ops.transpose(part, (0, 2, 1, 3)) for part in ops.split(self.qkv(x), 3, axis=-1))
        y = ops.matmul(ops.softmax(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2)))), v)
        return self.out(ops.reshape(ops.transpose(y, (0, 2, 1, 3)), (n, length, 8)))


class TorchSeparate(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        n, length, _ = x.shape
        q, k, v = (layer(x).view(n, length, 2, 4).transpose(1, 2) for layer in (self.query, self.key, self.value))
        return self.out((torch.softmax(q @ k.transpose(-1, -2), -1) @ v).transpose(1, 2).reshape(n, length, 8))


def test_one_kernel_may_have_an_axis_of_heads():
    assert_ported_both_ways(lambda: functional((5, 8), KerasFused()), TorchSeparate, images(2, 5, 8))


class LeftOver(nn.Module):
    """Tables that aren't called with this sample, beside a twin that calls its own."""

    def __init__(self, called, tables=1):
        super().__init__()
        self.called, self.body = called, nn.Linear(6, 6)
        self.tables = nn.ModuleList(nn.Embedding(5, 6) for _ in range(tables))

    def forward(self, x):
        x = self.body(x)
        return x + 0 * self.tables[0](torch.arange(5)) if self.called else x


def test_a_table_is_not_set_to_zero_if_the_source_has_one_for_it_that_is_not_called():
    source, target = LeftOver(called=False), LeftOver(called=True)
    xw.port(source, target, sample=images(2, 5, 6))
    np.testing.assert_array_equal(target.tables[0].weight.detach(), source.tables[0].weight.detach())
    before = target.tables[0].weight.detach().numpy().copy()
    with pytest.raises(xw.PortError, match="'tables/0' of the target has no twin"):
        xw.port(LeftOver(called=False, tables=2), target, sample=images(2, 5, 6))
    np.testing.assert_array_equal(target.tables[0].weight.detach().numpy(), before)


class WithTypes(nn.Module):
    """RoBERTa's table of types has one row, which keras_hub's model doesn't have."""

    def __init__(self):
        super().__init__()
        self.words, self.types, self.head = nn.Embedding(9, 6), nn.Embedding(1, 6), nn.Linear(6, 4)

    def forward(self, ids):
        return self.head(self.words(ids) + self.types(torch.zeros_like(ids)))


def test_a_table_that_only_the_target_adds_is_set_to_zero_and_said():
    k = functional((5,), L.Embedding(9, 6), L.Dense(4))
    t = WithTypes()
    ids = np.random.default_rng(0).integers(0, 9, (2, 5))
    report = xw.port(k, t, sample=ids)
    assert "types isn't in the source, and is zero" in report.notes
    assert not t.types.weight.detach().numpy().any()
    assert xw.verify(k, t, sample=ids).ok
    with torch.no_grad():
        t.types.weight += 1
    assert not xw.verify(k, t, sample=ids).ok
    with torch.no_grad():
        t.types.weight.zero_()
    with torch.no_grad():
        np.testing.assert_allclose(t(torch.from_numpy(ids)).numpy(), ops.convert_to_numpy(k(ids)), rtol=1e-5, atol=1e-6)


class Pooling(nn.Module):
    """Puts out more than its twin, as the models of transformers do."""

    def __init__(self):
        super().__init__()
        self.body, self.pooler = nn.Linear(6, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.body(x)
        return {"last": x, "pooled": torch.tanh(self.pooler(x[:, 0]))}


def test_one_model_may_put_out_more_than_the_other():
    k, t = functional((5, 6), L.Dense(4)), Pooling()
    report = xw.port(k, t, sample=images(2, 5, 6))
    assert report.ok
    assert list(report.outputs) == ["last"]
    assert any("puts out more (last, pooled), of which 1 compared" in note for note in report.notes)
    assert any("was kept: pooler" in note for note in report.notes)
    back = xw.port(t, functional((5, 6), L.Dense(4)), sample=images(2, 5, 6))
    assert any("went nowhere: pooler" in note for note in back.notes)
    assert xw.verify(k, t, sample=images(2, 5, 6)).max_error < 1e-5


class TwoTables(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(5, 6))
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(x + self.first + self.second)


def test_parameters_that_could_change_places_are_refused():
    source, target = TwoTables(), TwoTables()
    before = {name: p.detach().numpy().copy() for name, p in target.named_parameters()}
    with pytest.raises(xw.PortError, match="could change places"):
        xw.port(source, target, sample=images(2, 5, 6))
    for name, p in target.named_parameters():
        np.testing.assert_array_equal(p.detach().numpy(), before[name])


class Spare(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body, self.spare = nn.Linear(6, 5), nn.Linear(6, width)

    def forward(self, x):
        return self.body(x)


def test_what_no_output_needs_is_said_in_the_notes():
    k = keras.Sequential([keras.Input((6,)), L.Dense(5)])
    report = xw.port(Spare(7), k, sample=images(3, 6))
    assert report.ok
    assert "went nowhere: spare" in report.notes[0]
    t = Spare(7)
    kept = t.spare.weight.detach().numpy().copy()
    report = xw.port(k, t, sample=images(3, 6))
    assert report.ok
    assert "so it was kept: spare" in report.notes[0]
    assert "spare/kernel" in report.remains
    np.testing.assert_array_equal(t.spare.weight.detach().numpy(), kept)


class SpareTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.one, self.other = nn.Linear(6, 5), nn.Linear(6, 7), nn.Linear(6, 7)

    def forward(self, x):
        return self.body(x)


def test_a_layer_that_is_not_called_is_refused_if_the_source_has_one_for_it():
    with pytest.raises(xw.PortError, match="'one' of the target has no twin"):
        xw.port(SpareTwice(), SpareTwice(), sample=images(3, 6))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 5)

    def forward(self, x):
        return torch.relu(self.a(x)) + 0 * self.a(x)


def test_a_layer_may_be_called_more_often_than_its_twin():
    k = keras.Sequential([keras.Input((6,)), L.Dense(5, activation="relu")])
    assert xw.port(k, Twice(), sample=images(3, 6)).ok


class Idle(nn.Module):
    """The last of some branches is computed and goes nowhere, as in WaveNets."""

    def __init__(self):
        super().__init__()
        self.a, self.idle = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x):
        x = self.a(x)
        self.idle(x)
        return x


def test_a_layer_whose_output_goes_nowhere_is_kept_and_said():
    report = xw.port(keras.Sequential([keras.Input((6,)), L.Dense(5)]), Idle(), sample=images(3, 6))
    assert report.ok
    assert "so it was kept: idle" in report.notes[0]


class Steps(nn.Module):
    """An image read step by step, channels before frequencies in each."""

    def __init__(self):
        super().__init__()
        self.conv, self.rnn = nn.Conv2d(1, 3, 3), nn.GRU(12, 5, batch_first=True)

    def forward(self, x):
        x = self.conv(x).permute(0, 2, 1, 3)
        return self.rnn(x.flatten(2))[0]


def test_an_image_may_be_flattened_step_by_step_in_either_order():
    assert_ported_both_ways(
        lambda: functional((8, 6, 1), L.Conv2D(3, 3), L.Reshape((6, 12)), L.GRU(5, return_sequences=True)),
        Steps,
        images(2, 8, 6, 1),
    )


class SourceOnly(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6, eps=1e-6)) for _ in range(12)))

    def forward(self, x):
        return self.blocks(x)


def test_equal_differences_are_one_problem_with_a_count():
    target = SourceOnly()
    for module in target.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-3
    with pytest.raises(xw.PortError) as caught:
        xw.port(SourceOnly(), target, sample=images(3, 6))
    text = str(caught.value)
    assert "eps differs, which is no weight, of 12 layers" in text
    assert len(text.splitlines()) < 9
    report = xw.port(SourceOnly(), target, sample=images(3, 6), attributes="fix")
    assert report.ok
    assert {module.eps for module in target.modules() if isinstance(module, nn.LayerNorm)} == {1e-6}


@pytest.mark.parametrize("to_torch", [True, False])
def test_settings_are_set_back_when_a_port_is_refused(to_torch):
    k = functional((8, 8, 3), L.Conv2D(4, 3), L.BatchNormalization(epsilon=1e-3), L.Conv2D(2, 3, padding="same"))
    t = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-5), nn.Conv2d(4, 2, 3)).eval()
    source, target = (k, t) if to_torch else (t, k)
    sample = images(2, 8, 8, 3)
    with pytest.raises(xw.PortError, match="padding"):
        xw.port(source, target, sample=sample if to_torch else channels_first(sample), attributes="fix")
    assert (k.layers[2].epsilon, t[1].eps) == (1e-3, 1e-5)


def test_padding_is_named_as_it_was_found():
    k = functional((8, 8, 3), L.Conv2D(4, 3, strides=2, padding="same"), L.Conv2D(2, 3))
    t = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 2, 3))
    with pytest.raises(xw.PortError, match=r"zeros around the image \(0 before, 1 after\) against 1"):
        xw.port(k, t, sample=images(2, 8, 8, 3))


class Activated(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.second, self.function = nn.Linear(6, 5), nn.Linear(5, 3), [function]

    def forward(self, x):
        return self.second(self.function[0](self.first(x)))


@pytest.mark.parametrize(("wanted", "got"), [("silu", "gelu"), ("relu", "silu")])
def test_activations_are_named_as_they_were_found(wanted, got):
    functions = {"gelu": nn.GELU(), "silu": nn.SiLU(), "relu": nn.ReLU()}
    with pytest.raises(xw.PortError, match=f"{wanted} against {got}"):
        xw.port(Activated(functions[wanted]), Activated(functions[got]), sample=images(4, 6))


def test_variants_of_an_activation_that_differ_by_less_than_the_tolerance_are_said():
    torch.manual_seed(0)
    report = xw.port(Activated(nn.GELU()), Activated(nn.GELU("tanh")), sample=0.5 * images(4, 6))
    assert "differs: gelu against gelu by tanh, by less than the tolerance" in report.notes[0]
    assert not xw.port(Activated(nn.GELU()), Activated(nn.GELU()), sample=images(4, 6)).notes


class TorchSequence(nn.Module):
    """A recurrent layer or attention over a sequence, a convolution along it, and a dense layer."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.along, self.head = inner, nn.Conv1d(6, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x):
        x = self.inner(x)[0] if isinstance(self.inner, nn.RNNBase) else self.inner(x, x, x)[0]
        return self.head(torch.relu(self.along(x.transpose(1, 2))).transpose(1, 2))


class KerasSelfAttention(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.inner = L.MultiHeadAttention(2, 3)

    def call(self, x):
        return self.inner(x, x)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda: L.Bidirectional(L.LSTM(3, return_sequences=True)),
         lambda: nn.LSTM(6, 3, batch_first=True, bidirectional=True)),
        (lambda: L.GRU(6, return_sequences=True), lambda: nn.GRU(6, 6, batch_first=True)),
        (KerasSelfAttention, lambda: nn.MultiheadAttention(6, 2, batch_first=True)),
    ],
)  # fmt: skip
def test_sequences_may_have_one_step(ours, theirs):
    assert_ported_both_ways(
        lambda: functional((1, 6), ours(), L.Conv1D(6, 3, padding="same", activation="relu"), L.Dense(4)),
        lambda: TorchSequence(theirs()),
        images(2, 1, 6),
    )


class KerasLayerScale(keras.layers.Layer):
    def build(self, shape):
        self.inner = L.Dense(shape[-1])
        self.gamma = self.add_weight(shape=(shape[-1],), initializer="ones", name="gamma")
        self.inner.build(shape)

    def call(self, x):
        return x + self.gamma * self.inner(x)


class TorchLayerScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.gamma = nn.Linear(6, 6), nn.Parameter(torch.ones(6))

    def forward(self, x):
        return x + self.gamma * self.inner(x)


@pytest.mark.parametrize("to_torch", [True, False])
def test_a_scale_may_be_as_small_as_layer_scale_begins(to_torch):
    k, t = functional((5, 6), KerasLayerScale(), KerasLayerScale()), nn.Sequential(TorchLayerScale(), TorchLayerScale())
    randomize(k, t)
    source, target = (k, t) if to_torch else (t, k)
    for number, p in enumerate(xw.parameters(source, where="*gamma")):
        p.assign(1e-6 * (1 + images(6, seed=number)))
    assert xw.port(source, target, sample=images(2, 5, 6)).ok
    for one, other in zip(k.layers[1:], t, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(one.gamma), other.gamma.detach().numpy())
