"""Every pair of the zoo, in both directions: weights and outputs, float32 and float64, and a fault would show."""

from __future__ import annotations

import contextlib

import pytest

import xweights as xw

zoo = pytest.importorskip("zoo.all", reason="the twins are of Keras and of torch")
keras = pytest.importorskip("keras")
PAIRS, distance, arrays, fill, floats, outputs = zoo.PAIRS, zoo.distance, zoo.arrays, zoo.fill, zoo.floats, zoo.outputs

on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="its float64 is that of one backend")


def marks(number, pair, way):
    """CI ports a pair in one direction, pair by pair another one, and on other Keras backends every 20th pair.

    Where both directions are possible, the test goes back as well.
    """
    quick = way == pair.directions[number % len(pair.directions)]
    if keras.backend.backend() != "tensorflow":
        quick = quick and number % 20 == 0
    return [pytest.mark.keras_backend] if quick else [pytest.mark.keras_backend, pytest.mark.thorough]


CASES = [
    pytest.param(name, way, marks=marks(number, pair, way))
    for number, (name, pair) in enumerate(PAIRS.items())
    for way in pair.directions
]
# Rounding of a forward in float32 and float64, as a part of the largest output.
CLOSE = {"float32": 1e-5, "float64": 1e-10}
# Keras on TensorFlow computes these with a constant in float32, whatever the dtype: of gelu, of leaky_relu's slope, of
# attention's scale.
CONSTANTS_IN_FLOAT32 = {
    "dense_without_bias": 2e-8,
    "dense_squares": 2e-8,
    "attention_with_grouped_queries": 2e-8,
    "a_language_model_with_a_tied_head": 2e-8,
}


def check(source, target, sample, target_sample, options, dtype):
    got, expected = outputs(target, target_sample, dtype), outputs(source, sample, dtype)
    if "outputs" in options:
        got = [options["outputs"](array) for array in got]
    return distance(got, expected)


@pytest.mark.parametrize(("name", "way"), CASES)
def test_a_pair_is_ported_right(name, way):
    pair = PAIRS[name]
    if keras.backend.backend() not in pair.backends:
        pytest.skip(f"Keras on {keras.backend.backend()} can't compute it")
    source, target, source_sample, target_sample, options = zoo.sides(pair, way)
    before = arrays(source)
    assert check(source, target, source_sample, target_sample, options, "float32") > 1e-2, (
        "the twins agree before the port"
    )
    report = xw.port(source, target, sample=source_sample, **options)
    assert report.ok
    assert check(source, target, source_sample, target_sample, options, "float32") <= CLOSE["float32"]
    assert arrays(source) == before
    if len(pair.directions) == 2:
        back = zoo.sides(pair, way)[0]
        fill(back, 17)
        settings = {key: value for key, value in options.items() if key == "outputs"}
        if settings:
            settings["outputs"] = pair.to_torch if way == "to_torch" else pair.to_keras
        elif pair.to_torch is not None:
            settings["sample_target"] = source_sample
        if "outputs" in settings:
            settings["sample_target"] = source_sample
        xw.port(target, back, sample=target_sample, **settings)
        if pair.bitwise or way == "to_torch":
            assert arrays(back) == before
        else:
            assert check(source, back, source_sample, source_sample, {}, "float32") <= CLOSE["float32"]


# Every third pair in CI: that one percent shows is no matter of layers, and that layers agree is seen in float32.
@on_tensorflow
@pytest.mark.parametrize(
    ("name", "way"),
    [
        pytest.param(name, pair.directions[0], marks=[pytest.mark.thorough] if number % 3 else [])
        for number, (name, pair) in enumerate(PAIRS.items())
    ],
)
def test_a_pair_agrees_in_float64_and_one_percent_shows(name, way):
    pair = PAIRS[name]
    with floats("float64"):
        source, target, source_sample, target_sample, options = zoo.sides(pair, way)
        source_sample, target_sample = (
            tuple(a.astype("float64") if a.dtype.kind == "f" else a for a in (s if isinstance(s, tuple) else (s,)))
            for s in (source_sample, target_sample)
        )
        source_sample, target_sample = (s if len(s) > 1 else s[0] for s in (source_sample, target_sample))
        if "sample_target" in options:
            options["sample_target"] = target_sample
        xw.port(source, target, sample=source_sample, **options)
        assert check(source, target, source_sample, target_sample, options, "float64") <= CONSTANTS_IN_FLOAT32.get(
            name, CLOSE["float64"]
        )
        assert xw.verify(source, target, sample=source_sample, **options).ok
        kernels = [p for p in xw.parameters(source) if p.role not in ("count", "vector_u") and p.floating]
        for p in sorted(kernels, key=lambda p: (p.axes is None, -p.size)):
            with contextlib.suppress(xw.WriteError):  # a weight that is computed and has no inverse
                p.assign(p.numpy() * 1.01)
                break
        report = xw.verify(source, target, sample=source_sample, **options)
        assert not report.ok
        assert report.first_divergence is not None


def test_the_zoo_has_at_least_sixty_pairs_and_every_shelf_is_used():
    assert len(PAIRS) >= 60
    assert {pair.make.__module__ for pair in PAIRS.values()} == {shelf.__name__ for shelf in zoo.SHELVES}
