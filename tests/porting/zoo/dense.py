"""Dense layers, einsums, embeddings, sharing and branches, with misleading names and orders."""

from __future__ import annotations

import keras
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from zoo.making import pair, tokens, vectors

L = keras.layers


@pair(vectors(4, 6))
def dense_stack():
    k = keras.Sequential([keras.Input((6,)), L.Dense(5, activation="relu"), L.Dense(7, activation="tanh"), L.Dense(2)])
    return k, nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))


@pair(vectors(4, 6))
def dense_squares():
    k = keras.Sequential([keras.Input((6,)), L.Dense(6, activation="gelu"), L.Dense(6, activation="silu"), L.Dense(6)])
    return k, nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6), nn.SiLU(), nn.Linear(6, 6))


@pair(vectors(4, 6))
def dense_without_bias():
    k = keras.Sequential([keras.Input((6,)), L.Dense(5, use_bias=False), L.LeakyReLU(negative_slope=0.3), L.Dense(2)])
    return k, nn.Sequential(nn.Linear(6, 5, bias=False), nn.LeakyReLU(0.3), nn.Linear(5, 2))


@pair(vectors(2, 5, 6))
def dense_along_a_sequence():
    k = keras.Sequential(
        [keras.Input((5, 6)), L.Dense(4, activation="elu"), L.TimeDistributed(L.Dense(4, activation="relu"))]
    )
    return k, nn.Sequential(nn.Linear(6, 4), nn.ELU(), nn.Linear(4, 4), nn.ReLU())


@pair(vectors(2, 5, 6))
def einsum_to_heads_and_back():
    x = keras.Input((5, 6))
    y = L.EinsumDense("btd,dhk->bthk", output_shape=(5, 2, 4), bias_axes="hk")(x)
    y = keras.layers.Activation("relu")(y)
    k = keras.Model(x, L.EinsumDense("bthk,hkd->btd", output_shape=(5, 3), bias_axes="d")(y))
    return k, nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


@pair(vectors(2, 5, 6))
def einsum_stored_like_torch():
    x = keras.Input((5, 6))
    k = keras.Model(x, L.EinsumDense("btd,od->bto", output_shape=(5, 6))(x))
    return k, nn.Linear(6, 6, bias=False)


class TorchBag(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 6)

    def forward(self, x):
        return self.head(self.table(x).mean(1))


@pair(tokens(11, 3, 7))
def embedding():
    x = keras.Input((7,), dtype="int32")
    y = L.GlobalAveragePooling1D()(L.Embedding(11, 6)(x))
    return keras.Model(x, L.Dense(6)(y)), TorchBag()


class KerasTied(keras.Model):
    def __init__(self, tie):
        super().__init__()
        self.table = L.ReversibleEmbedding(11, 6, tie_weights=tie)
        self.middle = L.Dense(6, activation="tanh")
        self.table.build((None, None))
        self.middle.build((None, None, 6))
        self.built = True

    def call(self, x):
        return self.table(self.middle(self.table(x)), reverse=True)


class TorchTied(nn.Module):
    def __init__(self, tie):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.middle = nn.Linear(6, 6)
        self.back = nn.Linear(6, 11, bias=False)
        if tie:
            self.back.weight = self.table.weight

    def forward(self, x):
        return self.back(torch.tanh(self.middle(self.table(x))))


@pair(tokens(11, 3, 7))
def embedding_tied():
    return KerasTied(True), TorchTied(True)


@pair(tokens(11, 3, 7))
def embedding_read_backwards():
    return KerasTied(False), TorchTied(False)


class KerasShared(keras.Model):
    def __init__(self):
        super().__init__()
        self.b = L.Dense(6, activation="tanh")
        self.a = L.Dense(6)

    def call(self, x):
        return self.a(self.b(self.b(x)))

    def build(self, shape):
        self.a.build((None, 6))
        self.b.build((None, 6))


class TorchShared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = nn.Linear(6, 6)

    def forward(self, x):
        return self.a(torch.tanh(self.b(torch.tanh(self.b(x)))))


