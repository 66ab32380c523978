"""A port is right or refused, never silently wrong: with scrambled names, and without a sample."""

from __future__ import annotations

import numpy as np
import pytest

import xweights as xw

zoo = pytest.importorskip("zoo.all", reason="the twins are of Keras and of torch")
keras = pytest.importorskip("keras")
pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="once is enough")
# CI tries a pair in one direction, pair by pair another one.
CASES = [
    pytest.param(name, way, marks=[] if way == pair.directions[number % len(pair.directions)] else pytest.mark.thorough)
    for number, (name, pair) in enumerate(zoo.PAIRS.items())
    for way in pair.directions
]


def error(source, target, source_sample, target_sample, options):
    got, expected = zoo.outputs(target, target_sample), zoo.outputs(source, source_sample)
    if "outputs" in options:
        got = [options["outputs"](array) for array in got]
    return zoo.distance(got, expected)


@pytest.mark.parametrize(("name", "way"), CASES)
def test_without_a_sample_a_port_is_right_or_refused(name, way):
    source, target, source_sample, target_sample, options = zoo.sides(zoo.PAIRS[name], way)
    before = zoo.arrays(target)
    try:
        xw.port(source, target)
    except xw.PortError:
        assert zoo.arrays(target) == before
    else:
        assert error(source, target, source_sample, target_sample, options) <= 1e-5


def scramble_names(k, t, seed):
    """Give the Keras layers the names of torch layers at random: each name is wrong."""
    rng = np.random.default_rng(seed)
    layers = [layer for layer in k._flatten_layers(include_self=False) if layer.weights]
    names = [name.replace(".", "_") for name, m in t.named_modules() if name and list(m.parameters(recurse=False))]
    names = [str(name) for name in rng.permutation(names * len(layers))][: len(layers)]
    for index, (layer, name) in enumerate(zip(layers, names, strict=False)):
        layer.name = name if name not in names[:index] else f"{name}_{index}"


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", [name for name, pair in zoo.PAIRS.items() if "to_torch" in pair.directions][::2])
def test_scrambled_names_never_make_a_wrong_port(name, seed):
    source, target, source_sample, target_sample, options = zoo.sides(zoo.PAIRS[name], "to_torch")
    scramble_names(source, target, seed)
    try:
        xw.port(source, target, sample=source_sample, **options)
    except xw.PortError:
        pass
    else:
        assert error(source, target, source_sample, target_sample, options) <= 1e-5


def test_scrambled_names_are_ported_right_where_the_numbers_tell_the_layers_apart():
    name = "branches_in_another_order"
    source, target, source_sample, target_sample, options = zoo.sides(zoo.PAIRS[name], "to_torch")
    scramble_names(source, target, 0)
    assert xw.port(source, target, sample=source_sample, **options).ok
    assert error(source, target, source_sample, target_sample, options) <= 1e-5
