"""keras.applications against torchvision, timm and transformers: whole networks, without pretrained weights.

Batch norms have eps 1.001e-5 or 1e-3 on one side and 1e-5 on the other: attributes="fix" sets it. Sizes of images are
chosen where padding "same" is padding on all sides (odd ones), except where the difference is the point.
"""

import importlib

import keras

from pairs.making import Twins, image, load_torchvision, pair

VISION, TIMM, HUGGING = ("torchvision",), ("timm",), ("transformers",)


def application(name, size, classes=10, **more):
    build = getattr(keras.applications, name)
    head = {"classes": classes, "classifier_activation": None} if classes else {"include_top": False}
    return build(input_shape=(size, size, 3), weights=None, **head, **more)


def timm_model(name, **more):
    return importlib.import_module("timm").create_model(name, pretrained=False, **{"num_classes": 10, **more})


def vision_model(name, **more):
    return getattr(load_torchvision().models, name)(weights=None, **{"num_classes": 10, **more})


# Residual networks.


@pair("keras.applications ResNet50", "transformers ResNet, stride in the first 1x1", needs=HUGGING)
def resnet50_v1():
    """Version 1 on both sides; Keras has biases before the norms."""
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(downsample_in_bottleneck=True)
    theirs = ResNetModel(config)
    return Twins(application("ResNet50", 64, None), theirs, image(64), torch_outputs=lambda a: a[:1])


@pair("keras.applications ResNet101", "torchvision resnet101", different="stride", needs=VISION)
def resnet101_strides():
    """Keras strides in the first 1x1 of a block, torchvision in the 3x3."""
    return Twins(application("ResNet101", 33), vision_model("resnet101"), image(33, n=1))


@pair("keras.applications ResNet50V2", "timm resnetv2_50", different="stride|shape|unpaired|twin", needs=TIMM)
def resnet50_v2_strides():
    """Keras strides in the last block of a stage, timm in the first."""
    return Twins(application("ResNet50V2", 64), timm_model("resnetv2_50"), image(64, n=1))


# Plain and dense networks.


@pair("keras.applications VGG19 without its head", "torchvision vgg19 features", needs=VISION)
def vgg19_features():
    return Twins(application("VGG19", 32, None), vision_model("vgg19").features, image(32))


@pair("keras.applications VGG16 with its head", "torchvision vgg16", needs=VISION, different="shape|size|unpaired|twin")
def vgg16_small_head():
    """At 64 pixels Keras flattens 2x2, where torchvision pools to 7x7 whatever the size."""
    return Twins(application("VGG16", 64), vision_model("vgg16"), image(64, n=1))


@pair("keras.applications DenseNet121", "torchvision densenet121", needs=VISION)
def densenet121():
    return Twins(application("DenseNet121", 64), vision_model("densenet121"), image(64))


@pair("keras.applications DenseNet169", "timm densenet169", needs=TIMM)
def densenet169():
    return Twins(application("DenseNet169", 64), timm_model("densenet169"), image(64, n=1))


# Mobile networks.


@pair("keras.applications MobileNet", "timm mobilenetv1_100", different="padd", needs=TIMM)
def mobilenet_v1():
    """Keras pads below and at the right only."""
    return Twins(application("MobileNet", 64), timm_model("mobilenetv1_100"), image(64))


@pair("keras.applications MobileNetV2, odd size", "timm mobilenetv2_100", needs=TIMM)
def mobilenet_v2():
    return Twins(application("MobileNetV2", 65, alpha=1.0), timm_model("mobilenetv2_100"), image(65))


@pair("keras.applications MobileNetV3Small", "timm tf_mobilenetv3_small_100", needs=TIMM)
def mobilenet_v3_small():
    ours = application("MobileNetV3Small", 64, include_preprocessing=False)
    return Twins(ours, timm_model("tf_mobilenetv3_small_100"), image(64))


