"""Small models of public packages, for measure_skeletons.py. Packages that aren't installed give no models."""

from __future__ import annotations

import importlib.util

import numpy as np

TIMM = (
    "resnet18", "resnet50", "resnetv2_50", "resnext50_32x4d", "seresnet50", "convnext_atto", "convnextv2_atto",
    "efficientnet_b0", "efficientnetv2_rw_t", "mobilenetv2_100", "mobilenetv3_small_100", "mnasnet_small", "vgg11_bn",
    "densenet121", "dla34", "hrnet_w18_small", "inception_v3", "xception41", "regnetx_002", "regnety_002", "repvgg_a0",
    "dpn68", "ghostnet_100", "cspresnet50", "darknet53", "selecsls42b", "tf_efficientnet_lite0", "skresnet18",
    "res2net50_26w_4s", "resnest14d", "nfnet_f0", "gernet_s", "rexnet_100", "hardcorenas_a", "lcnet_050", "tinynet_e",
    "ese_vovnet19b_dw", "fbnetv3_b", "mixnet_s", "eca_resnext26ts", "lambda_resnet26t", "halonet26t",
    "vit_tiny_patch16_224", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "swinv2_cr_tiny_ns_224",
    "mixer_s32_224", "resmlp_12_224", "gmlp_ti16_224", "convmixer_768_32", "poolformer_s12", "pvt_v2_b0",
    "cait_xxs24_224",
    "xcit_nano_12_p16_224", "beit_base_patch16_224", "levit_128s", "coat_tiny", "crossvit_tiny_240", "twins_svt_small",
    "edgenext_xx_small", "mobilevit_xxs", "mobileone_s0", "fastvit_t8", "efficientformer_l1", "visformer_tiny",
    "maxvit_rmlp_pico_rw_256", "pit_ti_224", "repvit_m0_9", "starnet_s1", "inception_next_atto",
)  # fmt: skip
SIZES = {"224": 224, "240": 240, "256": 256}
NARROW = {
    "beit_base_patch16_224": {"embed_dim": 48, "depth": 2, "num_heads": 4},
    "swinv2_cr_tiny_ns_224": {"depths": (1, 1, 2, 1)}, "convmixer_768_32": {},
    "nfnet_f0": {}, "cait_xxs24_224": {"depth": 3},
}  # fmt: skip
TORCHVISION = (
    "alexnet", "vgg11", "squeezenet1_0", "squeezenet1_1", "densenet121", "googlenet", "inception_v3", "mobilenet_v2",
    "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5", "efficientnet_b0", "efficientnet_v2_s", "regnet_y_400mf",
    "resnet18", "wide_resnet50_2", "convnext_tiny", "vit_b_16", "swin_t", "swin_v2_t", "maxvit_t",
)  # fmt: skip


def image(size, batch=2):
    return np.random.default_rng(0).normal(size=(batch, 3, size, size)).astype("float32")


def tokens(high=90, length=9, batch=2):
    return np.random.default_rng(0).integers(3, high, (batch, length))


def _timm(name):
    def make():
        import timm

        fixed = next((size for end, size in SIZES.items() if name.endswith(end)), None)
        if fixed is None:
            fixed = {"inception_v3": 96, "halonet26t": 256, "lambda_resnet26t": 256}.get(
                name, 224 if name in ("levit_128s", "coat_tiny", "visformer_tiny", "efficientformer_l1") else 64
            )
        return timm.create_model(name, pretrained=False, num_classes=10, **NARROW.get(name, {})), image(fixed)

    return make


def _torchvision(name):
    def make():
        import torchvision

        more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        if name.startswith("vit"):
            more = {"image_size": 64}
        size = {"inception_v3": 96, "maxvit_t": 224, "alexnet": 96}.get(name, 64)
        return getattr(torchvision.models, name)(weights=None, num_classes=10, **more), image(size)

    return make


_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 96,
}
_DECODER = {**_SMALL, "num_key_value_heads": 2, "pad_token_id": 0, "head_dim": 8}
_IMAGE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
          "image_size": 32, "patch_size": 8}  # fmt: skip
