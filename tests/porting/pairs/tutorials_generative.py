"""Autoencoders, adversarial and denoising networks, agents and tables, as tutorials write them."""

from itertools import chain

import keras
import torch
import torch.nn.functional as f
from torch import nn

from pairs.making import Twins, floats, image, in_order, numbers, pair

layers = keras.layers


@pair("dense autoencoder (Sequential)", "dense autoencoder (encoder, decoder)")
def autoencoder():
    sizes = (64, 32, 8, 32)
    ours = keras.Sequential(
        [keras.Input((48,)), *[layers.Dense(n, activation="relu") for n in sizes], layers.Dense(48, "sigmoid")]
    )

    class Autoencoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
            self.decoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 48), nn.Sigmoid())

        def forward(self, x):
            return self.decoder(f.relu(self.encoder(x)))

    return Twins(ours, Autoencoder(), floats(4, 48), convert=in_order)


@pair("denoising autoencoder (Conv2DTranspose, same)", "denoising autoencoder (output_padding)", different="padd")
def denoising_autoencoder():
    """Keras pads a transposed 3x3 of stride 2 at the other end than torch's padding=1, output_padding=1."""
    x = inputs = keras.Input((16, 16, 1))
    for _ in range(2):
        x = layers.MaxPooling2D()(layers.Conv2D(8, 3, padding="same", activation="relu")(x))
    for _ in range(2):
        x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu")(x)
    ours = keras.Model(inputs, layers.Conv2D(1, 3, padding="same", activation="sigmoid")(x))
    down = [[nn.Conv2d(n, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)] for n in (1, 8)]
    up = [[nn.ConvTranspose2d(8, 8, 3, 2, padding=1, output_padding=1), nn.ReLU()] for _ in range(2)]
    theirs = nn.Sequential(*chain(*down, *up), nn.Conv2d(8, 1, 3, padding=1), nn.Sigmoid())
    return Twins(ours, theirs, image(16, channels=1))


@pair("autoencoder with UpSampling2D", "autoencoder with Upsample")
def upsampling_autoencoder():
    x = inputs = keras.Input((16, 16, 3))
    x = layers.MaxPooling2D()(layers.Conv2D(16, 3, padding="same", activation="relu")(x))
    x = layers.MaxPooling2D()(layers.Conv2D(8, 3, padding="same", activation="relu")(x))
    for filters in (8, 16):
        x = layers.UpSampling2D()(layers.Conv2D(filters, 3, padding="same", activation="relu")(x))
    ours = keras.Model(inputs, layers.Conv2D(3, 3, padding="same")(x))
    steps = []
    for a, b, more in (
        (3, 16, nn.MaxPool2d(2)),
        (16, 8, nn.MaxPool2d(2)),
        (8, 8, nn.Upsample(scale_factor=2)),
        (8, 16, nn.Upsample(scale_factor=2)),
    ):
        steps += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), more]
    return Twins(ours, nn.Sequential(*steps, nn.Conv2d(16, 3, 3, padding=1)), image(16), convert=in_order)


