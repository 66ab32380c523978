"""The smallest pairs of the corpus (tests/porting/pairs); `nox -s pairs` runs them all."""

import inspect

import pytest

pytest.importorskip("torch", reason="pairs are of Keras and torch")
pytest.importorskip("keras", reason="pairs are of Keras and torch")

from pairs import making
from pairs.corpus import PAIRS

import xweights as xw

# In both directions these take a few seconds together.
RIGHT = (
    "actor_critic",
    "autoencoder",
    "conditional_discriminator",
    "cyclegan_block",
    "decoder_layer",
    "denoising_block",
    "dueling_dqn",
    "fasttext_bag",
    "gan_generator",
    "gated_mlp",
    "nerf",
    "recommender",
    "scans_3d",
    "seq2seq",
    "super_resolution",
    "temporal_convolutions",
    "video_cnn_gru",
    "wide_and_deep",
)
DIFFERENT = ("denoising_autoencoder", "gru_reset_before")


def build(name, direction):
    """The twins, and source and target of a port that goes in this direction."""
    twins = PAIRS[name].build()
    making.randomize_keras(twins.keras, 11 if direction == "to_torch" else 23)
    making.randomize_torch(twins.torch, 23 if direction == "to_torch" else 11)
    models = (twins.keras, twins.torch)
    return twins, *(models if direction == "to_torch" else models[::-1])


@pytest.mark.parametrize("direction", ["to_torch", "to_keras"])
@pytest.mark.parametrize("name", RIGHT)
def test_a_pair_that_says_the_same_is_ported_right(name, direction):
    twins, source, target = build(name, direction)
    assert max(making.distances(twins)) > 10 * making.CLOSE
    xw.port(source, target, **twins.arguments(direction), attributes="fix")
    assert max(making.distances(twins)) < making.CLOSE


@pytest.mark.parametrize("direction", ["to_torch", "to_keras"])
@pytest.mark.parametrize("name", DIFFERENT)
def test_a_pair_that_differs_is_refused_with_its_true_cause_and_left_alone(name, direction):
    twins, source, target = build(name, direction)
    before = making.weights_of(target)
    with pytest.raises(xw.errors.PortError, match=PAIRS[name].different):
        xw.port(source, target, **twins.arguments(direction), attributes="fix")
    after = making.weights_of(target)
    assert all((before[n] == after[n]).all() for n in before)


def test_pairs_are_many_and_each_says_what_it_is():
    assert len(PAIRS) >= 60
    assert all(p.keras_side and p.torch_side and inspect.isfunction(p.build) for p in PAIRS.values())
