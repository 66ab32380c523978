"""Convolutions of every kind, flattened images, and vectors that become images."""

from __future__ import annotations

import keras
import torch
from torch import nn
from torch.nn import functional

from zoo.making import images, pair, vectors

L = keras.layers


def chain(shape, *layers):
    return keras.Sequential([keras.Input(shape), *layers])


class _One(nn.Module):
    def forward(self, x):
        return self._forward(self, x)


class _Two(nn.Module):
    def forward(self, x, y):
        return self._forward(self, x, y)


def Own(forward, **layers):  # noqa: N802 - it stands for a class
    """Build a torch module with layers by name and a forward that is a function of it."""
    module = (_One if forward.__code__.co_argcount == 2 else _Two)()
    module._forward = forward
    for name, layer in layers.items():
        setattr(module, name, layer)
    return module


@pair(vectors(2, 9, 4))
def conv1d():
    k = chain((9, 4), L.Conv1D(6, 3, activation="relu"), L.Conv1D(6, 3, padding="causal", dilation_rate=2))
    t = Own(
        lambda m, x: m.b(functional.pad(torch.relu(m.a(x)), (4, 0))),
        a=nn.Conv1d(4, 6, 3),
        b=nn.Conv1d(6, 6, 3, dilation=2),
    )
    return k, t


@pair(images())
def conv2d():
    k = chain((8, 8, 3), L.Conv2D(4, 3, padding="same", activation="relu"), L.Conv2D(4, (3, 2)))
    return k, nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, (3, 2)))


@pair(images(3))
def conv2d_squares():
    k = chain((8, 8, 3), L.Conv2D(3, 3), L.Conv2D(3, 3), L.Conv2D(3, 3))
    return k, nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))


@pair(vectors(2, 5, 6, 7, 2))
def conv3d():
    k = chain((5, 6, 7, 2), L.Conv3D(3, (2, 3, 2), activation="relu"), L.Conv3D(3, 2, use_bias=False))
    return k, nn.Sequential(nn.Conv3d(2, 3, (2, 3, 2)), nn.ReLU(), nn.Conv3d(3, 3, 2, bias=False))


@pair(images())
def conv_same_with_a_stride_pads_at_the_end():
    k = chain((8, 8, 3), L.Conv2D(4, 3, strides=2, padding="same"), L.Conv2D(4, 1))
    t = Own(
        lambda m, x: m.b(m.a(functional.pad(x, (0, 1, 0, 1)))), a=nn.Conv2d(3, 4, 3, stride=2), b=nn.Conv2d(4, 4, 1)
    )
    return k, t


@pair(images())
def padding_in_a_layer_of_its_own():
    k = chain((8, 8, 3), L.ZeroPadding2D(1), L.Conv2D(4, 3, strides=2), L.ReLU(), L.Conv2D(4, 1))
    return k, nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))


@pair(images())
def conv_dilated():
    return chain((8, 8, 3), L.Conv2D(3, 3, dilation_rate=2)), nn.Conv2d(3, 3, 3, dilation=2)


@pair(images(4))
def conv_in_groups():
    k = chain((8, 8, 4), L.Conv2D(6, 3, groups=2), L.Conv2D(6, 1))
    return k, nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(6, 6, 1))


@pair(images(4))
def depthwise():
    k = chain((8, 8, 4), L.DepthwiseConv2D(3), L.Conv2D(4, 1))
    return k, nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1))


@pair(images(3))
def depthwise_with_a_multiplier():
    k = chain((8, 8, 3), L.DepthwiseConv2D(3, depth_multiplier=3, padding="same"))
    return k, nn.Conv2d(3, 9, 3, groups=3, padding=1)


@pair(vectors(2, 9, 4))
def depthwise_1d():
    return chain((9, 4), L.DepthwiseConv1D(3, depth_multiplier=2)), nn.Conv1d(4, 8, 3, groups=4)


@pair(images(3))
def separable():
    k = chain((8, 8, 3), L.SeparableConv2D(5, 3, depth_multiplier=2, activation="relu"), L.Conv2D(5, 1))
    deep, point = nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.Conv2d(6, 5, 1)
    return k, nn.Sequential(nn.Sequential(deep, point), nn.ReLU(), nn.Conv2d(5, 5, 1))


