"""A hand-off to a twin that keeps the same weights in another shape or packing takes the optimizer's state along."""

from __future__ import annotations

import numpy as np
import pytest

import xweights as xw

torch = pytest.importorskip("torch")
nn = torch.nn


class Attention(nn.Module):
    """Fused projections, in blocks or by head, or separate ones, without biases: that of a key has no gradient."""

    def __init__(self, fused):
        super().__init__()
        self.fused = fused
        if fused:
            self.qkv = nn.Linear(8, 24, bias=False)
        else:
            self.query, self.key, self.value = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.out = nn.Linear(8, 8)

    def forward(self, x):
        n, length, _ = x.shape
        if self.fused == "by head":
            q, k, v = self.qkv(x).view(n, length, 2, 3, 4).permute(3, 0, 2, 1, 4)
        elif self.fused:
            q, k, v = self.qkv(x).view(n, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = (layer(x).view(n, length, 2, 4).transpose(1, 2) for layer in (self.query, self.key, self.value))
        y = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return self.out(y.transpose(1, 2).reshape(n, length, 8))


class Positions(nn.Module):
    """A table of positions, of which the first rows may be none."""

    def __init__(self, offset):
        super().__init__()
        self.offset, self.table, self.out = offset, nn.Embedding(10 + offset, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.out(x + self.table(torch.arange(x.shape[1]) + self.offset))


class Experts(nn.Module):
    """Two kernels in one array, or in a layer each."""

    def __init__(self, stacked):
        super().__init__()
        self.stacked = stacked
        if stacked:
            self.kernels = nn.Parameter(torch.randn(2, 8, 8))
        else:
            self.first, self.second = (nn.Linear(8, 8, bias=False) for _ in range(2))

    def forward(self, x):
        if self.stacked:
            return torch.tanh(x @ self.kernels[0]) @ self.kernels[1]
        return self.second(torch.tanh(self.first(x)))


PAIRS = {
    "three kernels as one": (lambda: Attention(""), lambda: Attention("in blocks")),
    "one kernel as three": (lambda: Attention("in blocks"), lambda: Attention("")),
    "one by head as three": (lambda: Attention("by head"), lambda: Attention("")),
    "rows before the first position": (lambda: Positions(0), lambda: Positions(2)),
    "a stack as two kernels": (lambda: Experts(stacked=True), lambda: Experts(stacked=False)),
    "two kernels as a stack": (lambda: Experts(stacked=False), lambda: Experts(stacked=True)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_momenta_follow_their_weights(name):
    make_source, make_target = PAIRS[name]
    torch.manual_seed(0)
    source, target = make_source(), make_target()
    optimizer = torch.optim.Adam(source.parameters(), 0.01)
    rng = np.random.default_rng(0)
    batches = [tuple(rng.normal(size=(2, 5, 8)).astype("float32") for _ in range(2)) for _ in range(5)]
    for x, y in batches[:3]:
        optimizer.zero_grad()
        nn.functional.mse_loss(source(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()
    report = xw.handoff((source, optimizer), (target, None), sample=batches[0][0])
    proof = xw.verify_handoff((source, optimizer), report.training, batches=batches[3:], loss="mse")
    assert proof.ok, proof
