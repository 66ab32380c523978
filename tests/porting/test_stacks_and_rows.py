"""Layers of which one model calls only some, on some of the rows, step by step, or with features in another order."""

from __future__ import annotations

import numpy as np
import pytest

import xweights as xw

keras = pytest.importorskip("keras", reason="the twins are of Keras and of torch")
torch = pytest.importorskip("torch", reason="the twins are of Keras and of torch")
pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="once is enough")

nn, L, ops = torch.nn, keras.layers, keras.ops
EXPERTS, WIDTH, HIDDEN = 4, 6, 5


def floats(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def randomize(k, t):
    rng = np.random.default_rng(3)
    for variable in k.weights:
        variable.assign(rng.normal(size=variable.shape).astype("float32") * 0.5)
    with torch.no_grad():
        for p in t.parameters():
            p.copy_(torch.from_numpy(rng.normal(size=tuple(p.shape)).astype("float32") * 0.5))


def compute(k, t, x, x_torch):
    with torch.no_grad():
        return ops.convert_to_numpy(k(x, training=False)), t(torch.from_numpy(x_torch)).numpy()


def port_both_ways(make_keras, make_torch, x, x_torch=None):
    """Port a pair to torch and to Keras, and compare the outputs by hand; return the reports and the last models."""
    x_torch = x if x_torch is None else x_torch
    reports = []
    for to_torch in (True, False):
        k, t = make_keras(), make_torch().eval()
        compute(k, t, x, x_torch)
        randomize(k, t)
        source, target, given, there = (k, t, x, x_torch) if to_torch else (t, k, x_torch, x)
        reports.append(xw.port(source, target, sample=given, sample_target=there))
        expected, got = compute(k, t, x, x_torch)
        moved = np.moveaxis(got, 1, -1) if got.ndim == 4 else got
        np.testing.assert_allclose(moved.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)
    return reports


class Bank(L.Layer):
    """All experts on all tokens, each weighted by its share."""

    def build(self, _):
        self.router = self.add_weight(shape=(WIDTH, EXPERTS), name="router")
        self.up = self.add_weight(shape=(EXPERTS, WIDTH, HIDDEN), name="up")
        self.gate = self.add_weight(shape=(EXPERTS, WIDTH, HIDDEN), name="gate")
        self.up_bias = self.add_weight(shape=(EXPERTS, HIDDEN), name="up_bias")
        self.gate_bias = self.add_weight(shape=(EXPERTS, HIDDEN), name="gate_bias")
        self.down = self.add_weight(shape=(EXPERTS, HIDDEN, WIDTH), name="down")

    def call(self, x):
        shares = ops.softmax(ops.matmul(x, self.router))
        best = ops.cast(shares >= ops.max(shares, axis=-1, keepdims=True), x.dtype)
        up = ops.einsum("th,ehm->etm", x, self.up) + self.up_bias[:, None, :]
        hidden = up * ops.silu(ops.einsum("th,ehm->etm", x, self.gate) + self.gate_bias[:, None, :])
        made = ops.einsum("etm,emh->eth", hidden, self.down)
        return x + ops.einsum("eth,te->th", made, shares * best)


class Expert(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.gate = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x):
        return self.down(self.up(x) * nn.functional.silu(self.gate(x)))


class Listed(nn.Module):
    """Each token is sent to its best expert alone; ``backwards``: the experts are listed the other way round."""

    def __init__(self, backwards=False):
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList([Expert() for _ in range(EXPERTS)])
        self.order = list(range(EXPERTS))[:: -1 if backwards else 1]

    def forward(self, x):
        shares, best = torch.softmax(self.router(x), -1).max(-1)
        out = x.clone()
        for number, place in enumerate(self.order):
            chosen = torch.where(best == number)[0]
            if len(chosen):
                out[chosen] += shares[chosen, None] * self.experts[place](x[chosen])
        return out


class Stacked(Listed):
    """Likewise, with the experts in stacks, up and gate in one."""

    def __init__(self):
        super().__init__()
        del self.experts
        self.both = nn.Parameter(torch.empty(EXPERTS, 2 * HIDDEN, WIDTH))
        self.both_bias = nn.Parameter(torch.empty(EXPERTS, 2 * HIDDEN))
        self.down = nn.Parameter(torch.empty(EXPERTS, WIDTH, HIDDEN))

    def forward(self, x):
        shares, best = torch.softmax(self.router(x), -1).max(-1)
        out = x.clone()
        for number in range(EXPERTS):
            chosen = torch.where(best == number)[0]
            if len(chosen):
                both = nn.functional.linear(x[chosen], self.both[number], self.both_bias[number])
                up, gate = both.chunk(2, -1)
                made = nn.functional.linear(up * nn.functional.silu(gate), self.down[number])
                out[chosen] += shares[chosen, None] * made
        return out


def in_a_model(layer, shape):
    given = keras.Input(shape)
    return keras.Model(given, layer(given))


class Bare(keras.Model):
    """A model that gives its layer all tokens at once."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, x):
        return self.layer(x)


def test_experts_in_a_bank_are_those_of_a_list():
    port_both_ways(lambda: Bare(Bank()), Listed, floats(40, WIDTH))


def test_experts_in_a_bank_are_those_of_a_list_in_another_order():
    k, t, x = Bare(Bank()), Listed(backwards=True), floats(40, WIDTH)
    compute(k, t, x, x)
    randomize(k, t)
    xw.port(k, t, sample=x)
    expected, got = compute(k, t, x, x)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(t.experts[0].down.weight.detach().numpy().T, k.layer.down[EXPERTS - 1])


def test_experts_in_a_bank_are_those_of_stacks_in_which_two_kernels_are_one():
    port_both_ways(lambda: Bare(Bank()), Stacked, floats(40, WIDTH))


def _few_tokens():
    """Tokens that don't reach every expert of the models below."""
    return floats(3, WIDTH, seed=1)


def test_an_expert_that_the_sample_does_not_reach_is_ported_with_its_stack():
    k, t, x = Bare(Bank()), Listed(), _few_tokens()
    compute(k, t, x, x)
    randomize(k, t)
    best = ops.convert_to_numpy(x @ k.layer.router).argmax(-1)
    idle = [expert for expert in range(EXPERTS) if expert not in best]
    assert 0 < len(idle) < EXPERTS
    report = xw.port(k, t, sample=x)
    for expert in idle:
        np.testing.assert_array_equal(t.experts[expert].down.weight.detach().numpy().T, k.layer.down[expert])
        np.testing.assert_array_equal(t.experts[expert].up.bias.detach().numpy(), k.layer.up_bias[expert])
    assert any("stack of which the others were seen" in entry.evidence for entry in report.entries)


@pytest.mark.parametrize("make", [Listed, Stacked])
def test_an_expert_of_the_source_that_the_sample_does_not_reach_is_ported_with_its_stack(make):
    k, t, x = Bare(Bank()), make().eval(), _few_tokens()
    compute(k, t, x, x)
    randomize(k, t)
    xw.port(t, k, sample=x)
    x = floats(60, WIDTH, seed=5)
    expected, got = compute(k, t, x, x)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_experts_that_the_sample_does_not_reach_are_refused_if_the_others_have_other_places():
    k, t, x = Bare(Bank()), Listed(backwards=True), _few_tokens()
    compute(k, t, x, x)
    randomize(k, t)
    before = {name: value.clone() for name, value in t.state_dict().items()}
    with pytest.raises(xw.errors.PortError, match="has no twin"):
        xw.port(k, t, sample=x)
    assert all(torch.equal(before[name], value) for name, value in t.state_dict().items())


def test_one_expert_that_is_reached_does_not_prove_the_places_of_the_others():
    # In a list of three the other way round, the expert in the middle has the same place.
    class Three(nn.Module):
        def __init__(self, *, listed):
            super().__init__()
            self.router, self.listed = nn.Linear(2, 3), listed
            if listed:
                self.experts = nn.ModuleList([nn.Linear(2, 2, bias=False) for _ in range(3)])
            else:
                self.kernels = nn.Parameter(torch.randn(3, 2, 2))

        def forward(self, x):
            best, out = self.router(x).argmax(-1), torch.zeros(len(x), 2)
            for number in range(3):
                chosen = torch.where(best == number)[0]
                if len(chosen):
                    made = self.experts[2 - number](x[chosen]) if self.listed else x[chosen] @ self.kernels[number]
                    out = out.index_add(0, chosen, made)
            return out + self.router(x)[:, :2]

    source, target = Three(listed=False), Three(listed=True)
    with torch.no_grad():
        source.router.bias.copy_(torch.tensor([0.0, 50.0, 0.0]))
    with pytest.raises(xw.PortError, match="isn't called with this sample"):
        xw.port(source, target, sample=floats(4, 2))


class FirstAfter(L.Layer):
    def __init__(self):
        super().__init__()
        self.norm, self.head = L.LayerNormalization(epsilon=1e-5), L.Dense(3)

    def call(self, x):
        return self.head(self.norm(x))[:, 0]


class FirstBefore(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.LayerNorm(5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.norm(x[:, 0]))


def test_one_model_may_choose_a_token_before_the_layers_and_the_other_after_them():
    reports = port_both_ways(lambda: in_a_model(FirstAfter(), (7, 5)), FirstBefore, floats(2, 7, 5))
    assert "2 of 2 rows" in reports[0].entries[0].evidence
    assert "2 of 14 rows" in reports[1].entries[0].evidence


def test_a_model_that_is_called_step_by_step_is_one_that_is_called_on_all_steps():
    def make_keras():
        frame = keras.Sequential([keras.Input((6, 6, 2)), L.Conv2D(3, 3), L.GlobalAveragePooling2D()])
        given = keras.Input((4, 6, 6, 2))
        return keras.Model(given, L.Dense(2)(L.TimeDistributed(frame)(given)))

    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 3, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.conv(x.flatten(0, 1)).mean((2, 3)).view(*x.shape[:2], -1))

    x = floats(2, 4, 6, 6, 2)
    port_both_ways(make_keras, Folded, x, np.ascontiguousarray(np.moveaxis(x, -1, 2)))


class Positions(L.Layer):
    def __init__(self):
        super().__init__()
        self.tokens, self.positions, self.norm = (
            L.Embedding(9, 4),
            L.Embedding(5, 4),
            L.LayerNormalization(epsilon=1e-5),
        )

    def call(self, ids):
        return self.norm(self.tokens(ids) + self.positions(ops.arange(5)))


class Typed(nn.Module):
    def __init__(self, types=1):
        super().__init__()
        self.tokens, self.positions, self.types = nn.Embedding(9, 4), nn.Embedding(5, 4), nn.Embedding(types, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, ids):
        types = self.types(torch.zeros_like(ids))
        return self.norm(self.tokens(ids) + types + self.positions(torch.arange(5)))


def test_a_row_that_is_always_added_becomes_a_part_of_the_positions():
    k, t, ids = in_a_model(Positions(), (5,)), Typed().eval(), np.array([[1, 2, 3, 4, 8], [0, 5, 6, 7, 2]])
    compute(k, t, ids, ids)
    randomize(k, t)
    report = xw.port(t, k, sample=ids)
    expected, got = compute(k, t, ids, ids)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert any("types is always added, and is now a part of" in note for note in report.notes)
    assert xw.port(k, t, sample=ids).ok  # its own row is zero from now on


def test_a_table_of_which_the_sample_shows_one_row_is_not_absorbed():
    k, t, ids = in_a_model(Positions(), (5,)), Typed(types=2).eval(), np.array([[1, 2, 3, 4, 8], [0, 5, 6, 7, 2]])
    compute(k, t, ids, ids)
    randomize(k, t)
    with pytest.raises(xw.errors.PortError, match="not right"):
        xw.port(t, k, sample=ids)


class DepthToSpace(L.Layer):
    def __init__(self, turned=False):
        super().__init__()
        self.order = (0, 1, 4, 2, 3, 5) if turned else (0, 1, 3, 2, 4, 5)

    def call(self, x):
        _, h, w, c = x.shape
        x = ops.transpose(ops.reshape(x, (-1, h, w, 2, 2, c // 4)), self.order)
        return ops.reshape(x, (-1, 2 * h, 2 * w, c // 4))


def make_upscaler(turned=False):
    return keras.Sequential(
        [keras.Input((4, 4, 2)), L.Conv2D(12, 3, padding="same"), DepthToSpace(turned), L.Conv2D(2, 1)]
    )


def test_channels_that_become_pixels_in_another_order_are_reordered():
    x = floats(2, 4, 4, 2)

    def make_torch():
        return nn.Sequential(nn.Conv2d(2, 12, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(3, 2, 1))

    reports = port_both_ways(make_upscaler, make_torch, x, np.ascontiguousarray(np.moveaxis(x, -1, 1)))
    assert "in another order" in reports[0].entries[0].evidence


def test_an_order_that_no_reshape_and_transpose_of_the_channels_makes_is_refused():
    k, t = (
        make_upscaler(turned=True),
        nn.Sequential(nn.Conv2d(2, 12, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(3, 2, 1)),
    )
    randomize(k, t)
    before = {name: value.clone() for name, value in t.state_dict().items()}
    with pytest.raises(xw.errors.PortError, match="not right"):
        xw.port(k, t, sample=floats(2, 4, 4, 2))
    assert all(torch.equal(before[name], value) for name, value in t.state_dict().items())


class Shuffle(L.Layer):
    """The channel shuffle of ShuffleNet."""

    def call(self, x):
        _, h, w, c = x.shape
        return ops.reshape(ops.swapaxes(ops.reshape(x, (-1, h, w, 3, c // 3)), 3, 4), (-1, h, w, c))


def make_shuffled():
    parts = L.Conv2D(12, 1), L.ReLU(), Shuffle(), L.Conv2D(6, 3, groups=3)
    return keras.Sequential([keras.Input((5, 5, 3)), *parts])


class Shuffled(nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.groups = groups
        self.first, self.second = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 6, 3, groups=3)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.second(x if self.groups is None else nn.functional.channel_shuffle(x, self.groups))


@pytest.mark.parametrize("groups", [3, None])
def test_channels_that_both_models_shuffle_or_only_one(groups):
    x = floats(2, 5, 5, 3)
    reports = port_both_ways(make_shuffled, lambda: Shuffled(groups), x, np.ascontiguousarray(np.moveaxis(x, -1, 1)))
    assert ("in another order" in reports[0].entries[0].evidence) == (groups is None)


def test_channels_that_are_shuffled_in_other_groups_are_refused_as_another_order():
    k, t = make_shuffled(), Shuffled(4)
    randomize(k, t)
    before = {name: value.clone() for name, value in t.state_dict().items()}
    with pytest.raises(xw.errors.PortError, match="the same numbers in another order"):
        xw.port(k, t, sample=floats(2, 5, 5, 3))
    assert all(torch.equal(before[name], value) for name, value in t.state_dict().items())


class Averaged(nn.Module):
    def __init__(self, mode="mean"):
        super().__init__()
        self.table, self.head = nn.EmbeddingBag(9, 4, mode=mode), nn.Linear(4, 2)

    def forward(self, ids):
        return self.head(self.table(ids))


def make_averaged():
    return keras.Sequential(
        [keras.Input((5,), dtype="int32"), L.Embedding(9, 4), L.GlobalAveragePooling1D(), L.Dense(2)]
    )


def test_a_bag_of_embeddings_is_a_table_and_an_average():
    port_both_ways(make_averaged, Averaged, np.array([[1, 2, 3, 4, 8], [0, 5, 6, 7, 2]]))


def test_a_bag_that_sums_is_refused_against_an_average():
    k, t = make_averaged(), Averaged("sum")
    randomize(k, t)
    with pytest.raises(xw.errors.PortError, match="not right"):
        xw.port(k, t, sample=np.array([[1, 2, 3, 4, 8], [0, 5, 6, 7, 2]]))


class Tokens(L.Layer):
    """Two kinds of tokens before an image's, and one for masks that isn't used."""

    def build(self, _):
        for name, count in (("first", 1), ("masked", 1), ("extra", 2)):
            setattr(self, name, self.add_weight(shape=(1, count, 4), name=name))
        self.project = L.Dense(4)
        self.project.build((None, None, 3))

    def call(self, x, masks=None):
        x = self.project(x)
        x = x if masks is None else ops.where(masks, self.masked, x)
        tokens = [ops.tile(each, (x.shape[0], 1, 1)) for each in (self.first, self.extra)]
        return ops.concatenate([*tokens, x], axis=1)


def test_a_token_that_is_not_used_does_not_look_used_after_another_was_looked_at():
    class Torch(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.extra = nn.Parameter(torch.empty(1, 1, 4)), nn.Parameter(torch.empty(1, 2, 4))
            self.project = nn.Linear(3, 4)

        def forward(self, x):
            tokens = [each.expand(len(x), -1, -1) for each in (self.first, self.extra)]
            return torch.cat([*tokens, self.project(x)], 1)

    port_both_ways(lambda: Bare(Tokens()), Torch, floats(2, 3, 3))


class Ends(nn.Module):
    """Two layers on the first and the last token, ``late``: on all tokens, exchanged."""

    def __init__(self, *, late):
        super().__init__()
        self.first, self.last, self.late = nn.Linear(4, 3), nn.Linear(4, 3), late

    def forward(self, x):
        return self.last(x)[:, 0] + self.first(x)[:, -1] if self.late else self.first(x[:, 0]) + self.last(x[:, -1])


def test_layers_that_an_even_sample_makes_equal_are_refused():
    x = floats(2, 5, 4)
    source, target = Ends(late=False), Ends(late=True)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(xw.errors.PortError, match="could change places"):
        xw.port(source, target, sample=np.repeat(x[:, :1], 5, axis=1))
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())
    xw.port(source, target, sample=x)
    assert torch.equal(target.first.weight, source.last.weight)


def test_a_sample_of_zeros_that_makes_every_output_zero_is_refused():
    source, target = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
    with pytest.raises(xw.errors.PortError, match="every output is zero with this sample"):
        xw.port(source, target, sample=np.zeros((2, 3), "float32"))
    xw.port(source, target, sample=np.ones((2, 3), "float32"))
    assert torch.equal(target.weight, source.weight)
