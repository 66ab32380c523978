"""Programs of torch.export are opened with the layers, parameters and numbers of their original modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import xweights as xw

torch = pytest.importorskip("torch")
opening = pytest.importorskip("xweights_torch.pt2.open")
nn = torch.nn


class Wrapped(nn.Module):  # type: ignore[misc, name-defined]
    """A module whose layers are called one after the other; recurrent ones hand on their outputs."""

    def __init__(self, *layers: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
            x = x[0] if isinstance(x, tuple) else x
        return x


IMAGE, SEQUENCE, WORDS = (2, 4, 9, 9), (2, 5, 6), (2, 7)
LAYERS: dict[str, tuple[Callable[[], list[Any]], tuple[int, ...]]] = {
    "linear": (lambda: [nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2, bias=False)], SEQUENCE),
    "conv1d": (lambda: [nn.Conv1d(5, 4, 3, stride=2, padding=1, dilation=2)], SEQUENCE),
    "conv2d": (lambda: [nn.Conv2d(4, 8, (3, 2), padding="same", groups=2), nn.GELU("tanh")], IMAGE),
    "conv3d": (lambda: [nn.Conv3d(2, 3, 2, bias=False)], (1, 2, 4, 4, 4)),
    "transposed": (lambda: [nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), nn.SiLU()], IMAGE),
    "norms": (lambda: [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm([9, 9]), nn.RMSNorm(9)], IMAGE),
    "plain norms": (lambda: [nn.BatchNorm2d(4, affine=False), nn.LayerNorm(9, elementwise_affine=False)], IMAGE),
    "batch norm of vectors": (lambda: [nn.Linear(6, 4), nn.Flatten(0, 1), nn.BatchNorm1d(4, eps=1e-3)], SEQUENCE),
    "embedding": (lambda: [nn.Embedding(10, 6, padding_idx=0), nn.Linear(6, 2), nn.Softmax(-1)], WORDS),
    "prelu": (lambda: [nn.Conv2d(4, 3, 1), nn.PReLU(3), nn.LeakyReLU(0.3), nn.ELU(0.7)], IMAGE),
    "pooling": (lambda: [nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()], IMAGE),
    "lstm": (lambda: [nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True), nn.Linear(10, 2)], SEQUENCE),
    "gru": (lambda: [nn.GRU(6, 5, bias=False), nn.Dropout(0.5), nn.Tanh()], SEQUENCE),
    "rnn": (lambda: [nn.RNN(6, 5, nonlinearity="relu"), nn.RNN(5, 3), nn.Sigmoid()], SEQUENCE),
}


def sample(shape: tuple[int, ...]) -> Any:
    """Draw token ids for the shape of tokens, else numbers."""
    generator = torch.Generator().manual_seed(0)
    if shape == WORDS:
        return torch.randint(0, 10, shape, generator=generator)
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize("name", LAYERS)
def test_a_program_gets_the_layers_of_its_module_back(name: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    module = Wrapped(*make()).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    x = sample(shape)
    rebuilt = opening.restore_layers(torch.export.export(module, (x,)).module(check_guards=False)).eval()
    found = {path: repr(layer) for path, layer in rebuilt.named_modules()}
    for path, layer in module.layers.named_children():
        assert found[f"layers.{path}"] == repr(layer)
    assert torch.equal(rebuilt(x), module(x))
    assert set(rebuilt.state_dict()) == set(module.state_dict())
    if module.state_dict():
        assert xw.equal(rebuilt, module)


def test_a_layer_called_twice_is_one_layer_and_a_layer_never_called_is_kept() -> None:
    class Net(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.idle = nn.Linear(3, 3), nn.Linear(2, 2)

        def forward(self, x: Any) -> Any:
            return self.shared(torch.relu(self.shared(x)))

    net = Net().eval()
    x = torch.ones(2, 3)
    rebuilt = opening.restore_layers(torch.export.export(net, (x,)).module(check_guards=False))
    assert [type(module).__name__ for path, module in rebuilt.named_modules() if path == "shared"] == ["Linear"]
    assert torch.equal(rebuilt(x), net(x))
    assert set(rebuilt.state_dict()) == set(net.state_dict())


def test_an_operation_that_is_no_layer_stays_an_operation() -> None:
    class Net(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.ones(3, 3))
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))

        def forward(self, x: Any) -> Any:
            y = self.attention(x, x, x)[0]
            return nn.functional.linear(self.normed(y)[..., :3], self.kernel.tanh())

    net = Net().eval()
    x = torch.randn(2, 3, 4)
    rebuilt = opening.restore_layers(torch.export.export(net, (x,)).module(check_guards=False))
    assert torch.equal(rebuilt(x), net(x))
    assert set(rebuilt.state_dict()) == set(net.state_dict())


def test_states_passed_in_and_out_keep_their_positions() -> None:
    class Net(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LSTM(3, 4), nn.LSTM(4, 4)

        def forward(self, x: Any) -> Any:
            y, (h, c) = self.first(x)
            z, (last, cell) = self.second(y, (h, c * 2))
            return z, last - cell

    net = Net().eval()
    x = torch.randn(5, 2, 3)
    rebuilt = opening.restore_layers(torch.export.export(net, (x,)).module(check_guards=False))
    assert {type(module) for module in rebuilt.modules()} >= {nn.LSTM}
    for got, expected in zip(rebuilt(x), net(x), strict=True):
        assert torch.equal(got, expected)
