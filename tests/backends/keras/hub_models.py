"""Small configurations of keras_hub's models, for the measurement of its layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

# Most models take these words for their sizes; a model's own words are below.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocabulary_size", "vocab_size", "text_vocab_size"), 400),
    **dict.fromkeys(("num_layers", "encoder_num_layers", "decoder_num_layers", "num_layers_enc", "num_layers_dec"), 2),
    **dict.fromkeys(("num_heads", "num_query_heads", "num_attention_heads", "encoder_num_heads"), 4),
    **dict.fromkeys(("encoder_num_attention_heads", "decoder_num_attention_heads", "decoder_num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "encoder_num_key_value_heads", "decoder_num_key_value_heads"), 2),
    **dict.fromkeys(("hidden_dim", "hidden_size", "encoder_hidden_dim", "decoder_hidden_dim", "filter_dim"), 32),
    **dict.fromkeys(("intermediate_dim", "encoder_intermediate_dim", "decoder_intermediate_dim", "mlp_dim"), 48),
    **dict.fromkeys(("moe_intermediate_dim", "shared_expert_intermediate_dim", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("head_dim", "head_size", "encoder_head_dim", "decoder_head_dim"), 8),
    "encoder_layer_types": ["full_attention", "sliding_attention"],
    "decoder_layer_types": ["full_attention", "sliding_attention"],
    "embedding_dim": 16,
    "num_experts": 4,
    "top_k": 2,
    "image_shape": (32, 32, 3),
    "image_size": 32,
    "patch_size": 8,
}

TEXT = (
    "AlbertBackbone AlbertMaskedLM BartBackbone BertBackbone BertMaskedLM BertTextClassifier BloomBackbone "
    "BloomCausalLM DebertaV3Backbone DebertaV3MaskedLM DistilBertBackbone DistilBertMaskedLM EdRecBackbone "
    "ElectraBackbone ESMBackbone ESMMaskedPLM FNetBackbone FNetMaskedLM FalconBackbone FalconCausalLM GemmaBackbone "
    "GemmaCausalLM Gemma3Backbone Gemma3CausalLM Gemma4Backbone GPT2Backbone GPT2CausalLM GPTNeoXBackbone "
    "GPTNeoXCausalLM GptOssBackbone GptOssCausalLM LlamaBackbone LlamaCausalLM Llama3Backbone MistralBackbone "
    "MistralCausalLM MixtralBackbone MixtralCausalLM MoonshineBackbone OPTBackbone OPTCausalLM Phi3Backbone "
    "Phi3CausalLM QwenBackbone QwenCausalLM Qwen3Backbone Qwen3CausalLM Qwen3_5Backbone Qwen3_5MoeBackbone "
    "Qwen3MoeBackbone Qwen3MoeCausalLM QwenMoeBackbone QwenMoeCausalLM RobertaBackbone RobertaMaskedLM "
    "RobertaTextClassifier RoformerV2Backbone RoformerV2MaskedLM RWKV7Backbone RWKV7CausalLM SmolLM3Backbone "
    "T5Backbone T5GemmaBackbone T5Gemma2Backbone WhisperBackbone XLMRobertaBackbone XLMRobertaMaskedLM XLNetBackbone"
)

# What a model wants besides, or instead of, the sizes above.
OWN: dict[str, dict[str, Any]] = {
    "FalconBackbone": {"num_attention_heads": 4},
    "ESMBackbone": {"position_embedding_type": "absolute"},
    "SmolLM3Backbone": {
        "attention_bias": False, "attention_dropout": 0.0, "rope_layer_enabled_list": [True, False],
        "layer_types": ["attention"] * 2, "mlp_bias": False, "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": 64, "rope_theta": 10000.0, "partial_rotary_factor": 1.0,
    },
    "Qwen3_5Backbone": {
        "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    },
    "Qwen3_5MoeBackbone": {
        "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    },
    "Gemma4Backbone": {
        "enable_moe_block": True, "expert_intermediate_dim": 24, "num_experts_per_token": 2,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 400,
    },
    "Gemma3Backbone": {"use_post_ffw_norm": True, "use_post_attention_norm": True},
    "RWKV7Backbone": {"gate_lora": 8, "mv_lora": 4, "aaa_lora": 8, "decay_lora": 8, "hidden_size": 32, "head_size": 8},
    "T5GemmaBackbone": {"query_pre_attn_scalar": 8.0, "sliding_window": 4},
    "T5Gemma2Backbone": {"query_pre_attn_scalar": 8.0, "sliding_window": 4},
    "WhisperBackbone": {"max_encoder_sequence_length": 32, "max_decoder_sequence_length": 16},
}  # fmt: skip


def build(name: str, /, **own: Any) -> Any:
    """Build a backbone of keras_hub by its name, with small sizes; a task around its backbone."""
    import keras_hub

    kind = getattr(keras_hub.models, name, None) or _unlisted()[name]
    words = inspect.signature(kind.__init__).parameters
    if "backbone" in words and issubclass(kind, keras_hub.models.Task):
        more = {"num_classes": 3} if "num_classes" in words else {}
        return kind(backbone=build(kind.backbone_cls.__name__), preprocessor=None, **more)
    sizes = {word: size for word, size in SIZES.items() if word in words}
    return kind(**sizes | OWN.get(name, {}) | own)


def _unlisted() -> dict[str, Any]:
    # What keras_hub.models doesn't have, and its own models do.
    from keras_hub.src.models.rqvae.rqvae_backbone import RQVAEBackbone
    from keras_hub.src.models.vae.vae_backbone import VAEBackbone

    return {"RQVAEBackbone": RQVAEBackbone, "VAEBackbone": VAEBackbone}


def _encoders(prefix: str) -> dict[str, Any]:
    text = {"max_sequence_length": 16, "embedding_dim": 32}
    return {
        "vision_encoder": build(f"{prefix}VisionEncoder"),
        "text_encoder": build(f"{prefix}TextEncoder", **text),
    }


def _resnet(**own: Any) -> Any:
    return build(
        "ResNetBackbone", input_conv_filters=[8], input_conv_kernel_sizes=[7], stackwise_num_filters=[64, 64, 64, 64],
        stackwise_num_blocks=[1, 1, 1, 1], stackwise_num_strides=[1, 2, 2, 2],
        **{"block_type": "bottleneck_block"} | own,
    )  # fmt: skip


def _vit() -> Any:
    return build("ViTBackbone")


def _mit() -> Any:
    return build(
        "MiTBackbone", num_layers=4, hidden_dims=[8, 16, 24, 32], layerwise_depths=[1, 1, 1, 1],
        layerwise_num_heads=[1, 2, 2, 4], layerwise_sr_ratios=[8, 4, 2, 1], layerwise_patch_sizes=[7, 3, 3, 3],
        layerwise_strides=[4, 2, 2, 2], max_drop_path_rate=0.1, image_shape=(64, 64, 3),
    )  # fmt: skip


def _hgnet(**own: Any) -> Any:
    return build(
        "HGNetV2Backbone", depths=[1, 1], embedding_size=8, hidden_sizes=[16, 16], stem_channels=[3, 8, 8],
        hidden_act="relu", use_learnable_affine_block=True,
        stackwise_stage_filters=[(8, 8, 16, 1, 1, 3), (16, 8, 16, 1, 1, 3)], apply_downsample=[False, True],
        use_lightweight_conv_block=[False, True], **own,
    )  # fmt: skip


def _dfine() -> Any:
    stages = [(8, 8, 16, 1, 1, 3), (16, 8, 32, 1, 1, 3), (32, 16, 32, 1, 1, 3), (32, 16, 32, 1, 1, 3)]
    backbone = build(
        "HGNetV2Backbone", depths=[1, 1, 1, 1], embedding_size=8, hidden_sizes=[16, 32, 32, 32],
        stem_channels=[3, 8, 8], hidden_act="relu", use_learnable_affine_block=True, stackwise_stage_filters=stages,
        apply_downsample=[False, True, True, True], use_lightweight_conv_block=[False, False, True, True],
        image_shape=(None, None, 3), out_features=["stage3", "stage4"],
    )  # fmt: skip
    return build(
        "DFineBackbone", backbone=backbone, decoder_in_channels=[16, 16], encoder_hidden_dim=16, num_labels=5,
        num_denoising=0, learn_initial_query=True, num_queries=6, anchor_image_size=(64, 64), feat_strides=[16, 32],
        num_feature_levels=2, hidden_dim=16, encoder_in_channels=[32, 32], encode_proj_layers=[1],
        num_attention_heads=2, encoder_ffn_dim=16, num_encoder_layers=1, hidden_expansion=0.5, depth_multiplier=0.5,
        eval_idx=-1, num_decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=16, decoder_n_points=[2, 2],
        lqe_hidden_dim=8, num_lqe_layers=2, out_features=["stage3", "stage4"], image_shape=(None, None, 3), seed=0,
    )  # fmt: skip


def _sam() -> Any:
    import keras_hub

    encoder = build(
        "ViTDetBackbone", hidden_size=16, num_layers=2, intermediate_dim=32, num_heads=2,
        global_attention_layer_indices=[1], patch_size=8, num_output_channels=8, window_size=2, image_shape=(64, 64, 3),
    )  # fmt: skip
    prompts = keras_hub.layers.SAMPromptEncoder(
        hidden_size=8, image_embedding_size=(8, 8), input_image_size=(64, 64), mask_in_channels=16
    )
    masks = keras_hub.layers.SAMMaskDecoder(
        num_layers=1, hidden_size=8, intermediate_dim=16, num_heads=2, embedding_dim=8, num_multimask_outputs=3,
        iou_head_depth=2, iou_head_hidden_dim=8,
    )  # fmt: skip
    return build("SAMBackbone", image_encoder=encoder, prompt_encoder=prompts, mask_decoder=masks)


def _sam3() -> Any:
    from keras_hub import layers

    common = {"num_layers": 1, "hidden_dim": 32, "intermediate_dim": 48, "num_heads": 2}
    images = {"image_shape": (56, 56, 3), "patch_size": 14}
    return build(
        "SAM3PromptableConceptBackbone",
        vision_encoder=layers.SAM3VisionEncoder(
            **common | images | {"num_layers": 2}, fpn_hidden_dim=32, fpn_scale_factors=[4.0, 2.0, 1.0, 0.5],
            pretrain_image_shape=(28, 28, 3), window_size=2, global_attn_indexes=[1],
        ),
        text_encoder=layers.SAM3TextEncoder(**common, vocabulary_size=40, embedding_dim=32),
        geometry_encoder=layers.SAM3GeometryEncoder(**common, roi_size=7),
        detr_encoder=layers.SAM3DetrEncoder(**common),
        detr_decoder=layers.SAM3DetrDecoder(**common, **images, num_queries=10),
        mask_decoder=layers.SAM3MaskDecoder(num_upsampling_stages=3, hidden_dim=32, num_heads=2),
    )  # fmt: skip


def _blip2() -> Any:
    from keras_hub.src.models.blip2.blip2_custom_opt import BLIP2CustomOPT
    from keras_hub.src.models.blip2.blip2_qformer import BLIP2QFormer
    from keras_hub.src.models.blip2.blip2_vision_encoder import BLIP2VisionEncoder

    common = {"num_layers": 2, "num_heads": 2, "hidden_dim": 32, "intermediate_dim": 48}
    return build(
        "BLIP2Backbone",
        vision_encoder=BLIP2VisionEncoder(
            **common, image_size=32, patch_size=8, use_patch_bias=True, use_class_token=True, use_mha_bias=True,
            use_mlp_bias=True, dropout_rate=0.0, layer_norm_epsilon=1e-6, initializer_range=0.02,
        ),
        qformer=BLIP2QFormer(
            **common, num_query_tokens=4, vision_dim=32, cross_attention_frequency=2, dropout=0.0,
            layer_norm_epsilon=1e-6,
        ),
        language_model=BLIP2CustomOPT(
            **common, vocabulary_size=40, num_query_tokens=4, dropout=0.0, max_sequence_length=16,
            qformer_hidden_dim=32,
        ),
    )  # fmt: skip


def _pali() -> Any:
    return build(
        "PaliGemmaBackbone", vit_patch_size=8, vit_num_heads=2, vit_hidden_dim=16, vit_intermediate_dim=32,
        vit_num_layers=1, vit_pooling=None,
    )  # fmt: skip


def _gemma3_with_images() -> Any:
    from keras_hub.src.models.gemma3.gemma3_vision_encoder import Gemma3VisionEncoder

    vision = Gemma3VisionEncoder(
        image_size=32, patch_size=8, num_heads=2, hidden_dim=16, num_layers=1, intermediate_dim=32, output_dim=32,
        pool_size=2,
    )  # fmt: skip
    return build("Gemma3Backbone", vision_encoder=vision)


def _gemma4_with_images() -> Any:
    from keras_hub.src.models.gemma4.gemma4_audio_encoder import Gemma4AudioEncoder
    from keras_hub.src.models.gemma4.gemma4_vision_encoder import Gemma4VisionEncoder

    vision = Gemma4VisionEncoder(
        image_size=32, patch_size=8, num_heads=2, hidden_dim=16, num_layers=1, intermediate_dim=32, output_dim=32,
        head_dim=8, pool_size=2, position_embedding_size=16, standardize=True,
    )  # fmt: skip
    audio = Gemma4AudioEncoder(
        input_feat_size=16, hidden_size=16, num_heads=2, num_layers=1, sscp_conv_channels=(8, 4), output_proj_dims=16,
        output_dim=32,
    )  # fmt: skip
    return build("Gemma4Backbone", vision_encoder=vision, audio_encoder=audio, num_audio_tokens_per_clip=4)


def _gemma3n() -> Any:
    from keras_hub.src.models.gemma3n.gemma3n_audio_encoder import Gemma3nAudioEncoder

    audio = Gemma3nAudioEncoder(
        hidden_size=8, input_feat_size=32, sscp_conv_channel_size=[4, 8], sscp_conv_kernel_size=[(3, 3), (3, 3)],
        sscp_conv_stride_size=[(2, 2), (2, 2)], sscp_conv_group_norm_eps=1e-5, num_hidden_layers=1, rms_norm_eps=1e-6,
        gradient_clipping=1.0, residual_weight=0.5, num_attention_heads=1, attention_chunk_size=4,
        num_attention_context_right=5, num_attention_context_left=5, attention_logit_cap=50.0, conv_kernel_size=5,
        reduction_factor=1,
    )  # fmt: skip
    return build(
        "Gemma3nBackbone", text_vocab_size=400, text_hidden_size=8, num_hidden_layers=1, pad_token_id=0,
        num_attention_heads=1, num_key_value_heads=1, head_dim=8, intermediate_size=[16],
        hidden_activation="gelu_approximate", layer_types=["full_attention"], sliding_window=4, rope_theta=10000.0,
        max_position_embeddings=16, vocab_size_per_layer_input=50, hidden_size_per_layer_input=2, altup_num_inputs=2,
        laurel_rank=1, vision_encoder_config=_mobilenet5().get_config(), vision_hidden_size=16,
        audio_encoder_config=audio.get_config(), audio_hidden_size=8,
    )  # fmt: skip


def _mobilenet5() -> Any:
    from keras_hub.src.models.mobilenetv5.mobilenetv5_builder import convert_arch_def_to_stackwise

    blocks = convert_arch_def_to_stackwise(
        [["er_r1_k3_s1_e1_c16"], ["uir_r1_a3_k3_s2_e2_c24"], ["mqa_r1_k3_h2_s1_d8_c24"]]
    )
    return build(
        "MobileNetV5Backbone", **blocks, num_features=16, layer_scale_init_value=1e-5, use_msfa=False,
        image_shape=(64, 64, 3),
    )  # fmt: skip


def _stable_diffusion() -> Any:
    text = {"max_sequence_length": 16, "embedding_dim": 32, "intermediate_output_index": 0}
    return build(
        "StableDiffusion3Backbone", mmdit_patch_size=2, mmdit_hidden_dim=32, mmdit_num_layers=2, mmdit_num_heads=2,
        mmdit_position_size=16, mmdit_qk_norm="rms_norm", mmdit_dual_attention_indices=(0,), vae=_vae(),
        clip_l=build("CLIPTextEncoder", **text), clip_g=build("CLIPTextEncoder", **text, name="clip_g"),
        latent_channels=16, image_shape=(64, 64, 3), name="sd3",
    )  # fmt: skip


def _vae() -> Any:
    return build(
        "VAEBackbone", encoder_num_filters=[32, 32, 32, 32], encoder_num_blocks=[1, 1, 1, 1],
        decoder_num_filters=[32, 32, 32, 32], decoder_num_blocks=[1, 1, 1, 1], name="vae",
    )  # fmt: skip


def _depth_anything() -> Any:
    encoder = build(
        "DINOV2Backbone", num_layers=4, image_shape=(112, 112, 3), patch_size=14, position_embedding_shape=(112, 112)
    )
    return build(
        "DepthAnythingBackbone", image_encoder=encoder, reassemble_factors=[4, 2, 1, 0.5],
        neck_hidden_dims=[8, 8, 16, 16], fusion_hidden_dim=16, head_hidden_dim=8, head_in_index=-1,
        feature_keys=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip


def _mobilenet() -> Any:
    return build(
        "MobileNetBackbone", stackwise_expansion=[[16, 24], [24]], stackwise_num_blocks=[2, 1],
        stackwise_num_filters=[[8, 8], [16]], stackwise_kernel_size=[[3, 3], [5]], stackwise_num_strides=[[2, 1], [2]],
        stackwise_se_ratio=[[None, 0.25], [0.25]], stackwise_activation=[["relu", "relu"], ["hard_swish"]],
        stackwise_padding=[[1, 1], [2]], output_num_filters=32, input_activation="hard_swish",
        output_activation="hard_swish", input_num_filters=8, depthwise_filters=8, depthwise_stride=2,
        depthwise_residual=False, squeeze_and_excite=0.5, last_layer_filter=32,
    )  # fmt: skip


def _efficientnet() -> Any:
    return build(
        "EfficientNetBackbone", stackwise_kernel_sizes=[3, 3], stackwise_num_repeats=[1, 2],
        stackwise_input_filters=[8, 8], stackwise_output_filters=[8, 16], stackwise_expansion_ratios=[1, 4],
        stackwise_strides=[1, 2], stackwise_squeeze_and_excite_ratios=[0.25, 0.25],
        stackwise_block_types=["fused", "unfused"], width_coefficient=1.0, depth_coefficient=1.0,
        image_shape=(32, 32, 3),
    )  # fmt: skip


OTHERS: dict[str, Callable[[], Any]] = {
    "BASNetBackbone": lambda: build(
        "BASNetBackbone", image_encoder=_resnet(), num_classes=1, projection_filters=8,
        image_shape=(64, 64, 3),
    ),
    "BLIP2Backbone": _blip2,
    "CLIPBackbone": lambda: build("CLIPBackbone", **_encoders("CLIP"), projection_dim=16),
    "CSPNetBackbone": lambda: build(
        "CSPNetBackbone", stem_filters=8, stem_kernel_size=3, stem_strides=1, stackwise_depth=[1, 2],
        stackwise_strides=[1, 2], stackwise_num_filters=[8, 16], block_type="dark_block", stage_type="dark",
    ),
    "DFineBackbone": _dfine,
    "DeepLabV3Backbone": lambda: build(
        "DeepLabV3Backbone", image_encoder=_resnet(image_shape=(64, 64, 3)), spatial_pyramid_pooling_key="P5",
        upsampling_size=8, dilation_rates=[6, 12], low_level_feature_key="P2", projection_filters=8,
        image_shape=(64, 64, 3),
    ),
    "DeiTBackbone": lambda: build("DeiTBackbone"),
    "DenseNetBackbone": lambda: build("DenseNetBackbone", stackwise_num_repeats=[1, 2], growth_rate=4),
    "DepthAnythingBackbone": _depth_anything,
    "DINOV2Backbone": lambda: build("DINOV2Backbone", num_register_tokens=2, position_embedding_shape=(64, 64)),
    "DINOV3Backbone": lambda: build("DINOV3Backbone"),
    "EfficientNetBackbone": _efficientnet,
    "FluxBackbone": lambda: build(
        "FluxBackbone", input_channels=8, hidden_size=32, mlp_ratio=2.0, num_heads=2, depth=1, depth_single_blocks=1,
        axes_dim=[4, 6, 6], theta=10_000, use_bias=True, guidance_embed=True, image_shape=(8, 8), text_shape=(8, 8),
        image_ids_shape=(8, 3), text_ids_shape=(8, 3), y_shape=(16,),
    ),
    "Gemma3Backbone with images": _gemma3_with_images,
    "Gemma3nBackbone": _gemma3n,
    "Gemma4Backbone with images and audio": _gemma4_with_images,
    "HGNetV2Backbone": _hgnet,
    "MetaCLIP2Backbone": lambda: build("MetaCLIP2Backbone", **_encoders("MetaCLIP2"), projection_dim=16),
    "MiTBackbone": _mit,
    "MobileNetBackbone": _mobilenet,
    "MobileNetV5Backbone": _mobilenet5,
    "PaliGemmaBackbone": _pali,
    "PARSeqBackbone": lambda: build(
        "PARSeqBackbone", image_encoder=_vit(), max_label_length=6, decoder_hidden_dim=32, num_decoder_layers=1,
        num_decoder_heads=2, decoder_mlp_dim=48,
    ),
    "ResNetBackbone": lambda: _resnet(block_type="bottleneck_block_vd", use_pre_activation=False),
    "RetinaNetBackbone": lambda: build(
        "RetinaNetBackbone", image_encoder=_resnet(image_shape=(64, 64, 3)), min_level=3, max_level=7, use_p5=False,
        image_shape=(64, 64, 3),
    ),
    "RQVAEBackbone": lambda: build(
        "RQVAEBackbone", input_dim=16, encoder_layer_dims=[16], output_dim=8, decoder_layer_dims=[16],
        num_embeddings=10, num_quantizers=2,
    ),
    "SAMBackbone": _sam,
    "SAM3PromptableConceptBackbone": _sam3,
    "SegFormerBackbone": lambda: build("SegFormerBackbone", image_encoder=_mit(), projection_filters=8),
    "SigLIPBackbone": lambda: build("SigLIPBackbone", **_encoders("SigLIP")),
    "StableDiffusion3Backbone": _stable_diffusion,
    "SwinTransformerBackbone": lambda: build(
        "SwinTransformerBackbone", image_shape=(64, 64, 3), embed_dim=8, depths=(1, 2), num_heads=(2, 2),
        window_size=4,
    ),
    "VAEBackbone": _vae,
    "VGGBackbone": lambda: build(
        "VGGBackbone", stackwise_num_repeats=[1, 1], stackwise_num_filters=[8, 8]
    ),
    "VideoPrismBackbone": lambda: build(
        "VideoPrismBackbone", num_frames=2, num_spatial_layers=1, num_temporal_layers=1, num_auxiliary_layers=1,
        num_text_layers=1,
    ),
    "ViTBackbone": _vit,
    "ViTImageClassifier": lambda: build("ViTImageClassifier"),
    "ViTDetBackbone": lambda: build(
        "ViTDetBackbone", num_layers=2, hidden_size=16, intermediate_dim=32, num_heads=2,
        global_attention_layer_indices=[1], num_output_channels=8, window_size=2,
    ),
    "XceptionBackbone": lambda: build(
        "XceptionBackbone", stackwise_conv_filters=[[8, 16], [16, 16]], stackwise_pooling=[True, False]
    ),
}  # fmt: skip

MODELS: dict[str, Callable[[], Any]] = {name: lambda name=name: build(name) for name in TEXT.split()} | OTHERS