@pair(vectors(2, 9, 4))
def separable_1d():
    k = chain((9, 4), L.SeparableConv1D(5, 3))
    return k, nn.Sequential(nn.Conv1d(4, 4, 3, groups=4, bias=False), nn.Conv1d(4, 5, 1))


@pair(images(3, 5))
def conv_transpose():
    k = chain((5, 5, 3), L.Conv2DTranspose(3, 3, strides=2, activation="relu"), L.Conv2DTranspose(3, (2, 3)))
    return k, nn.Sequential(nn.ConvTranspose2d(3, 3, 3, 2), nn.ReLU(), nn.ConvTranspose2d(3, 3, (2, 3)))


@pair(vectors(2, 5, 3))
def conv_transpose_1d():
    return chain((5, 3), L.Conv1DTranspose(4, 3, strides=2)), nn.ConvTranspose1d(3, 4, 3, 2)


@pair(vectors(2, 3, 4, 3, 2))
def conv_transpose_3d():
    return chain((3, 4, 3, 2), L.Conv3DTranspose(3, 2, strides=2)), nn.ConvTranspose3d(2, 3, 2, 2)


@pair(images(3, 5))
def conv_transpose_same_is_cropped_at_the_end():
    k = chain((5, 5, 3), L.Conv2DTranspose(4, 3, strides=2, padding="same"), L.Conv2D(4, 1))
    t = Own(lambda m, x: m.b(m.a(x)[:, :, :-1, :-1]), a=nn.ConvTranspose2d(3, 4, 3, 2), b=nn.Conv2d(4, 4, 1))
    return k, t


@pair(images(3, 5))
def conv_transpose_same_with_an_even_kernel():
    k = chain((5, 5, 3), L.Conv2DTranspose(4, 4, strides=2, padding="same"))
    return k, nn.ConvTranspose2d(3, 4, 4, 2, padding=1)


@pair(images(4, 5))
def conv_transpose_in_groups_is_branches():
    x = keras.Input((5, 5, 4))
    halves = [L.Conv2DTranspose(2, 3)(x[..., :2]), L.Conv2DTranspose(2, 3)(x[..., 2:])]
    return keras.Model(x, L.Concatenate()(halves)), nn.ConvTranspose2d(4, 4, 3, groups=2)


@pair(images(3))
def flattened():
    k = chain((8, 8, 3), L.Conv2D(4, 3, activation="relu"), L.MaxPooling2D(2), L.Flatten(), L.Dense(5), L.Dense(5))
    t = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5), nn.Linear(5, 5)]
    return k, nn.Sequential(*t)


@pair(images(3))
def flattened_with_norms_between():
    x = keras.Input((8, 8, 3))
    y = L.Flatten()(L.Conv2D(4, 5)(x))
    y = L.BatchNormalization(epsilon=1e-5)(y)
    y = L.PReLU()(y)
    y = L.LayerNormalization(epsilon=1e-5)(y)
    k = keras.Model(x, L.Dense(5)(y))
    t = [nn.Conv2d(3, 4, 5), nn.Flatten(), nn.BatchNorm1d(64), nn.PReLU(64), nn.LayerNorm(64), nn.Linear(64, 5)]
    return k, nn.Sequential(*t)


@pair(vectors(3, 9, 4))
def flattened_sequence():
    k = chain((9, 4), L.Conv1D(6, 3, activation="relu"), L.Flatten(), L.Dense(4))
    return k, nn.Sequential(nn.Conv1d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(42, 4))


def _permute(m, x):
    return m.b(m.a(x).permute(0, 2, 3, 1).flatten(1))


@pair(images(3))
def the_twin_permutes_by_itself():
    k = chain((8, 8, 3), L.Conv2D(4, 5), L.Flatten(), L.Dense(5))
    return k, Own(_permute, a=nn.Conv2d(3, 4, 5), b=nn.Linear(64, 5))


@pair(images(3))
def pooled_needs_no_permutation():
    k = chain((8, 8, 3), L.Conv2D(4, 3), L.GlobalAveragePooling2D(), L.Dense(4))
    return k, nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))


def _join(m, x):
    y = m.a(x)
    return m.c(torch.cat([m.b(y.mean((2, 3))), y.flatten(1)], 1))