TRANSFORMERS = {
    "Bert": ("BertModel", "BertConfig", _SMALL), "BertMLM": ("BertForMaskedLM", "BertConfig", _SMALL),
    "Roberta": ("RobertaModel", "RobertaConfig", _SMALL), "Albert": ("AlbertModel", "AlbertConfig", _SMALL),
    "DistilBert": ("DistilBertModel", "DistilBertConfig", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64,
                                                           "vocab_size": 96}),
    "Electra": ("ElectraModel", "ElectraConfig", {**_SMALL, "embedding_size": 16}),
    "MPNet": ("MPNetModel", "MPNetConfig", _SMALL), "DebertaV2": ("DebertaV2Model", "DebertaV2Config", _SMALL),
    "FNet": ("FNetModel", "FNetConfig", _SMALL),
    "GPT2": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96,
                                               "n_positions": 32}),
    "GPTNeo": ("GPTNeoForCausalLM", "GPTNeoConfig", {"hidden_size": 32, "num_layers": 2, "num_heads": 4,
               "vocab_size": 96, "attention_types": [[["global", "local"], 1]], "intermediate_size": 64}),
    "GPTNeoX": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _SMALL), "OPT": ("OPTForCausalLM", "OPTConfig",
                {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64, "vocab_size": 96,
                 "word_embed_proj_dim": 32}),
    "Bloom": ("BloomForCausalLM", "BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96}),
    "Llama": ("LlamaForCausalLM", "LlamaConfig", _DECODER),
    "Mistral": ("MistralForCausalLM", "MistralConfig", _DECODER),
    "Qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _DECODER), "Qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _DECODER),
    "Gemma": ("GemmaForCausalLM", "GemmaConfig", _DECODER), "Gemma2": ("Gemma2ForCausalLM", "Gemma2Config", _DECODER),
    "Phi3": ("Phi3ForCausalLM", "Phi3Config", _DECODER), "Mixtral": ("MixtralForCausalLM", "MixtralConfig",
                                                                     {**_DECODER, "num_local_experts": 2}),
    "Falcon": ("FalconForCausalLM", "FalconConfig", {"hidden_size": 32, "num_hidden_layers": 2,
                                                     "num_attention_heads": 4, "vocab_size": 96}),
    "ViT": ("ViTModel", "ViTConfig", _IMAGE), "DeiT": ("DeiTModel", "DeiTConfig", _IMAGE),
    "DINOv2": ("Dinov2Model", "Dinov2Config", _IMAGE), "BEiT": ("BeitModel", "BeitConfig", _IMAGE),
    "ConvNext": ("ConvNextModel", "ConvNextConfig", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}),
    "ResNet": ("ResNetModel", "ResNetConfig", {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32],
                                               "depths": [1, 1, 1, 1]}),
    "Segformer": ("SegformerModel", "SegformerConfig", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1],
                                                        "num_attention_heads": [1, 1, 2, 2]}),
    "Swin": ("SwinModel", "SwinConfig", {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 2],
                                         "num_heads": [1, 2], "window_size": 4}),
}  # fmt: skip


def _transformers(name):
    def make():
        import transformers

        model, config, settings = TRANSFORMERS[name]
        built = getattr(transformers, model)(getattr(transformers, config)(**settings))
        if name in ("ViT", "DeiT", "DINOv2", "BEiT", "Swin"):
            return built, image(32)
        if name in ("ConvNext", "ResNet", "Segformer"):
            return built, image(64)
        return built, {"input_ids": tokens()}

    return make


def torch_models():
    """Return the makers of the torch models by name."""
    models = {}
    if importlib.util.find_spec("timm"):
        models |= {f"timm {name}": _timm(name) for name in TIMM}
    if importlib.util.find_spec("torchvision"):
        models |= {f"torchvision {name}": _torchvision(name) for name in TORCHVISION}
    return models | {f"transformers {name}": _transformers(name) for name in TRANSFORMERS}


APPLICATIONS = {
    "ResNet50": 64, "ResNet50V2": 64, "VGG16": 64, "MobileNet": 64, "MobileNetV2": 64, "MobileNetV3Small": 64,
    "EfficientNetB0": 64, "EfficientNetV2B0": 64, "DenseNet121": 64, "NASNetMobile": 224, "Xception": 96,
    "InceptionV3": 96, "InceptionResNetV2": 96, "ConvNeXtTiny": 64,
}  # fmt: skip


def _application(name):
    def make():
        import keras

        size = APPLICATIONS[name]
        model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classes=10)
        return model, np.moveaxis(image(size), 1, -1) * 20 + 100

    return make


