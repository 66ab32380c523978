"""Layers of timm 1.0.31, and the arrays that its models hold by themselves."""

from __future__ import annotations

from xweights_torch.tables import Row
from xweights_torch.tables.common import (
    BETA,
    CHANNEL_SCALE,
    HEAD_SCALE,
    LAYER_NORM,
    POSITION_MAP,
    POSITIONS,
    RELATIVE_BIAS,
    RELATIVE_DIM,
    RMS_NORM,
    SCALAR,
    TOKEN,
)

LAYERS: dict[str, dict[str, Row]] = {
    "RmsNorm* SimpleNorm*": RMS_NORM,
    "GlobalResponseNorm InplaceAbn": LAYER_NORM,
    # v weighs the activation inside of the norm.
    "EvoNorm2d* FilterResponseNorm*": LAYER_NORM
    | {"v": Row("v", "channel", "scale"), "tau": Row("tau", "channel", "bias")},
    "Affine": {"alpha": Row("alpha", "1 1 channel"), "beta": BETA},
    "LayerScale*": {"gamma": Row("gamma", "channel | channel 1 1", "scale")},
    # A mixture of kernels, each in one row of its own.
    "CondConv2d": {
        "weight": Row("kernel", "expert (out in h w) -> expert h w in out"),
        "bias": Row("bias", "expert out"),
    },
    "StarReLU *LearnableAffineBlock": {"scale": Row("scale", "1"), "bias": Row("bias", "1")},
    "Scale": {"scale": Row("scale", "channel")},
    "ScaledStdConv2d*": {"gain": Row("gain", "out 1 1 1", "scale")},
    "MultiQueryAttentionV2": {
        "query_proj": Row("query/kernel", "head key in -> in head key"),
        "key_proj": Row("key/kernel", "in key"),
        "value_proj": Row("value/kernel", "in value"),
        "out_proj": Row("attention_output/kernel", "out head value -> head value out"),
    },
    "LambdaLayer": {"pos_emb": Row("pos_emb", "h w dim", "position_embeddings")},
    "MLDecoder": {
        "duplicate_pooling": Row("duplicate_pooling/kernel", "group in out", outputs=("group", "out")),
        "duplicate_pooling_bias": Row("duplicate_pooling/bias", "out"),
    },
    "*Attention* *AttentionDownsample CascadedGroupAttention": {
        "attention_biases": Row("attention_biases", "head position -> position head", "relative_position_bias")
    },
    "RelPosBiasTf": {
        "relative_position_bias_table": Row(
            "relative_position_bias_table", "head h w -> h w head", "relative_position_bias"
        )
    },
    # The ranges that its inputs and outputs are clipped to.
    "Gemma4ClippableLinear": {
        name: Row(name, "", "range") for name in ("input_min", "input_max", "output_min", "output_max")
    },
    "Gemma4VitEncoder": {
        "std_scale": Row("std_scale", "channel", "scale"),
        "std_bias": Row("std_bias", "channel", "bias"),
    },
    "EfficientAdditiveAttention": {"w_g": Row("w_g/kernel", "in out")},
    "HSMSSD": {"A": Row("A", "channel", "state_decay"), "D": Row("D", "1", "scale")},
    "EfficientViMBlock": {"alpha": Row("alpha", "side channel")},
    "EfficientViM*": {
        "weights": Row("weights", "layer", "scale"), "weights_dist": Row("weights_dist", "layer", "scale"),
    },
    "RotaryEmbeddingMixed": {"freqs": Row("freqs", "axis layer head dim", "frequencies")},
}  # fmt: skip

SIZES = {"CondConv2d": {"out": "out_channels", "h": "kernel_size.0", "w": "kernel_size.1"}}

_scales = (
    "gamma gamma_1 gamma_2 gamma1 gamma2 gamma3 gamma_xca ls1 ls2 layer_scale layer_scale_1 layer_scale_2 "
    "lambda_q1 lambda_k1 lambda_q2 lambda_k2"
)
_tokens = "cls_token cls_token1 cls_token2 cls_token3 cls_token4 cls_token_0 cls_token_1 dist_token reg_token latent"
_positions = "pos_embed pos_embed_0 pos_embed_1 patch_pos pos_embed_x pos_embed_y pos_embed_spatial pos_embed_temporal"
_maps = "pos_embed1 pos_embed2 pos_embed3 pos_embed_win pos_embed_window pixel_pos"

FREE: dict[str, tuple[str, str]] = {
    **dict.fromkeys(_scales.split(), CHANNEL_SCALE),
    **dict.fromkeys(_tokens.split(), TOKEN),
    **dict.fromkeys(_positions.split(), POSITIONS),
    **dict.fromkeys(_maps.split(), POSITION_MAP),
    **dict.fromkeys(["height_rel", "width_rel", "rel_pos_h", "rel_pos_w"], RELATIVE_DIM),
    "position_embedding_table": ("position_embeddings", "side position dim"),
    "relative_position_bias_table": RELATIVE_BIAS,
    **dict.fromkeys(["logit_scale", "temperature", "gating_param"], HEAD_SCALE),
    **dict.fromkeys(["lambda_a", "lambda_b", "skipinit_gain"], SCALAR),
    **dict.fromkeys(["q_bias", "v_bias", "mlp_bias"], ("bias", "out")),
}
