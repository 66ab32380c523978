"""Attention: packed, split, built from dense layers; transformer blocks."""

from __future__ import annotations

import keras
import torch
from torch import nn
from torch.nn import functional

from zoo.conv import Own
from zoo.making import pair, tokens, vectors

L = keras.layers


def split_heads(x, count):
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def join_heads(x):
    return x.transpose(1, 2).flatten(2)


@pair(vectors(2, 5, 8))
def attention_packed():
    x = keras.Input((5, 8))
    k = keras.Model(x, L.MultiHeadAttention(2, 4)(x, x))
    return k, Own(lambda m, x: m.a(x, x, x, need_weights=False)[0], a=nn.MultiheadAttention(8, 2, batch_first=True))


@pair(vectors(2, 5, 16))
def attention_with_as_many_heads_as_their_size():
    x = keras.Input((5, 16))
    k = keras.Model(x, L.Dense(16)(L.MultiHeadAttention(4, 4)(x, x)))
    a = nn.MultiheadAttention(16, 4, batch_first=True)
    return k, Own(lambda m, x: m.b(m.a(x, x, x)[0]), a=a, b=nn.Linear(16, 16))


@pair(vectors(2, 5, 8))
def attention_without_bias():
    x = keras.Input((5, 8))
    k = keras.Model(x, L.MultiHeadAttention(2, 4, use_bias=False)(x, x))
    return k, Own(lambda m, x: m.a(x, x, x)[0], a=nn.MultiheadAttention(8, 2, bias=False, batch_first=True))


@pair(lambda: (vectors(2, 5, 8)(), vectors(2, 7, 6)()))
def attention_across_with_other_widths():
    q, v = keras.Input((5, 8)), keras.Input((7, 6))
    k = keras.Model([q, v], L.MultiHeadAttention(2, 4)(q, v))
    a = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True)
    return k, Own(lambda m, q, v: m.a(q, v, v)[0], a=a)


def by_dense(count):
    def forward(m, x):
        q, k, v = split_heads(m.v(x), count), split_heads(m.q(x), count), split_heads(m.k(x), count)
        return m.out(join_heads(functional.scaled_dot_product_attention(q, k, v)))

    return forward


@pair(vectors(2, 5, 8))
def attention_by_dense_layers_with_misleading_names():
    x = keras.Input((5, 8))
    k = keras.Model(x, L.MultiHeadAttention(2, 4)(x, x))
    return k, Own(by_dense(2), **{name: nn.Linear(8, 8) for name in ("q", "k", "v", "out")})


def other_value(m, x):
    q, k, v = split_heads(m.q(x), 2), split_heads(m.k(x), 2), split_heads(m.v(x), 2)
    return m.out(join_heads(functional.scaled_dot_product_attention(q, k, v)))


# Keras 3.15 on JAX can't call it: it reshapes the values to the size of the keys.
@pair(vectors(2, 5, 8), backends=("tensorflow", "torch"))
def attention_with_another_value_size():
    x = keras.Input((5, 8))
    k = keras.Model(x, L.MultiHeadAttention(2, 4, value_dim=3, output_shape=5)(x, x))
    return k, Own(other_value, q=nn.Linear(8, 8), k=nn.Linear(8, 8), v=nn.Linear(8, 6), out=nn.Linear(6, 5))


def grouped(m, x):
    q, k, v = split_heads(m.q(x), 4), split_heads(m.k(x), 2), split_heads(m.v(x), 2)
    return m.out(join_heads(functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)))


@pair(vectors(2, 5, 8))
def attention_with_grouped_queries():
    x = keras.Input((5, 8))
    k = keras.Model(x, L.GroupQueryAttention(3, 4, 2)(x, x))
    return k, Own(grouped, q=nn.Linear(8, 12), k=nn.Linear(8, 6), v=nn.Linear(8, 6), out=nn.Linear(12, 8))


def additive(m, q, v):
    weights = m.score(torch.tanh(q[:, :, None] + v[:, None])).squeeze(-1).softmax(-1)
    return weights @ v


@pair(lambda: (vectors(2, 5, 8)(), vectors(2, 7, 8)()))
def attention_additive():
    q, v = keras.Input((5, 8)), keras.Input((7, 8))
    return keras.Model([q, v], L.AdditiveAttention()([q, v])), Own(additive, score=nn.Linear(8, 1, bias=False))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, q, v):
        return (self.scale * q @ v.transpose(1, 2)).softmax(-1) @ v


@pair(lambda: (vectors(2, 5, 8)(), vectors(2, 7, 8)()))
def attention_with_a_scale():
    q, v = keras.Input((5, 8)), keras.Input((7, 8))
    return keras.Model([q, v], L.Attention(use_scale=True)([q, v])), Scaled()


def keras_block(x, width, count):
    y = L.LayerNormalization(epsilon=1e-5)(x + L.MultiHeadAttention(count, width // count)(x, x))
    z = L.Dense(width)(L.Dense(2 * width, activation="relu")(y))
    return L.LayerNormalization(epsilon=1e-5)(y + z)


@pair(vectors(2, 5, 8))
def transformer_blocks():
    x = keras.Input((5, 8))
    k = keras.Model(x, keras_block(keras_block(x, 8, 2), 8, 2))
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    return k, nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class Gpt(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(11, 8), nn.Embedding(6, 8)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(8, 8) for name in ("q", "k", "v", "o", "f", "g")}) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(5))
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, x):
        y = self.wte(x) + self.wpe(torch.arange(x.shape[1]))
        for i, block in enumerate(self.blocks):
            z = self.norms[2 * i](y)
            q, k, v = (split_heads(block[name](z), 2) for name in ("q", "k", "v"))
            y = y + block["o"](join_heads(functional.scaled_dot_product_attention(q, k, v, is_causal=True)))
            y = y + block["g"](functional.gelu(block["f"](self.norms[2 * i + 1](y)), approximate="tanh"))
        return self.head(self.norms[-1](y))


class KerasGpt(keras.Model):
    def __init__(self):
        super().__init__()
        self.table, self.places = L.ReversibleEmbedding(11, 8), L.Embedding(6, 8)
        self.attention = [L.MultiHeadAttention(2, 4) for _ in range(2)]
        self.wide = [L.Dense(8, activation=lambda x: keras.activations.gelu(x, approximate=True)) for _ in range(2)]
        self.narrow = [L.Dense(8) for _ in range(2)]
        self.norms = [L.LayerNormalization(epsilon=1e-5) for _ in range(5)]

    def call(self, x):
        y = self.table(x) + self.places(keras.ops.arange(x.shape[1]))
        for i in range(2):
            z = self.norms[2 * i](y)
            y = y + self.attention[i](z, z, use_causal_mask=True)
            y = y + self.narrow[i](self.wide[i](self.norms[2 * i + 1](y)))
        return self.table(self.norms[-1](y), reverse=True)


@pair(tokens(11, 2, 6))
def a_language_model_with_a_tied_head():
    k = KerasGpt()
    k(tokens(11, 2, 6)())
    return k, Gpt()
