"""Layers of Hugging Face transformers 5.23, and the arrays that its models hold by themselves.

Norms that multiply by ``1 + weight`` (Gemma's, Qwen3-Next's) have the role of the others: a scale by channel.
"""

from __future__ import annotations

from xweights_torch.tables import Row
from xweights_torch.tables.common import (
    BETA,
    BIAS,
    CHANNEL_SCALE,
    GAMMA,
    HEAD_SCALE,
    LAYER_NORM,
    POSITION_MAP,
    POSITIONS,
    RELATIVE_BIAS,
    RELATIVE_DIM,
    RMS_NORM,
    ROUTER,
    SCALAR,
    STATISTICS,
    TOKEN,
    expert_bias,
    expert_kernel,
)

_TRANSPOSED_EXPERTS = {
    "gate_up_proj": expert_kernel("gate_up_proj", transposed=True),
    "down_proj": expert_kernel("down_proj", transposed=True),
    "gate_up_proj_bias": expert_bias("gate_up_proj_bias"),
    "down_proj_bias": expert_bias("down_proj_bias"),
}
_EXPERTS = {
    **{name: expert_kernel(name) for name in ("gate_up_proj", "up_proj", "gate_proj", "down_proj")},
    "gate_up_proj_bias": expert_bias("gate_up_proj_bias"),
    "down_proj_bias": expert_bias("down_proj_bias"),
}
_EXPERT_MATRIX = {"weight": Row("kernel", "expert out in -> expert in out", outputs=("expert", "out"))}
_SNAKE = {"alpha": Row("alpha", "channel | 1 channel 1"), "beta": Row("beta", "channel | 1 channel 1")}
_STATE_SPACE = {
    "A_log": Row("A_log", "head | channel state | 1 1 head 1 | head channel state", "state_decay"),
    "D": Row("D", "channel | head channel", "scale"),
    "dt_bias": Row("dt_bias", "channel", "bias"),
    "dt_proj_bias": Row("dt_proj/bias", "head out"),
    "x_proj_weight": Row("x_proj/kernel", "head out in -> head in out", outputs=("head", "out")),
    "dt_proj_weight": Row("dt_proj/kernel", "head out in -> head in out", outputs=("head", "out")),
}

