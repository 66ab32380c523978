"""Transformers as tutorials write them: from keras.io's examples against hand-written torch."""

import keras
import torch
import torch.nn.functional as f
from torch import nn

from pairs.making import Twins, floats, image, in_order, numbers, pair

layers, ops = keras.layers, keras.ops


class Patches(layers.Layer):
    """Cut an image into patches, as keras.io's Vision Transformer does."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def call(self, x):
        b, h, w, c = ops.shape(x)
        x = ops.reshape(x, (b, h // self.size, self.size, w // self.size, self.size, c))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (b, (h // self.size) * (w // self.size), self.size**2 * c))


class PatchEncoder(layers.Layer):
    def __init__(self, patches, dim):
        super().__init__()
        self.projection, self.position = layers.Dense(dim), layers.Embedding(patches, dim)
        self.patches = patches

    def call(self, patch):
        return self.projection(patch) + self.position(ops.expand_dims(ops.arange(self.patches), 0))


def keras_vit():
    inputs = keras.Input((32, 32, 3))
    x = PatchEncoder(16, 32)(Patches(8)(inputs))
    for _ in range(2):
        y = layers.LayerNormalization(epsilon=1e-5)(x)
        x = layers.Add()([layers.MultiHeadAttention(4, 8)(y, y), x])
        y = layers.LayerNormalization(epsilon=1e-5)(x)
        y = layers.Dense(32)(layers.Dense(64, activation="gelu")(y))
        x = layers.Add()([y, x])
    x = layers.LayerNormalization(epsilon=1e-5)(x)
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling1D()(x)))


class Attention(nn.Module):
    """Attention with its own norm and one matrix for query, key and value, as in lucidrains' vit-pytorch."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(dim)
        self.to_qkv, self.to_out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        x = self.norm(x)
        b, n, d = x.shape
        q, k, v = (t.view(b, n, self.heads, -1).transpose(1, 2) for t in self.to_qkv(x).chunk(3, dim=-1))
        share = (q @ k.transpose(-1, -2) * (d // self.heads) ** -0.5).softmax(-1)
        return self.to_out((share @ v).transpose(1, 2).reshape(b, n, d))


def feed_forward(dim, hidden):
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


@pair("Vision Transformer (Keras example)", "SimpleViT-like, fused qkv, patches cut alike")
def vit_example():
    class SimpleViT(nn.Module):
        def __init__(self):
            super().__init__()
            self.to_patch, self.pos_embedding = nn.Linear(192, 32), nn.Parameter(torch.zeros(1, 16, 32))
            self.layers = nn.ModuleList([nn.ModuleList([Attention(32, 4), feed_forward(32, 64)]) for _ in range(2)])
            self.norm, self.linear_head = nn.LayerNorm(32), nn.Linear(32, 10)

        def forward(self, x):
            b = len(x)
            x = x.view(b, 3, 4, 8, 4, 8).permute(0, 2, 4, 3, 5, 1).reshape(b, 16, 192)
            x = self.to_patch(x) + self.pos_embedding
            for attention, forward in self.layers:
                x = attention(x) + x
                x = forward(x) + x
            return self.linear_head(self.norm(x).mean(1))

    return Twins(keras_vit(), SimpleViT(), image(32))


@pair("Vision Transformer (Keras example)", "ViT with a patch convolution and nn.MultiheadAttention")
def vit_patch_convolution():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln1, self.ln2 = nn.LayerNorm(32), nn.LayerNorm(32)
            self.attn = nn.MultiheadAttention(32, 4, batch_first=True)
            self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

        def forward(self, x):
            y = self.ln1(x)
            x = x + self.attn(y, y, y, need_weights=False)[0]
            return x + self.mlp(self.ln2(x))

    class ViT(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch_embed, self.pos_embed = nn.Conv2d(3, 32, 8, 8), nn.Parameter(torch.zeros(1, 16, 32))
            self.blocks, self.norm, self.head = nn.Sequential(Block(), Block()), nn.LayerNorm(32), nn.Linear(32, 10)

        def forward(self, x):
            x = self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos_embed
            return self.head(self.norm(self.blocks(x)).mean(1))

    return Twins(keras_vit(), ViT(), image(32))


@pair("MLP-Mixer (Keras example)", "MLP-Mixer with 1x1 Conv1d over tokens")
def mlp_mixer():
    inputs = keras.Input((32, 32, 3))
    x = layers.Dense(24)(Patches(8)(inputs))
    for _ in range(2):
        y = ops.transpose(layers.LayerNormalization(epsilon=1e-5)(x), (0, 2, 1))
        y = layers.Dense(16)(layers.Dense(40, activation="gelu")(y))
        x = x + ops.transpose(y, (0, 2, 1))
        y = layers.LayerNormalization(epsilon=1e-5)(x)
        x = x + layers.Dense(24)(layers.Dense(48, activation="gelu")(y))
    x = layers.LayerNormalization(epsilon=1e-5)(x)
    ours = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling1D()(x)))

    class PreNormResidual(nn.Module):
        def __init__(self, fn):
            super().__init__()
            self.fn, self.norm = fn, nn.LayerNorm(24)

        def forward(self, x):
            return self.fn(self.norm(x)) + x

    class Rearrange(nn.Module):
        def forward(self, x):
            return x.view(len(x), 3, 4, 8, 4, 8).permute(0, 2, 4, 3, 5, 1).reshape(len(x), 16, 192)

    class Mean(nn.Module):
        def forward(self, x):
            return x.mean(1)

    def block():
        tokens = nn.Sequential(nn.Conv1d(16, 40, 1), nn.GELU(), nn.Conv1d(40, 16, 1))
        channels = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
        return nn.Sequential(PreNormResidual(tokens), PreNormResidual(channels))

    theirs = nn.Sequential(
        Rearrange(), nn.Linear(192, 24), block(), block(), nn.LayerNorm(24), Mean(), nn.Linear(24, 10)
    )
    return Twins(ours, theirs, image(32))


@pair("time series transformer (Keras example)", "nn.TransformerEncoderLayer over time", different="norm|unpaired|twin")
def timeseries_transformer():
    """The example's norms stand before the sum, torch's behind it."""
    x = inputs = keras.Input((20, 8))
    y = layers.MultiHeadAttention(2, 4)(x, x)
    x = layers.LayerNormalization(epsilon=1e-6)(y) + inputs
    y = layers.Conv1D(16, 1, activation="relu")(x)
    y = layers.Conv1D(8, 1)(y)
    x = layers.LayerNormalization(epsilon=1e-6)(y) + x
    ours = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, layer_norm_eps=1e-6)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.encoder(x).mean(1))

    return Twins(ours, Encoder(), floats(2, 20, 8))