@pair("keras.applications MobileNetV3Large", "timm tf_mobilenetv3_large_100", needs=TIMM)
def mobilenet_v3_large():
    ours = application("MobileNetV3Large", 64, include_preprocessing=False)
    return Twins(ours, timm_model("tf_mobilenetv3_large_100"), image(64))


@pair("keras.applications EfficientNetB0", "timm tf_efficientnet_b0", needs=TIMM)
def efficientnet_b0():
    """Keras scales its input, and its source has a Normalization that torch does outside."""
    x = image(64)
    scaled = (x / 255).transpose(0, 3, 1, 2).copy()
    return Twins(application("EfficientNetB0", 64), timm_model("tf_efficientnet_b0"), x, scaled)


@pair("keras.applications EfficientNetV2B0", "timm tf_efficientnetv2_b0", needs=TIMM)
def efficientnet_v2_b0():
    ours = application("EfficientNetV2B0", 64, include_preprocessing=False)
    return Twins(ours, timm_model("tf_efficientnetv2_b0"), image(64))


@pair("keras.applications EfficientNetV2S, odd size", "torchvision efficientnet_v2_s", needs=VISION)
def efficientnet_v2_s():
    ours = application("EfficientNetV2S", 33, include_preprocessing=False)
    return Twins(ours, vision_model("efficientnet_v2_s"), image(33))


# Others.


@pair("keras.applications Xception", "timm legacy_xception", needs=TIMM)
def xception():
    return Twins(application("Xception", 71), timm_model("legacy_xception"), image(71, n=1))


@pair("keras.applications InceptionV3", "torchvision inception_v3", different="pad|pool", needs=VISION)
def inception_v3():
    """Average pools of torchvision count the padding, Keras' don't."""
    theirs = vision_model("inception_v3", aux_logits=False, init_weights=False)
    return Twins(application("InceptionV3", 75), theirs, image(75, n=1))


@pair("keras.applications InceptionResNetV2", "timm inception_resnet_v2", needs=TIMM)
def inception_resnet_v2():
    """Average pools of timm leave the padding out, as Keras' do; norms of Keras have no gamma."""
    return Twins(application("InceptionResNetV2", 75), timm_model("inception_resnet_v2"), image(75, n=1))


def convnext(**more):
    build = importlib.import_module("keras.src.applications.convnext").ConvNeXt
    return build(
        depths=(1, 1, 2, 1),
        projection_dims=(16, 24, 32, 48),
        include_preprocessing=False,
        weights=None,
        input_shape=(64, 64, 3),
        weights_name=None,
        **more,
    )


@pair("keras.applications ConvNeXt, small", "torchvision ConvNeXt", needs=VISION)
def convnext_torchvision():
    load_torchvision()
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    sizes, depths = (16, 24, 32, 48), (1, 1, 2, 1)
    blocks = [CNBlockConfig(a, b, n) for a, b, n in zip(sizes, (*sizes[1:], None), depths, strict=True)]
    ours = convnext(include_top=True, classes=10, classifier_activation=None)
    return Twins(ours, ConvNeXt(blocks, num_classes=10), image(64))


@pair("keras.applications ConvNeXt, small", "transformers ConvNextModel", needs=HUGGING)
def convnext_transformers():
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 2, 1], num_labels=10, layer_norm_eps=1e-6)
    ours = convnext(include_top=True, classes=10, classifier_activation=None)
    return Twins(ours, ConvNextForImageClassification(config), image(64))


@pair("keras.applications NASNet, narrow", "timm NASNetALarge, narrow", needs=TIMM)
def nasnet():
    build = importlib.import_module("keras.src.applications.nasnet").NASNet
    large = importlib.import_module("timm.models.nasnet").NASNetALarge
    ours = build(
        input_shape=(67, 67, 3),
        penultimate_filters=192,
        num_blocks=6,
        stem_block_filters=8,
        skip_reduction=True,
        filter_multiplier=2,
        weights=None,
        classes=10,
        classifier_activation=None,
    )
    theirs = large(num_classes=10, stem_size=8, num_features=192, channel_multiplier=2)
    return Twins(ours, theirs, image(67, n=1))
