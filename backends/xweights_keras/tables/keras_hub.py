"""Layers of keras_hub 0.32 (once keras_nlp).

Names stay the variables' own where these are no standard words for something else. Norms that multiply by ``1 + scale``
(Gemma's) have the role of the others: a scale by channel. Rotary tables are kept by few of its layers, as frequencies.
"""

from __future__ import annotations

from xweights.core.package_tables import Row

_SCALE = {"scale": Row("scale", "channel")}
_TOKEN = "dim | token dim | batch token dim"
_POSITIONS = "position dim | batch position dim | batch h w dim | side position dim"
# Experts in one array: an output is a number of one expert.
_EXPERT_OUT = ("expert", "out")


def _tokens(*names: str) -> dict[str, Row]:
    return {name: Row(name, _TOKEN, "token") for name in names}


def _positions(*names: str) -> dict[str, Row]:
    return {name: Row(name, _POSITIONS, "position_embeddings") for name in names}


def _scales(*names: str) -> dict[str, Row]:
    return {name: Row(name, "| channel", "scale") for name in names}


def _kernels(*names: str) -> dict[str, Row]:
    return {name: Row(f"{name}/kernel", "in out") for name in names}


def _experts(*names: str) -> dict[str, Row]:
    return {name: Row(f"{name}/kernel", "expert in out", outputs=_EXPERT_OUT) for name in names}


LAYERS: dict[str, dict[str, Row]] = {
    # Of keras_hub.layers.
    "PositionEmbedding": {"embeddings": Row("embeddings", "position dim", "position_embeddings")},
    "MaskedLMHead": {"output_bias": Row("output/bias", "out"), "output_kernel": Row("output/kernel", "in out")},
    # Norms.
    "*RMSNormalization *RMSNorm *RMSNormGated *LayerNorm *LayerNormalization *FrozenNorm *RoformerNorm "
    "*CumulativeGroupNorm": _SCALE | {"weight": Row("scale", "channel")},
    "RmsNorm2d": {"gamma": Row("scale", "channel")},
    # Scales.
    "*LayerScale": _scales("lambda1"),
    "LayerScale2d": _scales("gamma"),
    "*LearnableAffineBlock": {"scale": Row("scale", ""), "bias": Row("bias", "")},
    "*PerDimScale *AudioAttention *Router": _scales("per_dim_scale"),
    "Gemma3nTextAltUp": _scales("correct_output_scale"),
    "Gemma4TextDecoderBlock": _scales("layer_scalar"),
    "Gemma4VisionOutput": {
        "std_scale": Row("std_scale", "channel", "scale"),
        "std_bias": Row("std_bias", "channel", "bias"),
    },
    # The ranges that its inputs and outputs are clipped to.
    "Gemma4Clippable*": {
        name: Row(name, "", "range") for name in ("input_min", "input_max", "output_min", "output_max")
    },
    "CLIPHead MetaCLIP2Head SigLIPHead": _scales("logit_scale") | {"logit_bias": Row("logit_bias", "", "bias")},
    "DFineMultiscaleDeformableAttention": {"num_points_scale": Row("num_points_scale", "position", "scale")},
    "DFineDecoder": _scales("reg_scale", "upsampling_factor"),
    # Tokens and positions.
    "BLIP2QueryTokens": _tokens("query_tokens"),
    "*VisionEmbedding": _tokens("class_embedding"),
    "DeiTEmbeddings DINOV*Embedding": _tokens(
        "class_token", "distillation_token", "mask_token", "cls_token", "register_tokens"
    )
    | _positions("position_embedding", "position_embeddings", "interpolated_position_embeddings"),
    "*MultiHeadAttentionPooling": _tokens("probe"),
    "PARSeqDecoder": _positions("pos_query_embeddings"),
    "T5Gemma2Backbone": _tokens("encoder_eoi_embedding", "decoder_eoi_embedding"),
    "VideoPrismClassToken": _tokens("cls_token"),
    "VideoPrismAttenTokenPoolingLayer": _tokens("pooling_attention_query"),
    "ViTPatchingAndEmbedding": _tokens("class_token"),
    "SAM3Embedding": _positions("position_embeddings", "tiled_position_embeddings"),
    "Gemma4VisionPatchEmbedder": _positions("position_embedding_table"),
    "AddPositionalEmbedding": _positions("pos_embed"),
    "XLNetAttentionMaskLayer": _tokens("mask_emb"),
    # Relative positions.
    "RelativeEmbedding": {"rel_embedding": Row("rel_embedding", "position dim", "position_embeddings")},
    "AddRelativePositionalEmbedding": _positions("rel_pos_h", "rel_pos_w"),
    "Gemma4AudioRelativePositionEmbedding": _kernels("pos_proj"),
    "T5MultiHeadAttention": {"embeddings": Row("embeddings", "position head", "relative_position_bias")},
    "*WindowAttention": {
        "relative_position_bias_table": Row(
            "relative_position_bias_table", "position head", "relative_position_bias"
        )
    },
    "XLNetEncoder": {
        **{
            name: Row(name, "head dim", "bias")
            for name in ("content_attention_bias", "positional_attention_bias", "segment_attention_bias")
        },
        "segment_encoding": Row("segment_encoding", "vocab head dim", "embeddings"),
    },
    # Frequencies.
    "MoonshineRotaryEmbedding SmolLM3RotaryEmbedding": {"inv_freq": Row("inv_freq", "dim", "frequencies")},
    "RandomFrequencyPositionalEmbeddings": {
        "positional_encoding_gaussian_matrix": Row("positional_encoding_gaussian_matrix", "axis dim", "frequencies")
    },
    "SAM3ViTRotaryEmbedding": {
        name: Row(name, "position dim", "frequencies") for name in ("rope_embeddings_cos", "rope_embeddings_sin")
    },
    # Experts in one array.
    "*MoeExperts": _experts(
        "expert_feedforward_gate_dense", "expert_feedforward_intermediate_dense", "expert_feedforward_output_dense"
    ),
    "GptOssExperts": {
        **_experts("gate_up_proj", "down_proj"),
        "gate_up_proj_bias": Row("gate_up_proj/bias", "expert out"),
        "down_proj_bias": Row("down_proj/bias", "expert out"),
    },
    "Gemma4MoEBlock": {
        **_experts("gate_proj", "up_proj", "down_proj"),
        "per_expert_scale": Row("per_expert_scale", "expert", "scale"),
    },
    # Others.
    "GptOssAttention": {"sinks": Row("sinks", "head", "bias")},
    "Qwen3_5GatedDeltaNet": {
        "conv1d_kernel": Row("conv1d/kernel", "in t -> t in", outputs=("in",)),
        "dt_bias": Row("dt_bias", "head", "bias"),
        "A_log": Row("A_log", "head", "state_decay"),
    },
    # A codebook, and what its moving averages are made of.
    "VectorQuantizerEMA": {
        "embeddings": Row("embeddings", "vocab dim"),
        "ema_w": Row("moving_embeddings", "vocab dim"),
        "ema_cluster_size": Row("moving_cluster_size", "vocab"),
    },
    "RWKV7ChannelMix": _scales("time_mix_k"),
    "RWKV7TimeMix": {
        **_scales("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "k_k", "k_a"),
        **{name: Row(name, "channel", "bias") for name in ("w0", "a0", "v0")},
        **_kernels("w1", "w2", "a1", "a2", "g1", "g2", "v1", "v2"),
        "r_k": Row("r_k", "head key", "scale"),
    },
}  # fmt: skip
