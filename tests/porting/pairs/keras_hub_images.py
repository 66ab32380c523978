"""Image models: keras_hub's backbones against timm, torchvision and transformers.

keras_hub's own tables of settings and its own converters are used where it has them (those of DeiT, DINOv2 and Swin
read names that transformers 5 has changed); sizes are small.
"""

import importlib
from dataclasses import replace

import keras
import numpy as np
from torch import nn

from pairs.hub import HUB, backbone, hub
from pairs.keras_applications import timm_model
from pairs.making import Twins, channels_first, converter, image, load_torchvision, pair

TIMM = ("keras_hub", "timm")


def from_timm(kind, architecture, size, n=2, **more):
    """A backbone as keras_hub makes it of timm's name of an architecture, and timm's model without its head."""
    module, settings = f"keras_hub.src.utils.timm.convert_{kind}", {"architecture": architecture}
    made = importlib.import_module(module)
    ours = made.backbone_cls(**made.convert_backbone_config(settings), image_shape=(size, size, 3))
    theirs = timm_model(architecture, num_classes=0, global_pool="", **more)
    return Twins(ours, theirs, image(size, n=n), convert=converter(module, settings))


@pair("keras_hub ResNet26", "timm resnet26", needs=TIMM)
def hub_resnet26():
    return from_timm("resnet", "resnet26", 64)


@pair("keras_hub ResNet50", "timm resnet50", needs=TIMM)
def hub_resnet50():
    return from_timm("resnet", "resnet50", 64, n=1)


@pair("keras_hub ResNetV2-50", "timm resnetv2_50", needs=TIMM)
def hub_resnetv2_50():
    return from_timm("resnet", "resnetv2_50", 64, n=1)


@pair("keras_hub ResNet18", "torchvision resnet18", needs=("keras_hub", "torchvision"))
def hub_resnet18_torchvision():
    theirs = load_torchvision().models.resnet18(weights=None)
    theirs = nn.Sequential(*list(theirs.children())[:-2])
    return Twins(from_timm("resnet", "resnet18", 64).keras, theirs, image(64))


@pair("keras_hub DenseNet121", "timm densenet121", needs=TIMM)
def hub_densenet121():
    """Of an odd size, where padding "same" is padding on all sides."""
    return from_timm("densenet", "densenet121", 65, n=1)


@pair("keras_hub DenseNet, even size", "torchvision DenseNet", needs=("keras_hub", "torchvision"), different="padd")
def hub_densenet_narrow():
    """Of an even size keras_hub pads more below and at the right than above and at the left."""
    densenet = load_torchvision().models.densenet.DenseNet
    ours = backbone("DenseNet")(stackwise_num_repeats=[2, 2, 2, 2], growth_rate=8, image_shape=(64, 64, 3))
    theirs = densenet(growth_rate=8, block_config=(2, 2, 2, 2), num_init_features=64).features
    return Twins(ours, theirs, image(64), keras_outputs=lambda a: a[:1])


@pair("keras_hub CSPDarkNet53", "timm cspdarknet53", needs=TIMM)
def hub_cspdarknet53():
    return from_timm("cspnet", "cspdarknet53", 64, n=1)


@pair("keras_hub DarkNet53", "timm darknet53", needs=TIMM)
def hub_darknet53():
    return from_timm("cspnet", "darknet53", 64, n=1)


@pair("keras_hub CSPResNeXt50", "timm cspresnext50", needs=TIMM)
def hub_cspresnext50():
    return from_timm("cspnet", "cspresnext50", 64, n=1)


@pair("keras_hub VGG11", "timm vgg11 features", needs=TIMM)
def hub_vgg11():
    twins = from_timm("vgg", "vgg11", 32)
    twins.torch = twins.torch.features
    return Twins(twins.keras, twins.torch, image(32))


@pair("keras_hub VGG13", "torchvision vgg13 features", needs=("keras_hub", "torchvision"))
def hub_vgg13():
    theirs = load_torchvision().models.vgg13(weights=None).features
    return Twins(from_timm("vgg", "vgg13", 32).keras, theirs, image(32))


@pair("keras_hub MobileNetV3 small 0.5", "timm mobilenetv3_small_050", needs=TIMM)
def hub_mobilenet_v3():
    twins = from_timm("mobilenet", "mobilenetv3_small_050", 64)
    twins.torch = Features(twins.torch)
    return twins


class Features(nn.Module):
    """What a timm model computes before its head."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model.forward_features(x)


@pair("keras_hub EfficientNet lite0", "timm efficientnet_lite0", needs=TIMM)
def hub_efficientnet_lite0():
    return from_timm("efficientnet", "efficientnet_lite0", 64)


@pair("keras_hub EfficientNet B1", "timm efficientnet_b1", needs=TIMM)
def hub_efficientnet_b1():
    return from_timm("efficientnet", "efficientnet_b1", 64, n=1)


# Against transformers.

VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
PLAIN = {"hidden_dim": 32, "num_layers": 2, "num_heads": 4, "intermediate_dim": 64, "patch_size": 8}


def images(ours, theirs, size=32, **more):
    """Twins that take images; transformers' further outputs have no twin."""
    return Twins(ours, theirs, image(size), torch_outputs=lambda a: a[:1], **more)


@pair("keras_hub ViT", "transformers ViTModel", needs=HUB)
def hub_vit():
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(**VISION)
    ours, _ = hub("vit", config)
    return images(ours, ViTModel(config, add_pooling_layer=False))