_HUB = {"vocabulary_size": 96, "num_layers": 2, "num_heads": 4, "hidden_dim": 32, "intermediate_dim": 64}
_HUB_DECODER = {"vocabulary_size": 96, "num_layers": 2, "num_query_heads": 4, "num_key_value_heads": 2,
                "hidden_dim": 32, "intermediate_dim": 64}  # fmt: skip
_GEMMA = {**_HUB_DECODER, "head_dim": 8}
HUB_TEXT = {
    "Bert": _HUB, "Roberta": _HUB, "Albert": {**_HUB, "embedding_dim": 16}, "DistilBert": _HUB,
    "Electra": {"vocab_size": 96, "num_layers": 2, "num_heads": 4, "hidden_dim": 32, "intermediate_dim": 64,
                "embedding_dim": 32},
    "DebertaV3": {**_HUB, "bucket_size": 8}, "FNet": {key: value for key, value in _HUB.items() if key != "num_heads"},
    "XLMRoberta": _HUB, "GPT2": {**_HUB, "max_sequence_length": 32}, "GPTNeoX": _HUB, "OPT": {**_HUB,
    "max_sequence_length": 32}, "Bloom": _HUB, "Llama": _HUB_DECODER, "Llama3": _HUB_DECODER, "Mistral": _HUB_DECODER,
    "Qwen": _HUB_DECODER, "Qwen3": _GEMMA, "Gemma": _GEMMA, "Gemma3": {**_GEMMA, "image_size": 32},
    "Phi3": _HUB_DECODER,
    "Falcon": {"vocabulary_size": 96, "num_layers": 2, "num_attention_heads": 4, "hidden_dim": 32,
               "intermediate_dim": 64},
    "Mixtral": {**_HUB_DECODER, "num_experts": 2}, "RoformerV2": {**_HUB, "head_size": 8},
}  # fmt: skip


def _hub_text(name):
    def make():
        import keras_hub

        model = getattr(keras_hub.models, f"{name}Backbone")(**HUB_TEXT[name])
        ids = tokens()
        given = {tensor.name for tensor in model.inputs} if not isinstance(model.input, dict) else set(model.input)
        whole = {"token_ids": ids, "padding_mask": np.ones_like(ids), "segment_ids": np.zeros_like(ids)}
        return model, {key: value for key, value in whole.items() if key in given}

    return make


HUB_IMAGE = {
    "ViT": {"image_shape": (32, 32, 3), "patch_size": (8, 8), "num_layers": 2, "num_heads": 4, "hidden_dim": 32,
            "mlp_dim": 64},
    "DeiT": {"image_shape": (32, 32, 3), "patch_size": (8, 8), "num_layers": 2, "num_heads": 4, "hidden_dim": 32,
             "intermediate_dim": 64},
    "DINOV2": {"patch_size": 8, "num_layers": 2, "hidden_dim": 32, "num_heads": 4, "intermediate_dim": 64,
               "image_shape": (32, 32, 3)},
    "ResNet": {"input_conv_filters": [64], "input_conv_kernel_sizes": [7], "stackwise_num_filters": [64, 64],
               "stackwise_num_blocks": [1, 2], "stackwise_num_strides": [1, 2], "block_type": "basic_block",
               "image_shape": (64, 64, 3)},
    "VGG": {"stackwise_num_repeats": [1, 1], "stackwise_num_filters": [8, 16], "image_shape": (32, 32, 3)},
    "DenseNet": {"stackwise_num_repeats": [2, 2], "compression_ratio": 0.5, "growth_rate": 8,
                 "image_shape": (64, 64, 3)},
    "MiT": {"image_shape": (64, 64, 3), "layerwise_depths": [1, 1], "hidden_dims": [8, 16], "num_layers": 2,
            "layerwise_num_heads": [1, 2], "layerwise_sr_ratios": [2, 1], "max_drop_path_rate": 0.1,
            "layerwise_patch_sizes": [7, 3], "layerwise_strides": [4, 2]},
    "EfficientNet": {"stackwise_width_coefficients": [1.0] * 2, "stackwise_depth_coefficients": [1.0] * 2,
                     "stackwise_kernel_sizes": [3, 3], "stackwise_num_repeats": [1, 1],
                     "stackwise_input_filters": [8, 8], "stackwise_output_filters": [8, 16],
                     "stackwise_expansion_ratios": [1, 2], "stackwise_strides": [1, 2],
                     "stackwise_squeeze_and_excite_ratios": [0.25, 0.25], "stackwise_block_types": ["v1", "v1"],
                     "image_shape": (64, 64, 3)},
}  # fmt: skip