LAYERS: dict[str, dict[str, Row]] = {
    "Conv1D": {"weight": Row("kernel", "in out"), "bias": BIAS},
    "*RMSNorm *RmsNorm *RMSNormGated T5LayerNorm *T5LayerNorm": RMS_NORM,
    "MT5LayerNorm UMT5LayerNorm UdopLayerNorm Pop2PianoLayerNorm Pix2StructLayerNorm SwitchTransformersLayerNorm "
    "LongT5LayerNorm ImageGPTLayerNorm CpmAntLayerNorm": RMS_NORM,
    "IntLayerNorm": LAYER_NORM | {"shift": Row("shift", "1", "quantization")},
    "*LayerNorm *LayerNorm2d NoNorm *CumulativeGroupNorm": LAYER_NORM | {"gamma": GAMMA},
    "*FrozenBatchNorm2d": LAYER_NORM | STATISTICS,
    "*LayerScale": {"scale": Row("scale", "channel"), "lambda1": Row("lambda1", "channel", "scale")},
    "*GRN": {"weight": GAMMA, "bias": BETA},
    # gpt-oss, Llama 4 and Aria multiply from the right, the others as torch's linear layers do.
    "GptOssExperts OpenAIPrivacyFilterExperts Llama4TextExperts AriaExperts": _TRANSPOSED_EXPERTS,
    "*Experts": _EXPERTS | _EXPERT_MATRIX,
    "*Router *TopkRouter *TopKRouter": ROUTER
    | {
        "scale": Row("scale", "channel"),
        "per_expert_scale": Row("per_expert_scale", "expert", "scale"),
        "e_score_correction_bias": Row("e_score_correction_bias", "expert", "bias"),
        "router_states_scale": Row("router_states_scale", "channel", "scale"),
        "global_scale": Row("global_scale", "channel", "scale"),
    },
    "*MoeStatics": {"e_score_correction_bias": Row("e_score_correction_bias", "group expert", "bias")},
    "JetMoeMoA JetMoeMoE": {"bias": BIAS},
    # Experts one below the other.
    "DbrxExpertGLU": {
        "w1": Row("w1/kernel", "(expert out) in -> expert in out", outputs=("expert", "out")),
        "v1": Row("v1/kernel", "(expert out) in -> expert in out", outputs=("expert", "out")),
        "w2": Row("w2/kernel", "(expert in) out -> expert in out", outputs=("expert", "out")),
    },
    "*FlexibleLinear": {"weight": Row("kernel", "layer out in -> layer in out", outputs=("layer", "out"))},
    "CsmCodebooksHead": {"weight": Row("kernel", "layer in out", outputs=("layer", "out"))},
    "GroupedLinearLayer": {"weight": Row("kernel", "group in out", outputs=("group", "out")), "bias": BIAS},
    # I-BERT's copies of its weights as integers, and what it scales them with.
    "QuantLinear": {
        "weight": Row("kernel", "out in -> in out"),
        "bias": BIAS,
        "weight_integer": Row("weight_integer", "out in -> in out", "quantization"),
        "bias_integer": Row("bias_integer", "out", "quantization"),
        "fc_scaling_factor": Row("fc_scaling_factor", "out", "quantization"),
    },
    "QuantEmbedding": {
        "weight": Row("embeddings", "vocab dim"),
        "weight_integer": Row("weight_integer", "vocab dim", "quantization"),
        "weight_scaling_factor": Row("weight_scaling_factor", "1", "quantization"),
    },
    "QuantAct": {
        "x_min": Row("x_min", "1", "range"),
        "x_max": Row("x_max", "1", "range"),
        "act_scaling_factor": Row("act_scaling_factor", "1", "quantization"),
    },
    # Codebooks that are averages of what was coded with them.
    "*EuclideanCodebook": {
        "embed_sum": Row("embed_sum", "vocab dim", "moving_sum"),
        "cluster_usage": Row("cluster_usage", "vocab", "moving_count"),
        "initialized": Row("initialized", "1", "count"),
    },
    "*FormerLoss": {"empty_weight": Row("empty_weight", "out", "scale")},
    "SpeechT5ScaledPositionalEncoding": {"alpha": Row("alpha", "", "scale")},
    "*ClippableLinear": {
        name: Row(name, "", "range") for name in ("input_min", "input_max", "output_min", "output_max")
    },
    "XCLIPPromptGenerator": {"alpha": Row("alpha", "channel", "scale")},
    "AMSoftmaxLoss": {"weight": Row("kernel", "in out")},
    "SinusoidalPositionalEmbedding": {"weight": Row("embeddings", "vocab dim")},
    "SeparableConv1D": {"bias": Row("bias", "out 1")},
    "*SnakeBeta Snake1d": _SNAKE,
    "*MambaMixer *Mamba2Mixer *Mixer *MambaLayer *GatedDeltaNet *ForgetGate": _STATE_SPACE,
    "RecurrentGemmaRglru": {
        "recurrent_param": Row("recurrent_param", "channel", "state_decay"),
        "input_gate_weight": Row("input_gate/kernel", "head in out", outputs=("head", "out")),
        "input_gate_bias": Row("input_gate/bias", "head out"),
        "recurrent_gate_weight": Row("recurrent_gate/kernel", "head in out", outputs=("head", "out")),
        "recurrent_gate_bias": Row("recurrent_gate/bias", "head out"),
    },
    "Rwkv*": {
        "time_decay": Row("time_decay", "channel", "state_decay"),
        "time_first": Row("time_first", "channel", "scale"),
        **{f"time_mix_{to}": Row(f"time_mix_{to}", "1 1 channel", "scale") for to in ("key", "value", "receptance")},
    },
    "XLNetRelativeAttention": {
        **{name: Row(f"{name}/kernel", "in head key") for name in ("q", "k", "r")},
        "v": Row("v/kernel", "in head value"),
        "o": Row("o/kernel", "out head value -> head value out"),
        **{name: Row(name, "head dim", "bias") for name in ("r_r_bias", "r_s_bias", "r_w_bias")},
        "seg_embed": Row("seg_embed", "vocab head dim", "embeddings"),
    },
    "FunnelRelMultiheadAttention": {
        "r_kernel": Row("r/kernel", "in head key"),
        **{name: Row(name, "head dim", "bias") for name in ("r_r_bias", "r_s_bias", "r_w_bias")},
        "seg_embed": Row("seg_embed", "vocab head dim", "embeddings"),
    },
    "*SamHQPositionalEmbedding *SamPositionalEmbedding *Sam*PositionalEmbedding": {
        "positional_embedding": Row("positional_embedding", "in out", "frequencies"),
    },
    "SwiftFormerEfficientAdditiveAttention": {"w_g": Row("w_g/kernel", "in out")},
    "Levit*Attention* *LevitAttention*": {
        "attention_biases": Row("attention_biases", "head position -> position head", "relative_position_bias")
    },
    "NeighborhoodAttention": {"rpb": Row("rpb", "head h w -> h w head", "relative_position_bias")},
    "CpmAntSegmentPositionEmbedding": {
        "relative_attention_bias": Row("relative_attention_bias", "position head", "relative_position_bias")
    },
    "*GumbelVectorQuantizer": {"codevectors": Row("codevectors", "batch vocab dim", "embeddings")},
    "*MultiModalProjector": {"mm_input_projection_weight": Row("mm_input_projection/kernel", "in out")},
    "GPTNeoXJapaneseAttention": {"dense_bias": Row("dense/bias", "out")},
    "VitsElementwiseAffine": {
        "translate": Row("translate", "channel 1", "bias"),
        "log_scale": Row("log_scale", "channel 1", "scale"),
    },
    "VitsAttention": {
        "emb_rel_k": Row("emb_rel_k", "batch position dim", "position_embeddings"),
        "emb_rel_v": Row("emb_rel_v", "batch position dim", "position_embeddings"),
    },
    "Kimi_K25VisionPositionEmbeddings": {"position_embeddings": Row("position_embeddings", "h w dim")},
    "Sam3LiteTextTextPositionEmbedding": {"position_embedding": Row("position_embeddings", "1 1 position dim")},
    "*LearnableAffineBlock": {"scale": Row("scale", "1"), "bias": Row("bias", "1")},
    "*MemoryFuserCXBlock": {"scale": Row("scale", "channel")},
    "*HyperConnection *HyperHead": {
        "fn": Row("fn/kernel", "out in -> in out"),
        "hc_fn": Row("hc_fn/kernel", "out in -> in out"),
        "base": Row("base", "out", "bias"),
        "hc_base": Row("hc_base", "out", "bias"),
        "scale": Row("scale", "channel"),
        "hc_scale": Row("hc_scale", "channel", "scale"),
    },
    "DinatLayer": {"layer_scale_parameters": Row("layer_scale_parameters", "side channel", "scale")},
    "XCLIPModel": {"prompts_visual_projection": Row("prompts_visual_projection/kernel", "in out")},
    "OmDetTurboLanguageBackbone": {"text_projection": Row("text_projection/kernel", "in out")},
    "WavLMAttention": {"gru_rel_pos_const": Row("gru_rel_pos_const", "1 head 1 1", "scale")},
    # An output layer's bias beside a kernel that it shares with the embeddings.
    "*LMHead *LMPredictionHead *OnlyLMHead *MLMHead *EmbeddingDecoder EntityPredictionHead *PredictionHeadTransform": {
        "bias": BIAS
    },
}