@pair("DCGAN discriminator, padded by hand", "DCGAN discriminator (PyTorch tutorial)")
def dcgan_discriminator():
    x = inputs = keras.Input((32, 32, 3))
    for n, filters in enumerate((16, 32, 64)):
        x = layers.Conv2D(filters, 4, 2, use_bias=False)(layers.ZeroPadding2D(1)(x))
        x = x if n == 0 else layers.BatchNormalization(epsilon=1e-5)(x)
        x = layers.LeakyReLU(negative_slope=0.2)(x)
    ours = keras.Model(inputs, layers.Conv2D(1, 4, use_bias=False, activation="sigmoid")(x))
    theirs = nn.Sequential(
        nn.Conv2d(3, 16, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(16, 32, 4, 2, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(32, 64, 4, 2, 1, bias=False),
        nn.BatchNorm2d(64),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(64, 1, 4, 1, 0, bias=False),
        nn.Sigmoid(),
    )
    return Twins(ours, theirs, image(32), convert=in_order)


@pair("GAN generator from a Dense layer and a Reshape", "GAN generator from a Linear and a view")
def gan_generator():
    x = inputs = keras.Input((16,))
    x = layers.Dense(4 * 4 * 32, use_bias=False)(x)
    x = layers.Reshape((4, 4, 32))(layers.LeakyReLU(negative_slope=0.3)(layers.BatchNormalization()(x)))
    x = layers.Conv2DTranspose(16, 4, strides=2, padding="same", use_bias=False)(x)
    x = layers.LeakyReLU(negative_slope=0.3)(layers.BatchNormalization()(x))
    ours = keras.Model(inputs, layers.Conv2DTranspose(1, 4, 2, padding="same", use_bias=False, activation="tanh")(x))

    class Generator(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.bn0 = nn.Linear(16, 512, bias=False), nn.BatchNorm1d(512)
            self.up1, self.bn1 = nn.ConvTranspose2d(32, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16)
            self.up2 = nn.ConvTranspose2d(16, 1, 4, 2, 1, bias=False)

        def forward(self, z):
            x = f.leaky_relu(self.bn0(self.fc(z)), 0.3).view(-1, 32, 4, 4)
            return torch.tanh(self.up2(f.leaky_relu(self.bn1(self.up1(x)), 0.3)))

    return Twins(ours, Generator(), floats(3, 16))


@pair("conditional GAN discriminator", "conditional GAN discriminator (label embedding)")
def conditional_discriminator():
    pixels, label = keras.Input((16, 16, 1)), keras.Input((1,), dtype="int32")
    plane = layers.Reshape((16, 16, 1))(layers.Dense(256)(layers.Flatten()(layers.Embedding(10, 8)(label))))
    x = layers.concatenate([pixels, plane])
    for filters in (8, 16):
        x = layers.LeakyReLU(negative_slope=0.2)(layers.Conv2D(filters, 3, 2)(layers.ZeroPadding2D(1)(x)))
    ours = keras.Model([pixels, label], layers.Dense(1)(layers.Flatten()(x)))

    class Discriminator(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.plane = nn.Embedding(10, 8), nn.Linear(8, 256)
            self.conv1, self.conv2 = nn.Conv2d(2, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
            self.out = nn.Linear(16 * 4 * 4, 1)

        def forward(self, x, y):
            plane = self.plane(self.embed(y).squeeze(1)).view(-1, 1, 16, 16)
            x = f.leaky_relu(self.conv1(torch.cat([x, plane], 1)), 0.2)
            return self.out(f.leaky_relu(self.conv2(x), 0.2).flatten(1))

    x, y = image(16, channels=1), numbers(10, 2, 1)
    return Twins(ours, Discriminator(), [x, y], [x.transpose(0, 3, 1, 2).copy(), y.astype("int64")])


@pair("CycleGAN residual block, instance norms of GroupNormalization", "CycleGAN residual block")
def cyclegan_block():
    x = inputs = keras.Input((16, 16, 8))
    y = layers.Conv2D(8, 3)(layers.ZeroPadding2D(1)(x))
    y = layers.ReLU()(layers.GroupNormalization(-1, epsilon=1e-5)(y))
    y = layers.Conv2D(8, 3)(layers.ZeroPadding2D(1)(y))
    ours = keras.Model(inputs, layers.add([x, layers.GroupNormalization(-1, epsilon=1e-5)(y)]))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(
                nn.Conv2d(8, 8, 3, padding=1),
                nn.InstanceNorm2d(8, affine=True),
                nn.ReLU(inplace=True),
                nn.Conv2d(8, 8, 3, padding=1),
                nn.InstanceNorm2d(8, affine=True),
            )

        def forward(self, x):
            return x + self.block(x)

    return Twins(ours, Block(), image(16, channels=8), convert=in_order)


@pair("denoising U-Net with time embedding (Keras DDPM)", "denoising U-Net block (ResnetBlock)")
def denoising_block():
    pixels, time = keras.Input((16, 16, 8)), keras.Input((12,))
    t = layers.Dense(16)(layers.Activation("swish")(time))
    x = layers.Conv2D(16, 3, padding="same")(
        layers.Activation("swish")(layers.GroupNormalization(4, epsilon=1e-5)(pixels))
    )
    x = layers.add([x, layers.Reshape((1, 1, 16))(t)])
    x = layers.Activation("swish")(layers.GroupNormalization(4, epsilon=1e-5)(x))
    x = layers.add([layers.Conv2D(16, 3, padding="same")(x), layers.Conv2D(16, 1)(pixels)])
    ours = keras.Model([pixels, time], x)

    class ResnetBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(12, 16))
            self.norm1, self.conv1 = nn.GroupNorm(4, 8), nn.Conv2d(8, 16, 3, padding=1)
            self.norm2, self.conv2 = nn.GroupNorm(4, 16), nn.Conv2d(16, 16, 3, padding=1)
            self.res = nn.Conv2d(8, 16, 1)

        def forward(self, x, t):
            h = self.conv1(f.silu(self.norm1(x))) + self.mlp(t)[:, :, None, None]
            return self.conv2(f.silu(self.norm2(h))) + self.res(x)

    x, t = image(16, channels=8), floats(2, 12)
    return Twins(ours, ResnetBlock(), [x, t], [x.transpose(0, 3, 1, 2).copy(), t])


@pair("actor and critic on one trunk", "actor and critic on one trunk")
def actor_critic():
    inputs = keras.Input((8,))
    x = layers.Dense(32, activation="relu")(inputs)
    ours = keras.Model(inputs, [layers.Dense(4, activation="softmax")(x), layers.Dense(1)(x)])

    class ActorCritic(nn.Module):
        def __init__(self):
            super().__init__()
            self.affine1, self.action_head, self.value_head = nn.Linear(8, 32), nn.Linear(32, 4), nn.Linear(32, 1)

        def forward(self, x):
            x = f.relu(self.affine1(x))
            return f.softmax(self.action_head(x), -1), self.value_head(x)

    return Twins(ours, ActorCritic(), floats(4, 8), convert=in_order)


@pair("deep Q-network with a dueling head", "dueling deep Q-network")
def dueling_dqn():
    inputs = keras.Input((6,))
    x = layers.Dense(32, activation="relu")(layers.Dense(32, activation="relu")(inputs))
    value = layers.Dense(1)(layers.Dense(16, activation="relu")(x))
    advantage = layers.Dense(3)(layers.Dense(16, activation="relu")(x))
    q = value + advantage - keras.ops.mean(advantage, axis=-1, keepdims=True)
    ours = keras.Model(inputs, q)

    class Dueling(nn.Module):
        def __init__(self):
            super().__init__()
            self.feature = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
            self.value = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))
            self.advantage = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3))

        def forward(self, x):
            x = self.feature(x)
            a = self.advantage(x)
            return self.value(x) + a - a.mean(-1, keepdim=True)

    return Twins(ours, Dueling(), floats(4, 6))


