"""Layers that compute with variables of their own, as tutorials write them."""

from __future__ import annotations

import keras
from keras import ops

L = keras.layers


class OwnRMSNorm(L.Layer):
    def __init__(self, epsilon=1e-6, offset=0.0, **options):
        super().__init__(**options)
        self.epsilon, self.offset = epsilon, offset

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")
        self.built = True

    def call(self, x):
        mean = ops.mean(ops.square(x), -1, keepdims=True)
        return x * ops.rsqrt(mean + self.epsilon) * (self.offset + self.scale)


class OwnLayerNorm(L.Layer):
    def __init__(self, eps=1e-3, **options):
        super().__init__(**options)
        self.eps = eps

    def build(self, shape):
        self.g = self.add_weight(shape=(shape[-1],), name="g")
        self.b = self.add_weight(shape=(shape[-1],), name="b")
        self.built = True

    def call(self, x):
        mean, variance = ops.mean(x, -1, keepdims=True), ops.var(x, -1, keepdims=True)
        return (x - mean) / ops.sqrt(variance + self.eps) * self.g + self.b


class LayerScale(L.Layer):
    def build(self, shape):
        self.gamma = self.add_weight(shape=(shape[-1],), name="gamma")
        self.built = True

    def call(self, x):
        return x * self.gamma

    def compute_output_shape(self, shape):
        return shape


class OwnDense(L.Layer):
    def __init__(self, units, rectify=False, **options):
        super().__init__(**options)
        self.units, self.rectify = units, rectify

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], self.units), name="w")
        self.b = self.add_weight(shape=(self.units,), name="b")
        self.built = True

    def call(self, x):
        y = ops.matmul(x, self.w) + self.b
        return ops.relu(y) if self.rectify else y


class TurnedDense(L.Layer):
    """A product with the transposed kernel, of an array that nobody sees."""

    def build(self, shape):
        self.w = self.add_weight(shape=(3, shape[-1]), name="w")
        self.built = True

    def call(self, x):
        return ops.matmul(x * x, ops.transpose(self.w))


class Heads(L.Layer):
    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 2, 4), name="w")
        self.built = True

    def call(self, x):
        return ops.einsum("btd,dhk->bthk", x, self.w)


class Positions(L.Layer):
    def build(self, shape):
        self.table = self.add_weight(shape=(16, shape[-1]), name="table")
        self.built = True

    def call(self, x):
        return x + self.table[2 : 2 + x.shape[1]]