@pair("pre-norm encoder with Conv1D of width 1", "pre-norm encoder with Linear")
def encoder_convolved():
    x = inputs = keras.Input((20, 8))
    y = layers.LayerNormalization(epsilon=1e-5)(x)
    x = x + layers.MultiHeadAttention(2, 4)(y, y)
    y = layers.LayerNormalization(epsilon=1e-5)(x)
    x = x + layers.Conv1D(8, 1)(layers.Conv1D(16, 1, activation="relu")(y))
    ours = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.encoder(x).mean(1))

    return Twins(ours, Encoder(), floats(2, 20, 8))


@pair("mini GPT with causal attention", "nanoGPT (c_attn, c_proj, tied to nothing)")
def nano_gpt():
    class Embedded(layers.Layer):
        """A table that is looked up while the model is made would be a constant of it."""

        def __init__(self):
            super().__init__()
            self.tokens, self.positions = layers.Embedding(40, 32), layers.Embedding(12, 32)

        def call(self, ids):
            return self.tokens(ids) + self.positions(ops.arange(12))

    inputs = keras.Input((12,), dtype="int32")
    x = Embedded()(inputs)
    for _ in range(2):
        y = layers.LayerNormalization(epsilon=1e-5)(x)
        x = x + layers.MultiHeadAttention(4, 8)(y, y, use_causal_mask=True)
        y = layers.LayerNormalization(epsilon=1e-5)(x)
        x = x + layers.Dense(32)(layers.Dense(64, activation="gelu")(y))
    ours = keras.Model(inputs, layers.Dense(40, use_bias=False)(layers.LayerNormalization(epsilon=1e-5)(x)))

    class SelfAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.c_attn, self.c_proj = nn.Linear(32, 96), nn.Linear(32, 32)

        def forward(self, x):
            b, t, c = x.shape
            q, k, v = (y.view(b, t, 4, 8).transpose(1, 2) for y in self.c_attn(x).split(32, dim=2))
            y = f.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(32), SelfAttention(), nn.LayerNorm(32)
            self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

        def forward(self, x):
            x = x + self.attn(self.ln_1(x))
            return x + self.mlp(self.ln_2(x))

    class Gpt(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(40, 32), nn.Embedding(12, 32)
            self.h, self.ln_f = nn.ModuleList([Block(), Block()]), nn.LayerNorm(32)
            self.lm_head = nn.Linear(32, 40, bias=False)

        def forward(self, idx):
            x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1]))
            for block in self.h:
                x = block(x)
            return self.lm_head(self.ln_f(x))

    return Twins(ours, Gpt(), numbers(40, 2, 12))


