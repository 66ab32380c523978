"""Layers of diffusers 0.42, and the arrays that its models hold by themselves."""

from __future__ import annotations

from xweights_torch.tables import Row
from xweights_torch.tables.common import (
    BETA,
    BIAS,
    CHANNEL_SCALE,
    GAMMA,
    LAYER_NORM,
    POSITION_MAP,
    POSITIONS,
    RMS_NORM,
    ROUTER,
    SCALAR,
    TOKEN,
    expert_kernel,
)

_CHANNELS_FIRST_NORM = {
    "gamma": Row("gamma", f"{GAMMA.axes}"),
    "bias": Row("beta", f"{BETA.axes}"),
}
_SNAKE = {"alpha": Row("alpha", "channel | 1 channel 1"), "beta": Row("beta", "channel | 1 channel 1")}

LAYERS: dict[str, dict[str, Row]] = {
    "*RMS_norm Kandinsky6*RMSNorm StableAudio3RMSNorm": _CHANNELS_FIRST_NORM,
    "*RMSNorm T5LayerNorm": RMS_NORM,
    "LayerNorm": LAYER_NORM,
    "DynamicTanh": {"gamma": GAMMA, "beta": BETA, "alpha": Row("alpha", "1")},
    "GlobalResponseNorm AudioDiTGRN": {"gamma": GAMMA, "beta": BETA},
    "*SnakeBeta *Snake1d": _SNAKE,
    "MoEGate": ROUTER,
    "SwiGLUExperts": {
        "gate_up_proj": expert_kernel("gate_up_proj", transposed=True),
        "down_proj": expert_kernel("down_proj", transposed=True),
    },
    "MotionConv2d": {"weight": Row("kernel", "out in h w -> h w in out"), "bias": BIAS},
    "MotionLinear": {"weight": Row("kernel", "out in -> in out"), "bias": BIAS},
    "FusedLeakyReLU": {"bias": BIAS},
    "*GaussianFourierProjection": {
        "weight": Row("weight", "channel", "frequencies"),
        "W": Row("W", "channel", "frequencies"),
    },
    "SanaWMTemporalShortConvolution": {"weight": Row("kernel", "in 1 t -> t in"), "bias": BIAS},
    "LuminaNextDiTBlock": {"gate": Row("gate", "head", "scale")},
    "Downsample1d Upsample1d": {"kernel": Row("kernel", "t")},
    "SinusoidalPositionalEmbedding": {"pe": Row("pe", "batch position dim", "position_embeddings")},
    "AutoencoderKL*": {
        "latents_mean": Row("latents_mean", "channel", "mean"),
        "latents_std": Row("latents_std", "channel", "scale"),
    },
    "MochiTransformer3DModel": {"pos_frequencies": Row("pos_frequencies", "side head dim", "frequencies")},
    "LTX*ResnetBlock3d": {
        "per_channel_scale1": Row("per_channel_scale1", "channel 1 1", "scale"),
        "per_channel_scale2": Row("per_channel_scale2", "channel 1 1", "scale"),
        "scale_shift_table": Row("scale_shift_table", "side channel", "embeddings"),
    },
}

# Learned shifts and scales that are added to a time embedding: one row for each.
_TABLE = ("embeddings", "vocab dim | batch vocab dim")
_tables = (
    "scale_shift_table audio_scale_shift_table video_a2v_cross_attn_scale_shift_table modulate_table modulation "
    "audio_a2v_cross_attn_scale_shift_table prompt_scale_shift_table audio_prompt_scale_shift_table task_embedding "
    "concept_embeds special_care_embeds"
)
_tokens = (
    "latents latent_queries query_tokens register_tokens "
    "learnable_registers memory_tokens special_token special_tokens "
    "class_embedding text_embedding_padding null_position_feature null_positive_feature null_text_feature "
    "null_image_feature sos_embed eos_embed sos_embed_1 "
    "eos_embed_1 new_tokens null_condition_emb pad_token x_pad_token "
    "cap_pad_token siglip_pad_token prd_embedding uncond_vector trainable_cls_token data_type_pos_embed_token "
    "learned_classifier_free_guidance_embeddings padding_tokens prompt_padding_embedding video_modality_emb "
    "audio_modality_emb action_modality_embed audio_modality_embed"
)
_positions = (
    "pos_embed positional_embedding position_embedding keyframes_abs_pos_embedding pos_emb_t pos_emb_h pos_emb_w"
)

FREE: dict[str, tuple[str, str]] = {
    **dict.fromkeys(_tables.split(), _TABLE),
    **dict.fromkeys(_tokens.split(), TOKEN),
    **dict.fromkeys(_positions.split(), (POSITIONS[0], f"{POSITIONS[1]} | {POSITION_MAP[1]}")),
    "learnable_positional_embedding": ("position_embeddings", "batch dim position -> batch position dim"),
    **dict.fromkeys(["scale1", "scale2", "layer_scale", "gammas"], CHANNEL_SCALE),
    **dict.fromkeys(["mix_factor", "learnable_gain", "timestep_scale_multiplier", "cross_attn_gate"], SCALAR),
    **dict.fromkeys(["concept_embeds_weights", "special_care_embeds_weights"], ("scale", "vocab")),
    **dict.fromkeys(["clip_mean", "mean"], ("mean", "1 dim")),
    **dict.fromkeys(["clip_std", "std"], ("scale", "1 dim")),
    "history_key_scale": ("scale", "head"),
    "pooled_bias": ("bias", "channel"),
    **dict.fromkeys(["q_bias", "v_bias"], ("bias", "out")),
}