SIZES = {"DbrxExpertGLU": {"expert": "moe_num_experts"}}

_scales = (
    "lambda1 lambda_1 lambda_2 gamma gamma_1 gamma_2 layer_scale layer_scale_1 layer_scale_2 layer_scale_parameter "
    "ffn_gamma vision_param text_param alpha_cross_attn alpha_dense per_dim_scale scaling correct_output_scale "
    "residual_scale hidden_states_scale input_hidden_states_scale input_residual post_attention_residual "
    "lambda_q1 lambda_k1 lambda_q2 lambda_k2"
)
_scalars = (
    "logit_scale_a logit_scale_t temperature scaled_factor pos_emb_alpha pos_emb_alpha_char global_scale reg_scale up "
    "gate_attn gate_ffn gate_attention gate_ffw cross_attn_attn_gate cross_attn_mlp_gate high_res_vision_alpha "
    "latent_scaling_factor closure_weight log_k lambdas"
)
_tokens = (
    "cls_token mask_token distillation_token detection_tokens register_tokens query_tokens group_token "
    "class_embedding cls_emb mask_emb masked_spec_embed image_newline view_separator no_memory_embedding "
    "no_object_pointer occlusion_spatial_embedding_parameter probe latents latents_1d latents_2d latent_query query "
    "pooling_attention_query bos_latent eoi_embedding silence_embeds image_begin image_end image_sep text_prompt "
    "segment_token_input segment_token_prompt type_token_semantic type_token_instance cls_register_token dummy_node "
    "global_img_feature_extensor sub_img_feature_extensor img_temporal_embedding visual_segment_embedding padding mask "
    "label_embeddings_concat z_L_init"
)
_positions = (
    "position_embeddings position_embedding positional_embedding "
    "position_enc decoder_position_embeddings pos_embedding "
    "decoder_pos_embed time_embeddings positional_embedding_vlm cls_position_embedding image_positions embedding "
    "no_memory_positional_encoding class_pos_emb"
)

