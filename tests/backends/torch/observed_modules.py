"""Modules that compute by a forward of their own, and a watcher that recomputes what they were seen to do."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from xweights.edit.read import neutral_view
from xweights_torch.porting.observed import Operation
from xweights_torch.porting.port import TorchPorting

porting = TorchPorting()


class NormAct(nn.BatchNorm2d):
    """A norm with an activation in it."""

    def forward(self, x):
        y = functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps
        )
        return functional.relu(y)


class SameConv(nn.Conv2d):
    """A convolution that pads itself."""

    def forward(self, x):
        padded = functional.pad(x, (0, 1, 0, 1))
        return functional.conv2d(padded, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class StandardizedConv(nn.Conv2d):
    """A convolution whose kernel is normalized at every call."""

    def forward(self, x):
        weight = functional.batch_norm(
            self.weight.reshape(1, len(self.weight), -1), None, None, training=True, eps=1e-6
        )
        return functional.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding)


class ImageNorm(nn.LayerNorm):
    """A layer norm over the channels of images."""

    def forward(self, x):
        y = functional.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return y.permute(0, 3, 1, 2)


class HandNorm(nn.Module):
    """A norm that is written by hand, with the names and casts of many."""

    def __init__(self, width, *, offset=0, centered=False):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = 1e-3
        self.offset = offset
        self.bias = nn.Parameter(torch.zeros(width)) if centered else None

    def forward(self, x):
        given = x.dtype
        x = x.to(torch.float32)
        if self.bias is not None:
            x = x - x.mean(-1, keepdim=True)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        weight = 1.0 + self.weight.float() if self.offset else self.weight
        y = weight * x.to(given)
        return y if self.bias is None else y + self.bias


class HandImageNorm(nn.Module):
    """A layer norm over the channels of images, by arithmetic."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.eps = 1e-3

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class FrozenNorm(nn.Module):
    """A batch norm by arithmetic, of buffers."""

    def __init__(self, width):
        super().__init__()
        for name, value in (("weight", 1.1), ("bias", 0.2), ("running_mean", 0.3), ("running_var", 0.9)):
            self.register_buffer(name, torch.full((width,), value))
        self.eps = 1e-3

    def forward(self, x):
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


class Images(nn.Module):
    """Layers of images that are subclasses, and a scale of the model's own."""

    def __init__(self):
        super().__init__()
        self.stem, self.act = SameConv(3, 8, 3, 2), NormAct(8)
        self.norm, self.frozen = ImageNorm(8), FrozenNorm(8)
        self.mix = StandardizedConv(8, 8, 1)
        self.gamma = nn.Parameter(torch.ones(8, 1, 1))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.mix(self.frozen(self.norm(self.act(self.stem(x))))) * self.gamma
        x = functional.relu(x, inplace=True)
        return self.head(x.mean((2, 3)))


