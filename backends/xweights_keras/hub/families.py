"""The families that keras_hub and transformers both have: their settings, both ways.

A table per family says which setting of keras_hub's backbone is which of transformers' config; what isn't one number in
the other's place is a function. The facts are those of the two libraries' signatures (keras_hub 0.32, transformers 5).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Settings = dict[str, Any]
Extra = Callable[[Mapping[str, Any]], Settings]

# Activations of transformers that are the same function.
SAME = {"gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new", "swish": "silu"}
TEXT = {"token_ids": "input_ids", "padding_mask": "attention_mask", "segment_ids": "token_type_ids"}
BOTH = {
    "encoder_token_ids": "input_ids",
    "encoder_padding_mask": "attention_mask",
    "decoder_token_ids": "decoder_input_ids",
    "decoder_padding_mask": "decoder_attention_mask",
}
SEQUENCES = {"decoder_sequence_output": "last_hidden_state", "encoder_sequence_output": "encoder_last_hidden_state"}


class UnmappedError(Exception):
    """A setting that the other library doesn't have; the message says which."""


def _nothing(_: Mapping[str, Any]) -> Settings:
    return {}


@dataclass(frozen=True)
class Family:
    """One family. ``names``: keras_hub's settings by those of transformers; ``fixed``: what keras_hub always does.

    ``to_theirs`` and ``to_ours`` are for settings that aren't one to one. ``inputs`` are the names of what the models
    are called with, ``outputs`` of what they return (None: there is only one, which is the first).
    """

    backbone: str
    config: str
    model: str
    names: Mapping[str, str]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    to_theirs: Extra = _nothing
    to_ours: Extra = _nothing
    causal: str = ""
    inputs: Mapping[str, str] = field(default_factory=lambda: TEXT)
    outputs: Mapping[str, str] | None = field(default_factory=lambda: {"output": "last_hidden_state"})
    options: Mapping[str, Any] = field(default_factory=dict)


_LAYERS = {
    "vocabulary_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
}
_DECODER = {
    "vocabulary_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_query_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "hidden_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "layer_norm_epsilon": "rms_norm_eps",
}


def _rope(ours: Mapping[str, Any]) -> Settings:
    """Return the rotary settings of transformers."""
    rope: Settings = {"rope_type": "default", "rope_theta": float(ours.get("rope_max_wavelength", 10000))}
    factor = float(ours.get("rope_position_scaling_factor") or ours.get("rope_scaling_factor") or 1.0)
    if factor != 1.0:
        rope |= {"rope_type": "linear", "factor": factor}
    if ours.get("rope_frequency_adjustment_factor") is not None:
        if factor != 1.0:
            raise UnmappedError("positions and frequencies that are both scaled (rope_position_scaling_factor)")
        rope |= {
            "rope_type": "llama3",
            "factor": float(ours["rope_frequency_adjustment_factor"]),
            "low_freq_factor": float(ours["rope_low_freq_factor"]),
            "high_freq_factor": float(ours["rope_high_freq_factor"]),
            "original_max_position_embeddings": int(ours["rope_pretraining_sequence_length"]),
        }
    return {"rope_parameters": rope}


def _rope_back(theirs: Mapping[str, Any], scaling: str = "rope_scaling_factor") -> Settings:
    rope = theirs.get("rope_parameters") or {}
    kind = rope.get("rope_type", "default")
    found: Settings = {"rope_max_wavelength": float(rope.get("rope_theta", 10000.0))}
    if kind == "linear":
        found[scaling] = float(rope["factor"])
    elif kind == "llama3" and scaling == "rope_position_scaling_factor":
        found |= {
            "rope_frequency_adjustment_factor": float(rope["factor"]),
            "rope_low_freq_factor": float(rope["low_freq_factor"]),
            "rope_high_freq_factor": float(rope["high_freq_factor"]),
            "rope_pretraining_sequence_length": int(rope["original_max_position_embeddings"]),
        }
    elif kind != "default":
        raise UnmappedError(f"rotary embeddings of the type {kind!r}")
    return found


def _llama(ours: Mapping[str, Any]) -> Settings:
    return {**_rope(ours), "tie_word_embeddings": bool(ours.get("tie_word_embeddings"))}


def _llama_back(theirs: Mapping[str, Any]) -> Settings:
    tied = bool(theirs.get("tie_word_embeddings"))
    return {**_rope_back(theirs, "rope_position_scaling_factor"), "tie_word_embeddings": tied}


