"""Activations that a sample doesn't show, because nothing that goes into them is below zero."""

import numpy as np
import pytest

import xweights as xw

torch = pytest.importorskip("torch", reason="ports are between Keras and torch")
keras = pytest.importorskip("keras", reason="ports are between Keras and torch")
L, nn = keras.layers, torch.nn


def positive(*shape):
    return np.random.default_rng(0).uniform(0.1, 1, shape).astype("float32")


def make_positive(model):
    """Let every layer put out numbers above zero alone."""
    for place, p in enumerate(model.parameters() if isinstance(model, nn.Module) else model.weights):
        values = np.random.default_rng(place).uniform(0.1, 1, tuple(p.shape)).astype("float32")
        if isinstance(p, nn.Parameter):
            p.data = torch.from_numpy(values)
        else:
            p.assign(values)
    return model


def torch_net(*between):
    return nn.Sequential(nn.Linear(3, 4), *between, nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def keras_net(activation):
    layers = [L.Dense(4, activation=activation), L.Dense(4, activation="relu"), L.Dense(2)]
    return keras.Sequential([keras.Input((3,)), *layers])


@pytest.mark.parametrize("one_side", ["source", "target"])
def test_a_rectifier_on_one_side_that_the_sample_doesnt_show_is_refused(one_side):
    nets = [torch_net(nn.ReLU()), torch_net()]
    source, target = nets if one_side == "source" else nets[::-1]
    make_positive(source)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(xw.PortError, match="'0' puts out nothing below zero with this sample"):
        xw.port(source, target, sample=positive(5, 3))
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("to", ["torch", "keras"])
def test_an_activation_inside_the_layer_on_one_side_is_no_difference(to, there):
    models = [keras_net("relu"), torch_net(*[nn.ReLU()] * there)]
    source, target = models if to == "torch" else models[::-1]
    make_positive(source)
    if there:
        assert xw.port(source, target, sample=positive(5, 3)).ok
    else:
        with pytest.raises(xw.PortError, match="puts out nothing below zero"):
            xw.port(source, target, sample=positive(5, 3))


def test_layers_that_are_shared_copied_or_zero_are_ported_as_before():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.last(self.first(torch.relu(self.first(x))))

    x = keras.Input((3,))
    y = L.Dense(3)(L.Dense(3, activation="relu")(x))
    copied = keras.Model(x, L.Dense(2)(y))
    source = make_positive(Shared())
    assert xw.port(source, copied, sample=positive(5, 3)).ok
    with torch.no_grad():
        source.last.weight.zero_()
        source.last.bias.zero_()
    assert xw.port(source, Shared(), sample=positive(5, 3)).ok


def test_a_root_behind_a_layer_that_is_never_negative_is_no_difference():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.last(torch.sqrt(self.first(x)))

    assert xw.port(make_positive(Root()), Root(), sample=positive(5, 3)).ok
