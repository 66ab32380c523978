"""Small keras_hub models of every family that is mapped, with random weights."""

from __future__ import annotations

import importlib

import numpy as np

SMALL = {"vocabulary_size": 50, "num_layers": 2, "hidden_dim": 16, "intermediate_dim": 24}
HEADS = {"num_heads": 2}
GROUPS = {"num_query_heads": 4, "num_key_value_heads": 2}
LENGTH = {"max_sequence_length": 14}
SIZES = {
    "Bert": {**SMALL, **HEADS, **LENGTH},
    "Roberta": {**SMALL, **HEADS, **LENGTH},
    "DistilBert": {**SMALL, **HEADS, **LENGTH},
    "GPT2": {**SMALL, **HEADS, **LENGTH},
    "Llama": {**SMALL, **GROUPS, "tie_word_embeddings": True},
    "Llama3": {
        **SMALL, **GROUPS, "rope_frequency_adjustment_factor": 8.0, "rope_low_freq_factor": 1.0,
        "rope_high_freq_factor": 4.0, "rope_pretraining_sequence_length": 8192,
    },
    "Mistral": {**SMALL, **GROUPS, "sliding_window": 64},
    "Qwen": {**SMALL, **GROUPS},
    "Qwen3": {**SMALL, **GROUPS, "head_dim": 8, "sliding_window_size": None},
    "Gemma": {**SMALL, **GROUPS, "head_dim": 8},
    "Gemma2": {
        **SMALL, **GROUPS, "head_dim": 8, "use_post_ffw_norm": True, "use_post_attention_norm": True,
        "attention_logit_soft_cap": 50.0, "final_logit_soft_cap": 30.0, "use_sliding_window_attention": True,
    },
    "ViT": {
        "image_shape": (16, 16, 3), "patch_size": (4, 4), "num_layers": 2, "num_heads": 2, "hidden_dim": 16,
        "mlp_dim": 24,
    },
    "Whisper": {**SMALL, **HEADS, "num_mels": 8, "max_encoder_sequence_length": 24, "max_decoder_sequence_length": 16},
    "T5": {**SMALL, **HEADS, "key_value_dim": 8, "activation": "relu", "use_gated_activation": False},
}  # fmt: skip


def make_backbone(name, seed=0, **more):
    """A backbone with every weight drawn at random."""
    models = importlib.import_module("keras_hub").models
    backbone = getattr(models, f"{'Gemma' if name == 'Gemma2' else name}Backbone")(**{**SIZES[name], **more})
    draw = np.random.default_rng(seed)
    for variable in backbone.weights:
        variable.assign((0.2 * draw.normal(size=variable.shape) + 0.05).astype("float32"))
    return backbone
