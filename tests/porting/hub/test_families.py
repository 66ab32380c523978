"""The tables of families: settings go to transformers and come back, and what can't is said."""

from __future__ import annotations

import pytest

import xweights as xw

pytest.importorskip("keras", reason="the tables belong to the backend of Keras")

from xweights_keras.hub.families import FAMILIES, UnmappedError, find_family, list_lost, map_back, map_settings

DECODER = {
    "vocabulary_size": 50, "num_layers": 2, "num_query_heads": 4, "num_key_value_heads": 2, "hidden_dim": 16,
    "intermediate_dim": 24, "layer_norm_epsilon": 1e-6, "rope_max_wavelength": 5e5,
}  # fmt: skip
LLAMA3 = {
    "rope_frequency_adjustment_factor": 8.0, "rope_low_freq_factor": 1.0, "rope_high_freq_factor": 4.0,
    "rope_pretraining_sequence_length": 8192,
}  # fmt: skip
EXAMPLES = {
    "llama": {**DECODER, **LLAMA3, "tie_word_embeddings": True},
    "mistral": {**DECODER, "sliding_window": 64, "head_dim": 4, "rope_scaling_factor": 2.0},
    "qwen2": {**DECODER, "tie_word_embeddings": True, "use_sliding_window_attention": True, "sliding_window_size": 32},
    "qwen3": {**DECODER, "tie_word_embeddings": False, "head_dim": 8, "sliding_window_size": None},
    "gemma": {**{k: v for k, v in DECODER.items() if k != "rope_max_wavelength"}, "head_dim": 8},
    "vit": {
        "image_shape": (16, 16, 3), "patch_size": (4, 4), "num_layers": 2, "num_heads": 2, "hidden_dim": 16,
        "mlp_dim": 24, "layer_norm_epsilon": 1e-6, "use_mha_bias": True,
    },
    "t5": {
        "vocabulary_size": 50, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 24,
        "layer_norm_epsilon": 1e-6, "key_value_dim": 8, "activation": "relu", "use_gated_activation": False,
        "tie_embedding_weights": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", EXAMPLES)
def test_settings_go_to_transformers_and_come_back(kind):
    family, ours = FAMILIES[kind], EXAMPLES[kind]
    theirs = map_settings(family, ours)
    if kind == "t5":
        theirs |= {"dense_act_fn": "relu", "is_gated_act": False}  # T5Config makes them of feed_forward_proj
    assert map_back(family, theirs) == ours
    assert list_lost(theirs, map_settings(family, map_back(family, theirs))) == {}


def test_a_setting_that_keras_hub_makes_otherwise_is_listed():
    family = FAMILIES["bert"]
    theirs = {**family.fixed, "hidden_act": "gelu", "vocab_size": 50}
    lost = list_lost(theirs, map_settings(family, map_back(family, theirs)))
    assert lost == {"hidden_act": ("gelu", "gelu_new")}
    assert list_lost({"hidden_act": "gelu_pytorch_tanh"}, {"hidden_act": "gelu_new"}) == {}


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}),
        ("whisper", {"encoder_layers": 2, "decoder_layers": 3}),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 1, "num_hidden_layers": 2}),
    ],
)
def test_what_keras_hub_doesnt_have_is_refused_by_name(kind, theirs):
    with pytest.raises(UnmappedError):
        map_back(FAMILIES[kind], theirs)


def test_two_generations_in_one_class_are_told_by_their_norms():
    assert find_family(["GemmaBackbone"], {"use_post_ffw_norm": True}) == "gemma2"
    assert find_family(["GemmaBackbone"], {"use_post_ffw_norm": False}) == "gemma"
    assert find_family(["Llama3Backbone", "LlamaBackbone"], {}) == "llama"
    assert find_family(["OPTBackbone", "Backbone"], {}) is None


def test_an_adapter_in_a_folder_is_refused_before_anything_is_loaded(tmp_path):
    pytest.importorskip("safetensors", reason="folders of transformers are read with safetensors")
    from xweights_keras.hub.folders import check_folder

    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    (tmp_path / "adapter_model.bin").write_bytes(b"a pickle, which is never opened")
    with pytest.raises(xw.RefusedFileError, match=r"(?s)it is an adapter beside the model.*merge_lora"):
        check_folder(str(tmp_path))
