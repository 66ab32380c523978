"""Ports of public pairs are right or refused, never silently wrong, whatever misleads them; a night's work."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

pytest.importorskip("torch", reason="pairs are of Keras and torch")
pytest.importorskip("keras", reason="pairs are of Keras and torch")

import keras
from pairs import making
from pairs.corpus import PAIRS
from pairs.hub import SMALL, hub, text

import xweights as xw

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow",
        reason="the backend of Keras changes no name and no shape: once is enough",
    ),
]
POSSIBLE = [(name, way) for name, pair in PAIRS.items() if not pair.different for way in pair.directions]


def build(name, direction):
    for package in PAIRS[name].needs:
        pytest.importorskip(package, reason="its models are public ones")
    return filled(PAIRS[name].build(), direction)


def filled(twins, direction):
    making.randomize_keras(twins.keras, 11 if direction == "to_torch" else 23)
    making.randomize_torch(twins.torch, 23 if direction == "to_torch" else 11)
    models = (twins.keras, twins.torch)
    return twins, *(models if direction == "to_torch" else models[::-1])


def scramble_names(model, module, seed):
    """Give the Keras layers the names of torch modules at random: each name is wrong."""
    random = np.random.default_rng(seed)
    layers = [layer for layer in model._flatten_layers(include_self=False) if layer.weights]
    names = [name.replace(".", "_") for name, m in module.named_modules() if name and list(m.parameters(recurse=False))]
    for number, layer in enumerate(layers):
        layer.name = f"{random.choice(names)}_{number}"


def port_silently(twins, source, target, direction, **arguments):
    """Port, and check by other means that it is right, or that nothing was changed."""
    before = making.weights_of(target)
    known = inspect.signature(xw.port).parameters
    for more in twins.attempts:
        try:
            xw.port(source, target, **arguments, **{key: value for key, value in more.items() if key in known})
        except xw.errors.XweightsError:
            after = making.weights_of(target)
            assert all(np.array_equal(before[n], after[n], equal_nan=before[n].dtype.kind == "f") for n in before)
        else:
            assert max(making.distances(twins)) < making.CLOSE
            return


@pytest.mark.parametrize(("name", "direction"), POSSIBLE)
def test_scrambled_names_never_make_a_wrong_port(name, direction):
    twins, source, target = build(name, direction)
    scramble_names(twins.keras, twins.torch, 0)
    port_silently(twins, source, target, direction, **twins.arguments(direction))


@pytest.mark.parametrize(("name", "direction"), POSSIBLE)
def test_without_a_sample_a_port_is_right_or_refused(name, direction):
    twins, source, target = build(name, direction)
    arguments = twins.arguments(direction)
    port_silently(
        twins, source, target, direction, **{key: arguments[key] for key in arguments if not key.startswith("sample")}
    )


@pytest.mark.parametrize("direction", ["to_torch", "to_keras"])
@pytest.mark.parametrize("seed", range(3))
def test_where_all_kernels_are_squares_names_and_shapes_prove_nothing(direction, seed):
    pytest.importorskip("keras_hub", reason="its models are public ones")
    from transformers import BertConfig, BertModel

    config = BertConfig(**{**SMALL, "intermediate_size": SMALL["hidden_size"]}, hidden_act="gelu_new")
    ours, _ = hub("bert", config)
    twins, source, target = filled(text(ours, BertModel(config), segments=True), direction)
    scramble_names(twins.keras, twins.torch, seed)
    port_silently(twins, source, target, direction, **twins.arguments(direction))