@pair(vectors(4, 6))
def a_layer_called_twice():
    k = KerasShared()
    k.build((None, 6))
    return k, TorchShared()


class TorchBranches(nn.Module):
    """Branches defined and called in another order than the Keras twin, with misleading names."""

    def __init__(self):
        super().__init__()
        self.left = nn.Linear(6, 6)
        self.right = nn.Linear(6, 6)
        self.last = nn.Linear(6, 6)

    def forward(self, x):
        y = self.left(x)
        return self.last(self.right(x) * torch.sigmoid(y))


@pair(vectors(4, 6))
def branches_in_another_order():
    x = keras.Input((6,))
    gate = L.Dense(6, activation="sigmoid", name="right")(x)
    k = keras.Model(x, L.Dense(6, name="last")(L.Dense(6, name="left")(x) * gate))
    return k, TorchBranches()


class TorchHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.second = nn.Linear(6, 4)
        self.first = nn.Linear(6, 4)
        self.trunk = nn.Linear(6, 6)

    def forward(self, x):
        y = torch.relu(self.trunk(x))
        return self.first(y), self.second(y)


@pair(vectors(4, 6))
def two_equal_heads():
    x = keras.Input((6,))
    y = L.Dense(6, activation="relu")(x)
    return keras.Model(x, [L.Dense(4, name="second")(y), L.Dense(4, name="first")(y)]), TorchHeads()


class TorchTwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(6, 5)
        self.other = nn.Linear(6, 5)

    def forward(self, a, b):
        return torch.cat([self.one(a), self.other(b)], -1)


@pair(lambda: (vectors(4, 6)(), vectors(5, 6)()[:4] + 1))
def two_inputs():
    a, b = keras.Input((6,)), keras.Input((6,))
    return keras.Model([a, b], L.Concatenate()([L.Dense(5)(a), L.Dense(5)(b)])), TorchTwoInputs()


@pair(vectors(4, 6), directions=("to_keras",))
def weight_norm_is_ported_as_its_effect():
    k = keras.Sequential([keras.Input((6,)), L.Dense(5), L.Dense(5)])
    return k, nn.Sequential(weight_norm(nn.Linear(6, 5)), nn.Linear(5, 5))


@pair(vectors(4, 6), directions=("to_keras",))
def spectral_norm_of_torch_is_ported_as_its_effect():
    k = keras.Sequential([keras.Input((6,)), L.Dense(5), L.Dense(5)])
    return k, nn.Sequential(spectral_norm(nn.Linear(6, 5)), nn.Linear(5, 5))


@pair(vectors(4, 6))
def spectral_norm_of_keras_stores_its_effect():
    k = keras.Sequential([keras.Input((6,)), L.SpectralNormalization(L.Dense(5)), L.Dense(5)])
    return k, nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 5))


class TorchTokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 6))
        self.positions = nn.Parameter(torch.zeros(1, 6, 6))
        self.head = nn.Linear(6, 6)

    def forward(self, x):
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(x)


class KerasTokens(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = L.Dense(6)

    def build(self, shape):
        self.token = self.add_weight(shape=(1, 1, 6), name="token")
        self.positions = self.add_weight(shape=(1, 6, 6), name="positions")
        self.head.build((None, 6, 6))

    def call(self, x):
        token = keras.ops.repeat(self.token, x.shape[0], axis=0)
        return self.head(keras.ops.concatenate([token, x], axis=1) + self.positions)


@pair(vectors(2, 5, 6))
def weights_of_the_models_own():
    k = KerasTokens()
    k.build((None, 5, 6))
    return k, TorchTokens()


class TorchFunctional(nn.Module):
    """A module that uses a layer's weight without calling the layer."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 5)
        self.outer = nn.Linear(5, 3)

    def forward(self, x):
        return self.outer(nn.functional.linear(x, self.inner.weight, self.inner.bias))


@pair(vectors(4, 6))
def a_weight_used_without_its_layer():
    return keras.Sequential([keras.Input((6,)), L.Dense(5), L.Dense(3)]), TorchFunctional()