@pair("keras_hub ViT", "timm vision_transformer", needs=TIMM)
def hub_vit_timm():
    """One matrix for query, key and value in timm; transformers isn't needed."""
    made = importlib.import_module("timm.models.vision_transformer").VisionTransformer
    ours = backbone("ViT")(
        image_shape=(32, 32, 3), patch_size=(8, 8), num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64
    )
    theirs = made(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2, num_classes=0, global_pool=""
    )
    return Twins(ours, theirs, image(32))


@pair("keras_hub DeiT", "transformers DeiTModel", needs=HUB)
def hub_deit():
    from transformers import DeiTConfig, DeiTModel

    config = DeiTConfig(**VISION)
    ours, _ = hub("deit", config)
    return images(ours, DeiTModel(config, add_pooling_layer=False))


@pair("keras_hub DINOv2", "transformers Dinov2Model", needs=HUB)
def hub_dinov2():
    from transformers import Dinov2Config, Dinov2Model

    settings = {key: value for key, value in VISION.items() if key != "intermediate_size"}
    config = Dinov2Config(**settings, mlp_ratio=2)
    ours, _ = hub("dinov2", config)
    return images(ours, Dinov2Model(config))


@pair("keras_hub DINOv2 with registers", "transformers Dinov2WithRegistersModel", needs=HUB)
def hub_dinov2_registers():
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    settings = {key: value for key, value in VISION.items() if key != "intermediate_size"}
    config = Dinov2WithRegistersConfig(**settings, mlp_ratio=2, num_register_tokens=2)
    ours, _ = hub("dinov2", config)
    return images(ours, Dinov2WithRegistersModel(config))


@pair("keras_hub DINOv3", "transformers DINOv3ViTModel", needs=HUB)
def hub_dinov3():
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    config = DINOv3ViTConfig(**VISION, num_register_tokens=2)
    ours, convert = hub("dinov3", config)
    return images(ours, DINOv3ViTModel(config), convert=convert)


@pair("keras_hub CLIP's vision encoder", "transformers CLIPVisionModel", needs=HUB)
def hub_clip_vision():
    """The last norm is of all positions in keras_hub, of the class token alone in transformers."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    encoder = importlib.import_module("keras_hub.src.models.clip.clip_vision_encoder").CLIPVisionEncoder
    ours = encoder(**PLAIN, image_shape=(32, 32, 3))
    for v in ours.variables:
        if v.path.endswith("position_ids"):  # zeros, until keras_hub's converter writes them
            v.assign(np.arange(v.shape[1])[None])
    pooled = keras.Model(ours.input, ours.output[:, 0])
    return Twins(
        pooled,
        CLIPVisionModel(CLIPVisionConfig(**VISION)),
        image(32),
        torch_outputs=lambda a: a[1:],
        to_torch={"outputs": {"pooler_output": "output"}},
        to_keras={"outputs": {"output": "pooler_output"}},
    )


@pair("keras_hub SigLIP's vision encoder", "transformers SiglipVisionModel", needs=HUB)
def hub_siglip_vision():
    """With a head that attends from a learned query."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    encoder = importlib.import_module("keras_hub.src.models.siglip.siglip_vision_encoder").SigLIPVisionEncoder
    theirs = SiglipVisionModel(SiglipVisionConfig(**VISION))
    ours = encoder(**PLAIN, image_shape=(32, 32, 3))
    return Twins(
        ours,
        theirs,
        image(32),
        torch_outputs=lambda a: [b for b in a if b.ndim == len(ours.output.shape)][:1],
    )


@pair("keras_hub MiT", "transformers SegformerModel", needs=HUB)
def hub_mit():
    """Attention over a shortened sequence; a pyramid of four stages."""
    from transformers import SegformerConfig, SegformerModel

    ours = mixed_transformer()
    config = SegformerConfig(
        hidden_sizes=[16, 24, 32, 48],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 2, 4],
        sr_ratios=[8, 4, 2, 1],
        drop_path_rate=0.0,
    )
    return Twins(ours, SegformerModel(config), image(64), torch_outputs=lambda a: a[:1])


def mixed_transformer():
    return backbone("MiT")(
        layerwise_depths=[1, 1, 1, 1],
        num_layers=4,
        layerwise_num_heads=[1, 2, 2, 4],
        layerwise_sr_ratios=[8, 4, 2, 1],
        max_drop_path_rate=0.0,
        layerwise_patch_sizes=[7, 3, 3, 3],
        layerwise_strides=[4, 2, 2, 2],
        hidden_dims=[16, 24, 32, 48],
        image_shape=(64, 64, 3),
    )


@pair("keras_hub ViTDet (SAM's encoder)", "transformers SamVisionEncoder", needs=HUB)
def hub_sam_encoder():
    from transformers import SamVisionConfig
    from transformers.models.sam.modeling_sam import SamVisionEncoder

    ours = backbone("ViTDet")(
        hidden_size=32,
        num_layers=2,
        intermediate_dim=64,
        num_heads=4,
        global_attention_layer_indices=[1],
        image_shape=(64, 64, 3),
        patch_size=8,
        num_output_channels=16,
        window_size=4,
        use_rel_pos=True,
    )
    config = SamVisionConfig(
        hidden_size=32,
        output_channels=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
        mlp_dim=64,
        window_size=4,
        global_attn_indexes=[1],
    )
    # keras_hub's model has in it what transformers leaves to the processor.
    mean, deviation = (np.array(each, "float32") for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    found = images(ours, SamVisionEncoder(config), 64)
    normalized = channels_first((found.keras_x - mean) / deviation)
    return replace(found, torch_x=normalized)


@pair("keras_hub Swin", "transformers SwinModel", needs=HUB)
def hub_swin():
    from transformers import SwinConfig, SwinModel

    config = SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)
    ours, _ = hub("swin_transformer", config)
    return images(ours, SwinModel(config, add_pooling_layer=False))