FREE: dict[str, tuple[str, str]] = {
    **dict.fromkeys(_scales.split(), CHANNEL_SCALE),
    **dict.fromkeys(_scalars.split(), SCALAR),
    **dict.fromkeys(_tokens.split(), TOKEN),
    **dict.fromkeys(_positions.split(), POSITIONS),
    # Images that prompt: frames of channels, height and width.
    **dict.fromkeys(
        ["pad_up", "pad_down", "pad_left", "pad_right"],
        ("token", "batch t channel h w -> batch t h w channel"),
    ),
    "memory_temporal_positional_encoding": ("position_embeddings", "position 1 1 dim"),
    "mid_position_embeddings": ("position_embeddings", "layer 1 position dim"),
    "mask_tokens": ("token", "token 1 1 dim"),
    "pos_embed": (POSITIONS[0], f"{POSITIONS[1]} | {POSITION_MAP[1]}"),
    "pos_embed_window": POSITION_MAP,
    "position_embedding_table": ("position_embeddings", "side position dim"),
    "position_bias": ("position_embeddings", "position dim"),
    "rel_pos_h": RELATIVE_DIM,
    "rel_pos_w": RELATIVE_DIM,
    "relative_position_bias_table": RELATIVE_BIAS,
    "level_embed": ("embeddings", "vocab dim"),
    "layer_weights": ("scale", "layer"),
    "esm_s_combine": ("scale", "layer"),
    "logit_scale": HEAD_SCALE,
    "logit_bias": ("bias", "| out"),
    "final_logits_bias": ("bias", "1 out"),
    "sinks": ("bias", "head"),
    "head_weights": ("scale", "head"),
    **dict.fromkeys(["pos_bias_u", "pos_bias_v", "bias_u", "bias_v"], ("bias", "head dim")),
    **dict.fromkeys(["q_bias", "v_bias"], ("bias", "out | 1 1 out")),
    **dict.fromkeys(["output_weights", "column_output_weights"], ("kernel", "in")),
    **dict.fromkeys(["output_bias", "column_output_bias", "segmentation_bias"], ("bias", "| out")),
    **dict.fromkeys(["e_score_correction_bias", "expert_bias"], ("bias", "expert")),
    **dict.fromkeys(["hidden_states_bias", "residual_bias", "input_hidden_states_bias"], ("bias", "channel")),
}