class OwnEmbedding(L.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.table = self.add_weight(shape=(20, 6), name="table")

    def call(self, ids):
        return ops.matmul(ops.one_hot(ids, 20), self.table * 6**0.5)


class RelativeBias(L.Layer):
    def build(self, shape):
        self.table = self.add_weight(shape=(9, 2), name="table")
        self.built = True

    def call(self, x):
        places = ops.arange(5)
        bias = ops.take(self.table, places[:, None] - places[None, :] + 4, axis=0)
        scores = ops.einsum("bqhd,bkhd->bhqk", x, x) + ops.transpose(bias, (2, 0, 1))
        return ops.einsum("bhqk,bkhd->bqhd", ops.softmax(scores), x)


class HiddenBias(RelativeBias):
    """The same lookup, by other means than ``take``."""

    def call(self, x):
        places = ops.arange(5)
        bias = ops.matmul(ops.one_hot(places[:, None] - places[None, :] + 4, 9), self.table)
        scores = ops.einsum("bqhd,bkhd->bhqk", x, x) + ops.transpose(bias, (2, 0, 1))
        return ops.einsum("bhqk,bkhd->bqhd", ops.softmax(scores), x)


class OwnPReLU(L.Layer):
    def build(self, shape):
        self.slope = self.add_weight(shape=(shape[-1],), name="slope")
        self.built = True

    def call(self, x):
        return ops.relu(x) - self.slope * ops.relu(-x)


class OwnConv(L.Layer):
    def build(self, shape):
        self.k = self.add_weight(shape=(3, 3, shape[-1], 5), name="k")
        self.b = self.add_weight(shape=(5,), name="b")
        self.built = True

    def call(self, x):
        return ops.conv(x, self.k, strides=2, padding="same", data_format="channels_last") + self.b


class OwnBatchNorm(L.Layer):
    epsilon = 1e-3

    def build(self, shape):
        for name in ("gamma", "beta", "mean", "variance"):
            trainable = name in ("gamma", "beta")
            setattr(self, name, self.add_weight(shape=(shape[-1],), name=name, trainable=trainable, initializer="ones"))
        self.built = True

    def call(self, x):
        return self.gamma * (x - self.mean) / ops.sqrt(self.variance + self.epsilon) + self.beta


class ActNorm(L.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(1, 1, shape[-1]), name="scale")
        self.shift = self.add_weight(shape=(1, 1, shape[-1]), name="shift")
        self.built = True

    def call(self, x):
        return (x + self.shift) * self.scale


class NormAndActivation(L.BatchNormalization):
    def call(self, x, training=None):
        return ops.relu(super().call(x, training=training))


class ScaledEmbedding(L.Embedding):
    def call(self, ids):
        return super().call(ids) * 3.0


class ScaledDense(L.Dense):
    def call(self, x):
        return ops.matmul(x, self.kernel * 0.5) + self.bias


class NamedDense(L.Dense):
    def call(self, x):
        return super().call(x)


class Temperature(L.Layer):
    """A use that no kind describes."""

    def build(self, shape):
        self.log = self.add_weight(shape=(shape[-1],), name="log")
        self.built = True

    def call(self, x):
        return x * ops.exp(self.log)


class LowRank(L.Layer):
    """A product of two kernels, of which the second may be zero."""

    def build(self, shape):
        self.first = self.add_weight(shape=(shape[-1], 2), name="first")
        self.second = self.add_weight(shape=(2, shape[-1]), name="second", initializer="zeros")
        self.built = True

    def call(self, x):
        return x + ops.matmul(ops.matmul(x, self.first), self.second)


class Block(L.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.wide, self.narrow = L.Dense(8, activation="gelu"), L.Dense(6)

    def build(self, shape):
        self.gamma = self.add_weight(shape=(6,), name="gamma")
        self.wide.build(shape)
        self.narrow.build((*shape[:-1], 8))
        self.built = True

    def call(self, x):
        return x + self.gamma * self.narrow(self.wide(x))


class VisionTransformer(keras.Model):
    def __init__(self):
        super().__init__()
        self.patch = L.Conv2D(6, 4, 4, data_format="channels_last")
        self.block, self.norm, self.head = Block(), OwnLayerNorm(), L.Dense(3)

    def build(self, shape):
        self.cls = self.add_weight(shape=(1, 1, 6), name="cls")
        self.pos = self.add_weight(shape=(1, 5, 6), name="pos")
        self.mask_token = self.add_weight(shape=(3,), name="mask_token")
        self.sine = self.add_weight(shape=(5, 1), name="sine", trainable=False, initializer=_make_sine)
        self.built = True

    def call(self, x):
        x = ops.reshape(self.patch(x), (-1, 4, 6))
        token = ops.broadcast_to(self.cls, (ops.shape(x)[0], 1, 6))
        x = ops.concatenate([token, x], 1) + self.pos + self.sine
        return self.head(self.norm(self.block(x))[:, 0])

    def get_config(self):
        return {}


def _make_sine(shape, dtype=None):
    return ops.sin(ops.reshape(ops.arange(5, dtype="float32"), shape))


class Names(keras.Model):
    """A model that takes its inputs by name."""

    def __init__(self):
        super().__init__()
        self.table, self.head = L.Embedding(20, 4), L.Dense(3)

    def call(self, token_ids, padding_mask=None):
        return self.head(self.table(token_ids) * ops.cast(padding_mask, "float32")[..., None])


class OneDict(Names):
    """A model that takes them as one dict."""

    def call(self, inputs):
        return super().call(inputs["token_ids"], inputs["padding_mask"])