def _mistral(ours: Mapping[str, Any]) -> Settings:
    head = ours.get("head_dim") or ours["hidden_dim"] // ours["num_query_heads"]
    return {**_rope(ours), "head_dim": head, "sliding_window": ours.get("sliding_window"), "tie_word_embeddings": False}


def _mistral_back(theirs: Mapping[str, Any]) -> Settings:
    return {**_rope_back(theirs), "head_dim": theirs.get("head_dim"), "sliding_window": theirs.get("sliding_window")}


def _windows(ours: Mapping[str, Any], *, slides: bool) -> Settings:
    found = {**_rope(ours), "tie_word_embeddings": bool(ours["tie_word_embeddings"]), "use_sliding_window": slides}
    return {**found, "sliding_window": ours["sliding_window_size"], "max_window_layers": 0} if slides else found


def _windows_back(theirs: Mapping[str, Any]) -> tuple[Settings, int | None]:
    found = {**_rope_back(theirs), "tie_word_embeddings": bool(theirs.get("tie_word_embeddings"))}
    first = theirs.get("max_window_layers") or 0  # the first layer that has a window
    if not theirs.get("use_sliding_window") or first >= theirs["num_hidden_layers"]:
        return found, None
    if first:
        raise UnmappedError("windows in some layers only (max_window_layers)")
    return found, theirs["sliding_window"]


def _qwen(ours: Mapping[str, Any]) -> Settings:
    return _windows(ours, slides=bool(ours.get("use_sliding_window_attention")))


def _qwen_back(theirs: Mapping[str, Any]) -> Settings:
    found, window = _windows_back(theirs)
    found["use_sliding_window_attention"] = window is not None
    return found if window is None else {**found, "sliding_window_size": window}


def _qwen3(ours: Mapping[str, Any]) -> Settings:
    slides = ours.get("sliding_window_size") is not None
    return {**_windows(ours, slides=slides), "head_dim": ours["head_dim"]}


def _qwen3_back(theirs: Mapping[str, Any]) -> Settings:
    found, window = _windows_back(theirs)
    return {**found, "head_dim": theirs["head_dim"], "sliding_window_size": window}


