"""Layers of keras_hub are seen as what they compute, in backbones of its families."""

from __future__ import annotations

import numpy as np
import pytest

keras = pytest.importorskip("keras")
hub = pytest.importorskip("keras_hub", reason="about keras_hub, which CI's environment lacks")
models = pytest.importorskip("observed_models", reason="they need keras")

RANDOM = np.random.default_rng(0)
IDS = RANDOM.integers(1, 50, (2, 7))
MASK = np.ones((2, 7), "int32")
MASK[1, 5:] = 0
TOKENS = {"token_ids": IDS, "padding_mask": MASK}
BOTH = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in TOKENS.items()}
IMAGES = RANDOM.normal(size=(1, 32, 32, 3)).astype("float32")
SIZES = {"vocabulary_size": 50, "num_layers": 1, "hidden_dim": 16, "intermediate_dim": 32}
OLD = {**SIZES, "num_heads": 4}
NEW = {**SIZES, "num_query_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("name", "options", "sample", "seen"),
    [
        ("Bert", {**OLD, "max_sequence_length": 12}, {**TOKENS, "segment_ids": MASK}, {"rows": 1}),
        ("GPT2", {**OLD, "max_sequence_length": 12}, TOKENS, {"rows": 1}),
        ("Bart", {**OLD, "max_sequence_length": 12}, BOTH, {"rows": 2}),
        ("Llama", NEW, TOKENS, {"rms_norm": 3}),
        ("Gemma", {**NEW, "head_dim": 4}, TOKENS, {"rms_norm": 3}),
        ("T5", OLD, BOTH, {"rms_norm": 7, "embedding": 2}),
        (
            "ViT",
            {"image_shape": (32, 32, 3), "patch_size": (8, 8), "num_layers": 1, "num_heads": 4, "hidden_dim": 16}
            | {"mlp_dim": 32},
            IMAGES,
            {"rows": 1},
        ),
        (
            "DINOV2",
            {"patch_size": 8, "num_layers": 1, "hidden_dim": 16, "num_heads": 4, "intermediate_dim": 32}
            | {"image_shape": (32, 32, 3)},
            IMAGES,
            {"rows": 4, "multiply": 2},
        ),
    ],
)
def test_the_layers_of_a_backbone_are_seen_as_what_they_compute(name, options, sample, seen):
    model = models.randomise(getattr(hub.models, f"{name}Backbone")(**options))
    kinds = [record.kind for record in models.observe(model, sample) if record.views]
    assert {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)} == seen