class Tokens(nn.Module):
    """A small transformer with tokens, position tables and norms by hand."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.zeros(1, 12, 8))
        self.token_type = nn.Embedding(2, 8)
        self.first, self.second = HandNorm(8), HandNorm(8, offset=1)
        self.third = HandNorm(8, centered=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.register_buffer("index", torch.arange(12).flip(0))
        self.register_buffer("positions", torch.linspace(0, 1, 12))
        self.bias_table = nn.Parameter(torch.zeros(12, 8))

    def forward(self, ids):
        x = self.table(ids) * 8**0.5
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        count = x.shape[1]
        x = x + self.pos_embed[:, 2 : count + 2] + self.token_type.weight[0]
        x = x + self.bias_table[self.index[:count]] + self.positions[:count, None]
        q = self.first(x).transpose(0, 1)
        mixed, _ = functional.multi_head_attention_forward(
            q, q, q, 8, 2, self.attention.in_proj_weight, self.attention.in_proj_bias, None, None, False, 0.0,
            self.attention.out_proj.weight, self.attention.out_proj.bias,
        )  # fmt: skip
        x = self.third(self.second(x + mixed.transpose(0, 1)))
        return functional.linear(x, self.table.weight)


class Matrices(nn.Module):
    """Products with parameters under many names, and stacks of matrices."""

    def __init__(self):
        super().__init__()
        sizes = {"w": (6, 5), "b": (5,), "t": (4, 5), "heads": (2, 2, 4), "experts": (3, 8, 4), "shift": (3, 4)}
        for name, shape in sizes.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape)))
        self.temperature = nn.Parameter(torch.zeros(()))
        self.idle = nn.Parameter(torch.zeros(3, 2))

    def forward(self, x):
        y = torch.addmm(self.b, x, self.w)
        y = y @ self.t.t()
        z = torch.einsum("bi,ijk->bjk", y[:, :2], self.heads).flatten(1)
        z = torch.bmm(z.expand(3, -1, -1).contiguous(), self.experts) + self.shift[:, None]
        return z.sum(0) * self.temperature.exp()


class Experts(nn.Module):
    """Experts in one array, of which the sample reaches some."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.zeros(4, 6, 5))
        self.shift = nn.Parameter(torch.zeros(4, 6))

    def forward(self, x):
        return sum(functional.linear(x, self.up[index], self.shift[index]) for index in torch.tensor([2, 0]))


class Checker:
    """A watcher that recomputes every operation from the views of its record, and puts its own output in place."""

    def __init__(self):
        self.entered, self.open, self.count = [], [], 0

    def enter(self, record, inputs):
        self.entered.append(record)
        self.open.append((record, {part: None if one is None else np.array(one) for part, one in inputs.items()}))

    def leave(self, record, outputs):
        at = max(place for place, (one, _) in enumerate(self.open) if one is record)
        _, inputs = self.open.pop(at)
        if not isinstance(record.layer, Operation) or record.kind == "rows" or record.attributes.get("computed"):
            return None
        expected = recompute(record, torch.from_numpy(inputs[""])).numpy()
        assert expected.shape == outputs[""].shape, record
        scale = max(float(np.abs(expected).max()), 1e-6)
        np.testing.assert_allclose(
            outputs[""] / scale, expected / scale, atol=2e-5, err_msg=f"{record.kind} {record.path}"
        )
        self.count += 1
        return expected


def recompute(record, x):
    """Return the output of an operation, computed from the views of its parameters."""
    arrays = {role: record.views[role](neutral_view(one)) for role, one in record.parameters.items()}
    own = {role: torch.from_numpy(np.ascontiguousarray(one)) for role, one in arrays.items()}
    settings = record.attributes
    gamma, beta, eps = own.get("gamma"), own.get("beta", 0.0), settings.get("eps")
    if gamma is not None:
        gamma = gamma + settings.get("offset", 0)
    if record.kind == "dense":
        return x @ own["kernel"] + own.get("bias", 0.0)
    if record.kind == "embedding":
        return own["embeddings"][x.long()]
    if record.kind == "multiply":
        return gamma * x + beta
    if record.kind == "rms_norm":
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * gamma
    if record.kind == "layer_norm":
        return functional.layer_norm(x, x.shape[-1:], gamma, own.get("beta"), eps)
    if record.kind == "batch_norm":
        return functional.batch_norm(
            x, own["moving_mean"], own["moving_variance"], gamma, own.get("beta"), False, 0, eps
        )
    assert record.kind == "conv", record.kind
    space = own["kernel"].dim() - 2
    kernel = own["kernel"].permute(space + 1, space, *range(space))
    rest = settings["strides"], settings["padding"], settings["dilation"], settings["groups"]
    compute = (functional.conv1d, functional.conv2d, functional.conv3d)[space - 1]
    return compute(x.movedim(-1, 1), kernel, own.get("bias"), *rest).movedim(1, -1)


def fill(model, seed=0):
    """Give a model random weights, and return it in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(torch.randn(one.shape, generator=generator) * 0.2)
    return model.eval()