def _gemma(ours: Mapping[str, Any]) -> Settings:
    if ours["intermediate_dim"] % 2:
        raise UnmappedError("an odd intermediate_dim, which is gate and up together")
    return {"intermediate_size": ours["intermediate_dim"] // 2, "head_dim": ours["head_dim"]}


def _gemma_back(theirs: Mapping[str, Any]) -> Settings:
    return {"intermediate_dim": 2 * theirs["intermediate_size"], "head_dim": theirs["head_dim"]}


def _gemma2(ours: Mapping[str, Any]) -> Settings:
    if not (ours["use_post_ffw_norm"] and ours["use_post_attention_norm"]):
        raise UnmappedError("a norm behind attention or feed-forward alone")
    head, width = ours["head_dim"], ours["hidden_dim"] // ours["num_query_heads"]
    if not ours["use_sliding_window_attention"]:
        raise UnmappedError("Gemma 2 without windows in every other layer")
    return {
        **_gemma(ours),
        "query_pre_attn_scalar": head if ours["query_head_dim_normalize"] else width,
        "attn_logit_softcapping": ours["attention_logit_soft_cap"],
        "final_logit_softcapping": ours["final_logit_soft_cap"],
        "sliding_window": ours["sliding_window_size"],
    }


def _gemma2_back(theirs: Mapping[str, Any]) -> Settings:
    return {
        **_gemma_back(theirs),
        "query_head_dim_normalize": theirs["query_pre_attn_scalar"] == theirs["head_dim"],
        "attention_logit_soft_cap": theirs["attn_logit_softcapping"],
        "final_logit_soft_cap": theirs["final_logit_softcapping"],
        "sliding_window_size": theirs["sliding_window"],
        "use_post_ffw_norm": True,
        "use_post_attention_norm": True,
        "use_sliding_window_attention": True,
    }


def _vit(ours: Mapping[str, Any]) -> Settings:
    height, width, channels = ours["image_shape"]
    patch = ours["patch_size"]
    patch = patch if isinstance(patch, (tuple, list)) else (patch, patch)
    for name in ("use_class_token", "use_mlp_bias", "use_patch_bias"):
        if not ours.get(name, True):
            raise UnmappedError(f"{name}=False")
    if height != width or patch[0] != patch[1]:
        raise UnmappedError("images or patches that aren't square")
    return {"image_size": height, "num_channels": channels, "patch_size": patch[0]}


def _vit_back(theirs: Mapping[str, Any]) -> Settings:
    size, patch = theirs["image_size"], theirs["patch_size"]
    return {"image_shape": (size, size, theirs["num_channels"]), "patch_size": (patch, patch)}


def _t5(ours: Mapping[str, Any]) -> Settings:
    activation = ours["activation"]
    name = activation if isinstance(activation, str) else str(activation.get("config", activation))
    if name not in ("relu", "gelu", "silu", "keras_hub>gelu_approximate", "gelu_approximate"):
        raise UnmappedError(f"the activation {name!r}")
    kind = "gated-" if ours["use_gated_activation"] else ""
    theirs = "gelu_new" if name.endswith("gelu_approximate") else name
    return {
        "d_kv": ours["key_value_dim"] or ours["hidden_dim"] // ours["num_heads"],
        "num_decoder_layers": ours["num_layers"],
        # "gated-gelu" is read as gelu by tanh, whatever it says.
        "feed_forward_proj": f"{kind}{theirs}",
        "tie_word_embeddings": bool(ours["tie_embedding_weights"]),
    }


def _t5_back(theirs: Mapping[str, Any]) -> Settings:
    if theirs.get("num_decoder_layers", theirs["num_layers"]) != theirs["num_layers"]:
        raise UnmappedError("unequal numbers of layers in encoder and decoder")
    name = theirs["dense_act_fn"]
    return {
        "key_value_dim": theirs["d_kv"],
        "activation": "keras_hub>gelu_approximate" if SAME.get(name, name) == "gelu_new" else name,
        "use_gated_activation": bool(theirs["is_gated_act"]),
        "tie_embedding_weights": bool(theirs.get("tie_word_embeddings", True)),
    }


def _whisper(ours: Mapping[str, Any]) -> Settings:
    heads, layers, width = ours["num_heads"], ours["num_layers"], ours["intermediate_dim"]
    return {
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": width,
        "decoder_ffn_dim": width,
        "max_source_positions": ours["max_encoder_sequence_length"] // 2,
    }


def _whisper_back(theirs: Mapping[str, Any]) -> Settings:
    for name in ("layers", "attention_heads", "ffn_dim"):
        if theirs[f"encoder_{name}"] != theirs[f"decoder_{name}"]:
            raise UnmappedError(f"unequal encoder_{name} and decoder_{name}")
    return {
        "num_layers": theirs["encoder_layers"],
        "num_heads": theirs["encoder_attention_heads"],
        "intermediate_dim": theirs["encoder_ffn_dim"],
        "max_encoder_sequence_length": 2 * theirs["max_source_positions"],
    }


_GEMMA = {k: v for k, v in _DECODER.items() if k != "intermediate_dim"}
_TANH = {"hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True}
# By the type of transformers' config.
FAMILIES: dict[str, Family] = {
    "bert": Family(
        "BertBackbone", "BertConfig", "BertModel",
        {**_LAYERS, "max_sequence_length": "max_position_embeddings", "num_segments": "type_vocab_size"},
        {"hidden_act": "gelu_new", "layer_norm_eps": 1e-12},
        outputs={"sequence_output": "last_hidden_state", "pooled_output": "pooler_output"},
    ),
    "roberta": Family(
        "RobertaBackbone", "RobertaConfig", "RobertaModel", _LAYERS,
        {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "type_vocab_size": 1, "pad_token_id": 1},
        # Positions are counted from behind the number of the padding.
        lambda ours: {"max_position_embeddings": ours["max_sequence_length"] + 2},
        lambda theirs: {"max_sequence_length": theirs["max_position_embeddings"] - 2},
        options={"add_pooling_layer": False},
    ),
    "distilbert": Family(
        "DistilBertBackbone", "DistilBertConfig", "DistilBertModel",
        {
            "vocabulary_size": "vocab_size", "num_layers": "n_layers", "num_heads": "n_heads", "hidden_dim": "dim",
            "intermediate_dim": "hidden_dim", "max_sequence_length": "max_position_embeddings",
        },
        {"activation": "gelu"},
    ),
    "gpt2": Family(
        "GPT2Backbone", "GPT2Config", "GPT2Model",
        {
            "vocabulary_size": "vocab_size", "num_layers": "n_layer", "num_heads": "n_head", "hidden_dim": "n_embd",
            "intermediate_dim": "n_inner", "max_sequence_length": "n_positions",
        },
        {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
        to_ours=lambda theirs: {"intermediate_dim": theirs.get("n_inner") or 4 * theirs["n_embd"]},
        causal="GPT2LMHeadModel",
    ),
    "llama": Family(
        "LlamaBackbone", "LlamaConfig", "LlamaModel", _DECODER, {"hidden_act": "silu"}, _llama, _llama_back,
        causal="LlamaForCausalLM",
    ),
    "mistral": Family(
        "MistralBackbone", "MistralConfig", "MistralModel", _DECODER, {"hidden_act": "silu"}, _mistral, _mistral_back,
        causal="MistralForCausalLM",
    ),
    "qwen2": Family(
        "QwenBackbone", "Qwen2Config", "Qwen2Model", _DECODER, {"hidden_act": "silu"}, _qwen, _qwen_back,
        causal="Qwen2ForCausalLM",
    ),
    "qwen3": Family(
        "Qwen3Backbone", "Qwen3Config", "Qwen3Model", _DECODER, {"hidden_act": "silu"}, _qwen3, _qwen3_back,
        causal="Qwen3ForCausalLM",
    ),
    "gemma": Family(
        "GemmaBackbone", "GemmaConfig", "GemmaModel", _GEMMA, _TANH, _gemma, _gemma_back, causal="GemmaForCausalLM"
    ),
    "gemma2": Family(
        "GemmaBackbone", "Gemma2Config", "Gemma2Model", _GEMMA, _TANH, _gemma2, _gemma2_back,
        causal="Gemma2ForCausalLM",
    ),
    "vit": Family(
        "ViTBackbone", "ViTConfig", "ViTModel",
        {
            "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads", "hidden_dim": "hidden_size",
            "mlp_dim": "intermediate_size", "layer_norm_epsilon": "layer_norm_eps", "use_mha_bias": "qkv_bias",
        },
        {"hidden_act": "gelu"}, _vit, _vit_back, inputs={"images": "pixel_values"},
        options={"add_pooling_layer": False},
    ),
    "whisper": Family(
        "WhisperBackbone", "WhisperConfig", "WhisperModel",
        {
            "vocabulary_size": "vocab_size", "hidden_dim": "d_model", "num_mels": "num_mel_bins",
            "max_decoder_sequence_length": "max_target_positions",
        },
        {"activation_function": "gelu"}, _whisper, _whisper_back,
        inputs={**BOTH, "encoder_features": "input_features"}, outputs=SEQUENCES,
    ),
    "t5": Family(
        "T5Backbone", "T5Config", "T5Model",
        {
            "vocabulary_size": "vocab_size", "num_layers": "num_layers", "num_heads": "num_heads",
            "hidden_dim": "d_model", "intermediate_dim": "d_ff", "layer_norm_epsilon": "layer_norm_epsilon",
        },
        {}, _t5, _t5_back, inputs=BOTH, outputs=SEQUENCES,
    ),
}  # fmt: skip


def find_family(classes: list[str], ours: Mapping[str, Any]) -> str | None:
    """Return the family of a backbone by the names of its classes, and of two generations in one class by its norms."""
    for name in classes:
        found = [kind for kind, family in FAMILIES.items() if family.backbone == name]
        if found:
            newer = ours.get("use_post_ffw_norm") or ours.get("use_post_attention_norm")
            return found[-1] if newer else found[0]
    return None


def map_settings(family: Family, ours: Mapping[str, Any]) -> Settings:
    """Return the settings of transformers for those of a backbone; raise UnmappedError."""
    found = {theirs: ours[name] for name, theirs in family.names.items() if name in ours}
    return {**family.fixed, **found, **family.to_theirs(ours)}


def map_back(family: Family, theirs: Mapping[str, Any]) -> Settings:
    """Return the settings of a backbone for those of transformers; raise UnmappedError."""
    found = {ours: theirs[name] for ours, name in family.names.items() if theirs.get(name) is not None}
    return {**found, **family.to_ours(theirs)}


def list_lost(expected: Mapping[str, Any], got: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings of a config that come out otherwise after both mappings: (the config's, keras_hub's)."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: plain(part) for name, part in value.items() if part is not None}
        value = SAME.get(value, value) if isinstance(value, str) else value
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value

    return {name: (expected.get(name), got[name]) for name in got if plain(expected.get(name)) != plain(got[name])}
