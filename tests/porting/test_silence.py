"""Never a wrong port without a word: names scrambled, the sample withheld."""

from __future__ import annotations

import numpy as np
import pytest

import xweights as xw

zoo = pytest.importorskip("zoo.all", reason="the twins are of Keras and of torch")
keras = pytest.importorskip("keras")
pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="once is enough")
CASES = [(name, way) for name, pair in zoo.PAIRS.items() for way in pair.directions]


def error(source, target, one, other, options):
    got, expected = zoo.outputs(target, other), zoo.outputs(source, one)
    if "outputs" in options:
        got = [options["outputs"](array) for array in got]
    return zoo.apart(got, expected)


@pytest.mark.parametrize(("name", "way"), CASES)
def test_without_a_sample_a_port_is_right_or_refused(name, way):
    source, target, one, other, options = zoo.sides(zoo.PAIRS[name], way)
    before = zoo.arrays(target)
    try:
        xw.port(source, target)
    except xw.PortError:
        assert zoo.arrays(target) == before
    else:
        assert error(source, target, one, other, options) <= 1e-5


def scrambled(k, t, seed):
    """Give the Keras layers the names of torch layers, dealt at random: each lies."""
    rng = np.random.default_rng(seed)
    layers = [one for one in k._flatten_layers(include_self=False) if one.weights]
    names = [name.replace(".", "_") for name, one in t.named_modules() if name and list(one.parameters(recurse=False))]
    names = [str(one) for one in rng.permutation(names * len(layers))][: len(layers)]
    for place, (layer, name) in enumerate(zip(layers, names, strict=False)):
        layer.name = name if name not in names[:place] else f"{name}_{place}"


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", [name for name, pair in zoo.PAIRS.items() if "to_torch" in pair.directions][::2])
def test_scrambled_names_never_make_a_wrong_port(name, seed):
    source, target, one, other, options = zoo.sides(zoo.PAIRS[name], "to_torch")
    scrambled(source, target, seed)
    try:
        xw.port(source, target, sample=one, **options)
    except xw.PortError:
        pass
    else:
        assert error(source, target, one, other, options) <= 1e-5


def test_scrambled_names_are_ported_right_where_the_numbers_tell_the_layers_apart():
    name = "branches_in_another_order"
    source, target, one, other, options = zoo.sides(zoo.PAIRS[name], "to_torch")
    scrambled(source, target, 0)
    assert xw.port(source, target, sample=one, **options).ok
    assert error(source, target, one, other, options) <= 1e-5