@pair("wide and deep (Keras example)", "wide and deep")
def wide_and_deep():
    inputs = keras.Input((10,))
    wide, deep = layers.BatchNormalization()(inputs), inputs
    for _ in range(2):
        deep = layers.ReLU()(layers.BatchNormalization()(layers.Dense(16)(deep)))
    ours = keras.Model(inputs, layers.Dense(3)(layers.concatenate([wide, deep])))

    class WideAndDeep(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = nn.BatchNorm1d(10)
            steps = [(nn.Linear(n, 16), nn.BatchNorm1d(16), nn.ReLU()) for n in (10, 16)]
            self.deep, self.out = nn.Sequential(*chain(*steps)), nn.Linear(26, 3)

        def forward(self, x):
            return self.out(torch.cat([self.wide(x), self.deep(x)], -1))

    return Twins(ours, WideAndDeep(), floats(5, 10))


@pair("collaborative filtering (Keras example)", "matrix factorization with biases")
def recommender():
    user, item = keras.Input((1,), dtype="int32"), keras.Input((1,), dtype="int32")

    def looked_up(x, rows, width):
        return layers.Flatten()(layers.Embedding(rows, width)(x))

    score = layers.Dot(1)([looked_up(user, 40, 8), looked_up(item, 60, 8)])
    ours = keras.Model([user, item], score + looked_up(user, 40, 1) + looked_up(item, 60, 1))

    class Factorization(nn.Module):
        def __init__(self):
            super().__init__()
            self.users, self.items = nn.Embedding(40, 8), nn.Embedding(60, 8)
            self.user_bias, self.item_bias = nn.Embedding(40, 1), nn.Embedding(60, 1)

        def forward(self, user, item):
            dot = (self.users(user) * self.items(item)).sum(-1)
            return dot + self.user_bias(user).squeeze(-1) + self.item_bias(item).squeeze(-1)

    pairs = [numbers(40, 7, 1), numbers(60, 7, 1, seed=4)]
    return Twins(ours, Factorization(), pairs, [x.astype("int64") for x in pairs], convert=in_order)


@pair("NeRF's network", "NeRF's network (skip in the middle)")
def nerf():
    x = inputs = keras.Input((24,))
    for n in range(4):
        x = layers.Dense(32, activation="relu")(x)
        x = layers.concatenate([x, inputs]) if n == 2 else x
    ours = keras.Model(inputs, layers.Dense(4)(x))

    class Nerf(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(n, 32) for n in (24, 32, 32, 56)])
            self.out = nn.Linear(32, 4)

        def forward(self, x):
            h = x
            for n, layer in enumerate(self.layers):
                h = f.relu(layer(h))
                h = torch.cat([h, x], -1) if n == 2 else h
            return self.out(h)

    return Twins(ours, Nerf(), floats(6, 24), convert=in_order)