def _hub_image(name):
    def make():
        import keras_hub

        settings = HUB_IMAGE[name]
        model = getattr(keras_hub.models, f"{name}Backbone")(**settings)
        return model, np.moveaxis(image(settings.get("image_shape", (64,))[0]), 1, -1)

    return make


def small_keras():
    """Return subclassed and functional models as tutorials write them."""
    import keras
    from keras import layers, ops

    class Patches(layers.Layer):
        def __init__(self, size, **options):
            super().__init__(**options)
            self.size = size

        def call(self, images):
            batch, height, width, channels = ops.shape(images)
            size = self.size
            x = ops.reshape(images, (batch, height // size, size, width // size, size, channels))
            return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (batch, -1, size * size * channels))

    class PatchEncoder(layers.Layer):
        def __init__(self, patches, width):
            super().__init__()
            self.patches = patches
            self.projection, self.position = layers.Dense(width), layers.Embedding(patches, width)

        def call(self, x):
            places = ops.expand_dims(ops.arange(0, self.patches), 0)
            return self.projection(x) + self.position(places)

    class TransformerBlock(layers.Layer):
        def __init__(self, width, heads, feed):
            super().__init__()
            self.att = layers.MultiHeadAttention(heads, width // heads)
            self.ffn = keras.Sequential([layers.Dense(feed, activation="relu"), layers.Dense(width)])
            self.layernorm1, self.layernorm2 = layers.LayerNormalization(), layers.LayerNormalization()

        def call(self, x):
            x = self.layernorm1(x + self.att(x, x))
            return self.layernorm2(x + self.ffn(x))

    class TokenAndPosition(layers.Layer):
        def __init__(self, length, vocabulary, width):
            super().__init__()
            self.token_emb, self.pos_emb = layers.Embedding(vocabulary, width), layers.Embedding(length, width)

        def call(self, x):
            return self.token_emb(x) + self.pos_emb(ops.arange(0, ops.shape(x)[-1]))

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = layers.Conv2D(8, 3, padding="same"), layers.BatchNormalization()
            self.deep, self.head = layers.SeparableConv2D(8, 3, padding="same"), layers.Dense(5)

        def call(self, x):
            y = ops.relu(self.norm(self.conv(x)))
            y = y + ops.silu(self.deep(y))
            return self.head(ops.mean(y, axis=(1, 2)))

    class Scaled(layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

        def call(self, x):
            return x * self.scale / (ops.sqrt(ops.mean(ops.square(x), axis=-1, keepdims=True)) + 1e-6)

    def functional(shape, *parts):
        x = keras.Input(shape)
        y = x
        for part in parts:
            y = part(y)
        return keras.Model(x, y)

    def unet():
        x = keras.Input((32, 32, 3))
        a = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
        b = layers.Conv2D(16, 3, padding="same", activation="relu")(layers.MaxPooling2D()(a))
        c = layers.Conv2DTranspose(8, 2, strides=2, padding="same")(b)
        d = layers.UpSampling2D(interpolation="bilinear")(b)
        y = layers.Conv2D(8, 3, padding="same", activation="relu")(layers.Concatenate()([a, c, d]))
        return keras.Model(x, layers.Conv2D(2, 1, activation="sigmoid")(y))

    def vit():
        return functional((32, 32, 3), Patches(8), PatchEncoder(16, 16), TransformerBlock(16, 4, 32), layers.Flatten(),
                          layers.Dense(5))  # fmt: skip

    def text():
        return functional((9,), TokenAndPosition(9, 90, 16), TransformerBlock(16, 2, 32),
                          layers.GlobalAveragePooling1D(), layers.Dropout(0.1),
                          layers.Dense(2, activation="softmax"))  # fmt: skip

    def rnn(kind, **options):
        return functional((9,), layers.Embedding(90, 8), layers.Bidirectional(kind(6, **options)), layers.Dense(2))

    def mnist():
        return keras.Sequential(
            [keras.Input((28, 28, 1)), layers.Conv2D(8, 3, activation="relu"), layers.MaxPooling2D(),
             layers.Conv2D(16, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten(), layers.Dropout(0.5),
             layers.Dense(10, activation="softmax")]
        )  # fmt: skip

    def dcgan():
        return keras.Sequential(
            [keras.Input((16,)), layers.Dense(4 * 4 * 8), layers.Reshape((4, 4, 8)),
             layers.Conv2DTranspose(8, 4, strides=2, padding="same"), layers.LeakyReLU(negative_slope=0.2),
             layers.Conv2DTranspose(4, 4, strides=2, padding="same"), layers.Conv2D(3, 5, padding="same",
                                                                                    activation="sigmoid")]
        )  # fmt: skip

    def wavenet():
        x = keras.Input((16, 3))
        y = layers.Conv1D(8, 2, padding="causal")(x)
        for dilation in (1, 2, 4):
            gate = layers.Conv1D(8, 2, padding="causal", dilation_rate=dilation, activation="sigmoid")(y)
            made = layers.Conv1D(8, 2, padding="causal", dilation_rate=dilation, activation="tanh")(y)
            y = layers.Add()([y, layers.Multiply()([gate, made])])
        return keras.Model(x, layers.Conv1D(2, 1)(y))

    def subpixel():
        def shuffle(y):
            batch, height, width, _ = ops.shape(y)
            y = ops.reshape(y, (batch, height, width, 2, 2, 3))
            return ops.reshape(ops.transpose(y, (0, 1, 3, 2, 4, 5)), (batch, height * 2, width * 2, 3))

        return functional((16, 16, 3), layers.Conv2D(8, 5, padding="same", activation="relu"),
                          layers.Conv2D(12, 3, padding="same"), layers.Lambda(shuffle))  # fmt: skip

    def attention():
        query, value = keras.Input((5, 8)), keras.Input((7, 8))
        y = layers.Attention(use_scale=True)([query, value])
        z = layers.AdditiveAttention()([query, value])
        return keras.Model([query, value], layers.Concatenate()([y, z]))

    def squeeze():
        x = keras.Input((16, 16, 8))
        s = layers.Dense(8, activation="sigmoid")(
            layers.Dense(2, activation="relu")(layers.GlobalAveragePooling2D()(x))
        )
        return keras.Model(x, x * layers.Reshape((1, 1, 8))(s))

    def normals(*shape):
        return np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")

    ids = tokens()
    return {
        "unet": lambda: (unet(), normals(32, 32, 3)), "vit": lambda: (vit(), normals(32, 32, 3)),
        "text transformer": lambda: (text(), ids), "subclassed": lambda: (Subclassed(), normals(16, 16, 3)),
        "bidirectional LSTM": lambda: (rnn(layers.LSTM), ids), "bidirectional GRU": lambda: (rnn(layers.GRU), ids),
        "simple RNN": lambda: (rnn(layers.SimpleRNN), ids), "mnist": lambda: (mnist(), normals(28, 28, 1)),
        "dcgan": lambda: (dcgan(), normals(16)), "wavenet": lambda: (wavenet(), normals(16, 3)),
        "subpixel": lambda: (subpixel(), normals(16, 16, 3)),
        "attention": lambda: (attention(), (normals(5, 8), normals(7, 8))),
        "squeeze and excite": lambda: (squeeze(), normals(16, 16, 8)),
        "own norm": lambda: (functional((7, 8), layers.Dense(8), Scaled(), layers.Dense(3)), normals(7, 8)),
        "group norm": lambda: (functional((8, 8, 8), layers.Conv2D(8, 3), layers.GroupNormalization(4),
                                          layers.PReLU(shared_axes=[1, 2]), layers.GlobalMaxPooling2D()),
                               normals(8, 8, 8)),
    }  # fmt: skip


def keras_models():
    """Return the makers of the Keras models by name."""
    models = {f"keras.applications {name}": _application(name) for name in APPLICATIONS}
    if importlib.util.find_spec("keras_hub"):
        models |= {f"keras_hub {name}": _hub_text(name) for name in HUB_TEXT}
        models |= {f"keras_hub {name}": _hub_image(name) for name in HUB_IMAGE}
    names = (
        "unet", "vit", "text transformer", "subclassed", "bidirectional LSTM", "bidirectional GRU", "simple RNN",
        "mnist", "dcgan", "wavenet", "subpixel", "attention", "squeeze and excite", "own norm", "group norm",
    )  # fmt: skip
    return models | {f"small {name}": (lambda name=name: small_keras()[name]()) for name in names}


def models_of(framework):
    """Return the models of a framework."""
    return torch_models() if framework == "torch" else keras_models()