@pair("TabTransformer (Keras example)", "TabTransformer, one table for each column")
def tab_transformer():
    sizes, numeric = (5, 7, 4), keras.Input((6,))
    columns = keras.Input((3,), dtype="int32")
    x = ops.stack([layers.Embedding(n, 16)(columns[:, i]) for i, n in enumerate(sizes)], axis=1)
    y = layers.MultiHeadAttention(2, 8)(x, x)
    x = layers.LayerNormalization(epsilon=1e-5)(layers.add([y, x]))
    y = layers.Dense(16)(layers.Dense(32, activation="relu")(x))
    x = layers.Flatten()(layers.LayerNormalization(epsilon=1e-5)(layers.add([y, x])))
    x = layers.concatenate([x, layers.LayerNormalization(epsilon=1e-5)(numeric)])
    ours = keras.Model([columns, numeric], layers.Dense(1)(layers.Dense(32, activation="selu")(x)))

    class TabTransformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.embeds = nn.ModuleList([nn.Embedding(n, 16) for n in sizes])
            self.transformer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.norm, self.mlp = nn.LayerNorm(6), nn.Sequential(nn.Linear(54, 32), nn.SELU(), nn.Linear(32, 1))

        def forward(self, columns, numeric):
            x = torch.stack([embed(columns[:, i]) for i, embed in enumerate(self.embeds)], 1)
            return self.mlp(torch.cat([self.transformer(x).flatten(1), self.norm(numeric)], 1))

    categories = numbers(4, 3, 3)
    return Twins(ours, TabTransformer(), [categories, floats(3, 6)], [categories.astype("int64"), floats(3, 6)])


@pair("FNet encoder (Keras example)", "FNet encoder")
def fnet_encoder():
    class Fourier(layers.Layer):
        def call(self, x):
            return ops.fft2((x, ops.zeros_like(x)))[0]

    x = inputs = keras.Input((16, 24))
    for _ in range(2):
        x = layers.LayerNormalization(epsilon=1e-5)(x + Fourier()(x))
        x = layers.LayerNormalization(epsilon=1e-5)(x + layers.Dense(24)(layers.Dense(40, activation="relu")(x)))
    ours = keras.Model(inputs, layers.Dense(3)(x))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(24), nn.LayerNorm(24)
            self.ff = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 24))

        def forward(self, x):
            x = self.norm1(x + torch.fft.fft2(x).real)
            return self.norm2(x + self.ff(x))

    return Twins(ours, nn.Sequential(Block(), Block(), nn.Linear(24, 3)), floats(2, 16, 24))


@pair("translation transformer, a decoder over a memory", "nn.TransformerDecoderLayer")
def decoder_layer():
    target, memory = keras.Input((7, 16)), keras.Input((9, 16))

    def normalized(a, b):
        return layers.LayerNormalization(epsilon=1e-5)(a + b)

    x = normalized(target, layers.MultiHeadAttention(2, 8)(target, target, use_causal_mask=True))
    x = normalized(x, layers.MultiHeadAttention(2, 8)(x, memory))
    x = normalized(x, layers.Dense(16)(layers.Dense(32, activation="relu")(x)))
    ours = keras.Model([target, memory], x)

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerDecoderLayer(16, 2, 32, batch_first=True)

        def forward(self, target, memory):
            mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
            return self.layer(target, memory, tgt_mask=mask)

    return Twins(ours, Decoder(), [floats(2, 7, 16), floats(2, 9, 16, seed=6)])


@pair("gMLP (Keras example)", "gMLP, a Linear over the transposed tokens")
def gated_mlp():
    x = inputs = keras.Input((16, 24))
    for _ in range(2):
        y = layers.Dense(48, activation="gelu")(layers.LayerNormalization(epsilon=1e-5)(x))
        u, v = ops.split(y, 2, axis=2)
        v = ops.transpose(layers.LayerNormalization(epsilon=1e-5)(v), (0, 2, 1))
        v = ops.transpose(layers.Dense(16)(v), (0, 2, 1))
        x = x + layers.Dense(24)(u * v)
    ours = keras.Model(inputs, layers.Dense(3)(x))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.proj_in, self.gate = nn.LayerNorm(24), nn.Linear(24, 48), nn.LayerNorm(24)
            self.spatial, self.proj_out = nn.Linear(16, 16), nn.Linear(24, 24)

        def forward(self, x):
            u, v = f.gelu(self.proj_in(self.norm(x))).chunk(2, dim=-1)
            v = self.spatial(self.gate(v).transpose(1, 2)).transpose(1, 2)
            return x + self.proj_out(u * v)

    theirs = nn.Sequential(Block(), Block(), nn.Linear(24, 3))
    return Twins(ours, theirs, floats(2, 16, 24), convert=in_order)
