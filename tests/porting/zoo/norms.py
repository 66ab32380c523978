"""Norms and PReLU, over one axis and over several, with and without their scale."""

from __future__ import annotations

import keras
import torch
from torch import nn

from zoo.conv import Own, chain
from zoo.making import images, pair, vectors

L = keras.layers


@pair(images(4))
def batch_norm():
    k = chain(
        (8, 8, 4), L.BatchNormalization(epsilon=1e-3, momentum=0.9), L.Conv2D(4, 1), L.BatchNormalization(epsilon=1e-5)
    )
    return k, nn.Sequential(nn.BatchNorm2d(4, eps=1e-3), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))


@pair(vectors(5, 6))
def batch_norm_of_vectors():
    return chain((6,), L.BatchNormalization(epsilon=1e-5), L.Dense(6)), nn.Sequential(
        nn.BatchNorm1d(6), nn.Linear(6, 6)
    )


@pair(vectors(2, 7, 6))
def batch_norm_of_sequences():
    k = chain((7, 6), L.Conv1D(4, 3), L.BatchNormalization(epsilon=1e-5))
    return k, nn.Sequential(nn.Conv1d(6, 4, 3), nn.BatchNorm1d(4))


@pair(images(4), directions=("to_torch",))
def batch_norm_without_scale():
    k = chain((8, 8, 4), L.BatchNormalization(epsilon=1e-5, scale=False))
    return k, nn.BatchNorm2d(4)


@pair(images(4), directions=("to_torch",))
def batch_norm_without_center():
    return chain((8, 8, 4), L.BatchNormalization(epsilon=1e-5, center=False)), nn.BatchNorm2d(4)


@pair(images(4))
def batch_norm_without_either():
    k = chain((8, 8, 4), L.BatchNormalization(epsilon=1e-5, center=False, scale=False))
    return k, nn.BatchNorm2d(4, affine=False)


@pair(vectors(3, 5, 6))
def layer_norm():
    k = chain((5, 6), L.LayerNormalization(epsilon=1e-5), L.Dense(6), L.LayerNormalization(epsilon=1e-6))
    return k, nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.LayerNorm(6, eps=1e-6))


@pair(images(4, 5))
def layer_norm_over_an_image():
    k = chain((5, 5, 4), L.LayerNormalization(axis=(1, 2, 3), epsilon=1e-5), L.Conv2D(4, 1))
    return k, nn.Sequential(nn.LayerNorm((4, 5, 5)), nn.Conv2d(4, 4, 1))


@pair(images(6))
def group_norm():
    k = chain((8, 8, 6), L.GroupNormalization(3, epsilon=1e-5), L.Conv2D(6, 1))
    return k, nn.Sequential(nn.GroupNorm(3, 6), nn.Conv2d(6, 6, 1))


@pair(images(6))
def instance_norm():
    k = chain((8, 8, 6), L.GroupNormalization(-1, epsilon=1e-5), L.Conv2D(6, 1))
    return k, nn.Sequential(nn.InstanceNorm2d(6, affine=True), nn.Conv2d(6, 6, 1))


@pair(vectors(3, 5, 6))
def rms_norm():
    k = chain((5, 6), L.RMSNormalization(epsilon=1e-6), L.Dense(6))
    return k, nn.Sequential(nn.RMSNorm(6, eps=1e-6), nn.Linear(6, 6))


@pair(images(4))
def prelu_for_each_channel():
    k = chain((8, 8, 4), L.PReLU(shared_axes=[1, 2]), L.Conv2D(4, 1))
    return k, nn.Sequential(nn.PReLU(4), nn.Conv2d(4, 4, 1))


@pair(images(4))
def prelu_for_all():
    k = chain((8, 8, 4), L.PReLU(shared_axes=[1, 2, 3]), L.Conv2D(4, 1))
    return k, nn.Sequential(nn.PReLU(), nn.Conv2d(4, 4, 1))


class Slopes(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(shape))

    def forward(self, x):
        return torch.relu(x) - self.alpha * torch.relu(-x)


@pair(images(4, 5))
def prelu_for_each_element():
    k = chain((5, 5, 4), L.PReLU(), L.Conv2D(4, 1))
    return k, nn.Sequential(Slopes(4, 5, 5), nn.Conv2d(4, 4, 1))


class Standard(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, x):
        return (x - self.mean) / self.variance.sqrt()


@pair(vectors(5, 6))
def normalization_with_a_module_of_ones_own():
    norm = L.Normalization()
    k = chain((6,), norm, L.Dense(4))
    return k, nn.Sequential(Standard(6), nn.Linear(6, 4))


__all__ = ["Own"]