@pair(images(3))
def one_block_of_a_concatenation_is_flattened():
    x = keras.Input((8, 8, 3))
    y = L.Conv2D(4, 5)(x)
    k = keras.Model(x, L.Dense(5)(L.Concatenate()([L.Dense(6)(L.GlobalAveragePooling2D()(y)), L.Flatten()(y)])))
    return k, Own(_join, a=nn.Conv2d(3, 4, 5), b=nn.Linear(4, 6), c=nn.Linear(70, 5))


def _grow(m, x):
    return m.c(torch.relu(m.a(x)).reshape(-1, 4, 3, 3))


@pair(vectors(3, 5))
def a_vector_becomes_an_image():
    k = chain((5,), L.Dense(36, activation="relu"), L.Reshape((3, 3, 4)), L.Conv2DTranspose(2, 3))
    return k, Own(_grow, a=nn.Linear(5, 36), c=nn.ConvTranspose2d(4, 2, 3))


def _autoencoder(m, x):
    y = m.up(m.narrow(m.down(x).flatten(1)))
    return m.out(m.norm(y).reshape(-1, 4, 4, 4))


@pair(images(3))
def an_autoencoder():
    x = keras.Input((8, 8, 3))
    y = L.Dense(64)(L.Dense(7)(L.Flatten()(L.Conv2D(4, 5)(x))))
    y = L.Reshape((4, 4, 4))(L.BatchNormalization(epsilon=1e-5)(y))
    k = keras.Model(x, L.Conv2DTranspose(3, 5)(y))
    narrow, up = nn.Linear(64, 7), nn.Linear(7, 64)
    ends = {"down": nn.Conv2d(3, 4, 5), "out": nn.ConvTranspose2d(4, 3, 5)}
    return k, Own(_autoencoder, narrow=narrow, up=up, norm=nn.BatchNorm1d(64), **ends)


def _residual(m, x):
    y = m.norm_a(m.conv_a(x))
    y = m.norm_b(m.conv_b(torch.relu(y)))
    return torch.relu(y + m.norm_s(m.shortcut(x)))


@pair(images(4))
def the_shortcut_comes_first_in_one_and_last_in_the_other():
    x = keras.Input((8, 8, 4))
    shortcut = L.BatchNormalization(epsilon=1e-5)(L.Conv2D(4, 3, padding="same")(x))
    y = L.ReLU()(L.BatchNormalization(epsilon=1e-5)(L.Conv2D(4, 3, padding="same")(x)))
    y = L.BatchNormalization(epsilon=1e-5)(L.Conv2D(4, 3, padding="same")(y))
    k = keras.Model(x, L.ReLU()(L.Add()([shortcut, y])))
    convs = {name: nn.Conv2d(4, 4, 3, padding=1) for name in ("conv_a", "conv_b", "shortcut")}
    norms = {name: nn.BatchNorm2d(4) for name in ("norm_a", "norm_b", "norm_s")}
    return k, Own(_residual, **convs, **norms)


def _by_time(m, x):
    b, t = x.shape[:2]
    return m.a(x.reshape(b * t, *x.shape[2:])).reshape(b, t, 4, 6, 6)


@pair(
    vectors(2, 3, 8, 8, 3),
    to_torch=lambda x: x.transpose(0, 1, 4, 2, 3),
    to_keras=lambda x: x.transpose(0, 1, 3, 4, 2),
    options={"outputs": "frames"},
    backends=("tensorflow", "torch"),
)
def convolution_for_each_frame():
    return chain((3, 8, 8, 3), L.TimeDistributed(L.Conv2D(4, 3))), Own(_by_time, a=nn.Conv2d(3, 4, 3))


def _conv_lstm(m, x):
    h = c = torch.zeros(x.shape[0], 4, *x.shape[3:], dtype=x.dtype)
    for step in range(x.shape[1]):
        z = m.x(x[:, step]) + m.h(h)
        i, f, g, o = z.chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
    return h


@pair(
    vectors(2, 3, 6, 6, 2), to_torch=lambda x: x.transpose(0, 1, 4, 2, 3), to_keras=lambda x: x.transpose(0, 1, 3, 4, 2)
)
def conv_lstm_is_two_convolutions():
    k = chain((3, 6, 6, 2), L.ConvLSTM2D(4, 3, padding="same"))
    return k, Own(_conv_lstm, x=nn.Conv2d(2, 16, 3, padding=1), h=nn.Conv2d(4, 16, 3, padding=1, bias=False))
