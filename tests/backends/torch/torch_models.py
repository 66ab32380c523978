"""A torch model with nested modules and buffers, and its parameters as the backend lists them."""

from __future__ import annotations

import torch
from torch import nn

from xweights_torch import backend
from xweights_torch.adapter import ModuleAdapter


def parameters_of(module):
    return list(backend.adapter(module).parameters(module))


def by_name(module):
    return {p.name: p for p in parameters_of(module)}


def names(module):
    return [p.name for p in parameters_of(module)]


def describe(p):
    return (
        p.name, p.native_name, p.role, p.layer, p.gates, p.aliases, p.layout, p.dtype, p.hidden, p.trainable,
        p.identity(),
    )  # fmt: skip


def uncached(module):
    return [describe(p) for p in ModuleAdapter().parameters(module)]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.norm(self.dense(x)) * self.scale


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(3, 2)
        self.register_buffer("table", torch.zeros(2))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


BLOCK = ["scale", "dense/kernel", "dense/bias", "norm/gamma", "norm/beta", "norm/moving_mean", "norm/moving_variance",
         "norm/num_batches_tracked"]  # fmt: skip
MODEL = ["table", "scratch", *[f"blocks/{i}/{name}" for i in range(2) for name in BLOCK], "head/kernel", "head/bias"]
