"""Image models as tutorials write them, in Keras and in torch."""

import keras
import torch
import torch.nn.functional as f
from torch import nn

from pairs.making import Twins, image, in_order, pair

layers = keras.layers


@pair("LeNet-5 (Sequential)", "LeNet-5 (view)")
def lenet():
    ours = keras.Sequential(
        [
            keras.Input((32, 32, 1)),
            layers.Conv2D(6, 5, activation="tanh"),
            layers.AveragePooling2D(2),
            layers.Conv2D(16, 5, activation="tanh"),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(120, activation="tanh"),
            layers.Dense(84, activation="tanh"),
            layers.Dense(10),
        ]
    )

    class LeNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
            self.fc1, self.fc2, self.fc3 = nn.Linear(16 * 5 * 5, 120), nn.Linear(120, 84), nn.Linear(84, 10)

        def forward(self, x):
            x = f.avg_pool2d(torch.tanh(self.conv1(x)), 2)
            x = f.avg_pool2d(torch.tanh(self.conv2(x)), 2)
            x = torch.tanh(self.fc1(x.view(-1, 16 * 5 * 5)))
            return self.fc3(torch.tanh(self.fc2(x)))

    return Twins(ours, LeNet(), image(32, channels=1))


@pair("AlexNet without its head", "torchvision's AlexNet features")
def alexnet_features():
    x = inputs = keras.Input((67, 67, 3))
    x = layers.Conv2D(64, 11, strides=4, activation="relu")(layers.ZeroPadding2D(2)(x))
    x = layers.MaxPooling2D(3, 2)(x)
    x = layers.Conv2D(96, 5, padding="same", activation="relu")(x)
    x = layers.MaxPooling2D(3, 2)(x)
    for filters in (128, 96, 96):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
    theirs = nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 96, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(96, 128, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(128, 96, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(96, 96, 3, padding=1),
        nn.ReLU(inplace=True),
    )
    return Twins(keras.Model(inputs, x), theirs, image(67), convert=in_order)


class BasicBlock(nn.Module):
    """CIFAR's block: option B, a 1x1 convolution where the shape changes."""

    def __init__(self, before, filters, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, filters, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != filters:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, filters, 1, stride=stride, bias=False), nn.BatchNorm2d(filters)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(f.relu(self.bn1(self.conv1(x)))))
        return f.relu(y + self.shortcut(x))


class CifarResNet(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        made, before = [], 16
        for filters, stride in ((16, 1), (32, 2), (64, 2)):
            for n in range(blocks):
                made.append(BasicBlock(before, filters, stride if n == 0 else 1))
                before = filters
        self.stages, self.linear = nn.Sequential(*made), nn.Linear(64, 10)

    def forward(self, x):
        x = self.stages(f.relu(self.bn1(self.conv1(x))))
        return self.linear(f.avg_pool2d(x, x.size(3)).flatten(1))


def keras_cifar_resnet(blocks, padded):
    """ResNet for CIFAR; `padded`: zeros of one pixel on all sides, as torch has them, and not at the end only."""

    def conv_norm(x, filters, size, stride):
        if size > 1 and stride > 1 and padded:
            x = layers.Conv2D(filters, size, stride, use_bias=False)(layers.ZeroPadding2D(1)(x))
        else:
            x = layers.Conv2D(filters, size, stride, padding="same", use_bias=False)(x)
        return layers.BatchNormalization()(x)

    inputs = keras.Input((32, 32, 3))
    x = layers.ReLU()(conv_norm(inputs, 16, 3, 1))
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        for n in range(blocks):
            step = stride if n == 0 else 1
            y = conv_norm(layers.ReLU()(conv_norm(x, filters, 3, step)), filters, 3, 1)
            x = x if step == 1 and x.shape[-1] == filters else conv_norm(x, filters, 1, step)
            x = layers.ReLU()(layers.add([y, x]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10)(x))


@pair("ResNet-20 for CIFAR, zero padding", "ResNet-20 (akamaster's layout)")
def resnet20_cifar():
    return Twins(keras_cifar_resnet(3, True), CifarResNet(3), image(32))


@pair("ResNet-8 for CIFAR, padding same", "ResNet-8 for CIFAR", different=r"padd")
def resnet8_cifar_same():
    return Twins(keras_cifar_resnet(1, False), CifarResNet(1), image(32))


@pair("squeeze and excitation, Dense", "squeeze and excitation, Linear")
def squeeze_excite_dense():
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(32, 3, padding="same", activation="relu")(inputs)
    s = layers.Dense(8, activation="relu")(layers.GlobalAveragePooling2D()(x))
    s = layers.Reshape((1, 1, 32))(layers.Dense(32, activation="sigmoid")(s))
    x = layers.GlobalAveragePooling2D()(layers.multiply([x, s]))
    theirs = SqueezeExcite(nn.Linear(32, 8), nn.Linear(8, 32))
    return Twins(keras.Model(inputs, layers.Dense(5)(x)), theirs, image(16), convert=in_order)


@pair("squeeze and excitation, Dense", "squeeze and excitation, 1x1 convolutions")
def squeeze_excite_convolved():
    ours = squeeze_excite_dense().keras
    return Twins(ours, SqueezeExcite(nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)), image(16))


class SqueezeExcite(nn.Module):
    def __init__(self, down, up):
        super().__init__()
        self.conv, self.down, self.up, self.head = nn.Conv2d(3, 32, 3, padding=1), down, up, nn.Linear(32, 5)

    def forward(self, x):
        x = f.relu(self.conv(x))
        s = f.adaptive_avg_pool2d(x, 1)
        s = s if isinstance(self.down, nn.Conv2d) else s.flatten(1)
        s = torch.sigmoid(self.up(f.relu(self.down(s))))
        return self.head((x * s.reshape(len(x), 32, 1, 1)).mean((2, 3)))


@pair("ConvMixer (Keras example)", "ConvMixer (the paper's code)")
def convmixer():
    def activated(x):
        return layers.BatchNormalization()(layers.Activation("gelu")(x))

    inputs = keras.Input((32, 32, 3))
    x = activated(layers.Conv2D(32, 4, 4)(inputs))
    for _ in range(2):
        mixed = activated(layers.DepthwiseConv2D(5, padding="same")(x))
        x = activated(layers.Conv2D(32, 1)(layers.Add()([mixed, x])))
    ours = keras.Model(inputs, layers.Dense(10)(layers.GlobalAvgPool2D()(x)))

    class Residual(nn.Module):
        def __init__(self, fn):
            super().__init__()
            self.fn = fn

        def forward(self, x):
            return self.fn(x) + x

    def block():
        mixed = nn.Sequential(nn.Conv2d(32, 32, 5, groups=32, padding="same"), nn.GELU(), nn.BatchNorm2d(32))
        return nn.Sequential(Residual(mixed), nn.Conv2d(32, 32, 1), nn.GELU(), nn.BatchNorm2d(32))

    theirs = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 32, 4, stride=4), nn.GELU(), nn.BatchNorm2d(32)),
        *[block() for _ in range(2)],
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    return Twins(ours, theirs, image(32), convert=in_order)


@pair("separable convolutions", "depthwise and pointwise convolutions")
def separable():
    x = inputs = keras.Input((16, 16, 3))
    for filters in (16, 32):
        x = layers.SeparableConv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    ours = keras.Model(inputs, layers.Dense(4)(layers.GlobalMaxPooling2D()(x)))

    def step(a, b):
        depthwise, pointwise = nn.Conv2d(a, a, 3, padding=1, groups=a, bias=False), nn.Conv2d(a, b, 1, bias=False)
        return nn.Sequential(depthwise, pointwise, nn.BatchNorm2d(b), nn.ReLU())

    theirs = nn.Sequential(step(3, 16), step(16, 32), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(32, 4))
    return Twins(ours, theirs, image(16))


@pair("Inception block", "Inception block (BasicConv2d)")
def inception_block():
    def conv(x, filters, size):
        x = layers.Conv2D(filters, size, padding="same", use_bias=False)(x)
        return layers.ReLU()(layers.BatchNormalization(epsilon=1e-3)(x))

    inputs = keras.Input((16, 16, 16))
    branches = [
        conv(inputs, 8, 1),
        conv(conv(inputs, 8, 1), 12, 3),
        conv(conv(inputs, 8, 1), 12, 5),
        conv(layers.MaxPooling2D(3, 1, padding="same")(inputs), 8, 1),
    ]
    ours = keras.Model(inputs, layers.concatenate(branches))

    class BasicConv2d(nn.Module):
        def __init__(self, a, b, **kwargs):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(a, b, bias=False, **kwargs), nn.BatchNorm2d(b, eps=1e-3)

        def forward(self, x):
            return f.relu(self.bn(self.conv(x)), inplace=True)

    class Inception(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch1 = BasicConv2d(16, 8, kernel_size=1)
            self.branch2 = nn.Sequential(
                BasicConv2d(16, 8, kernel_size=1), BasicConv2d(8, 12, kernel_size=3, padding=1)
            )
            self.branch3 = nn.Sequential(
                BasicConv2d(16, 8, kernel_size=1), BasicConv2d(8, 12, kernel_size=5, padding=2)
            )
            self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), BasicConv2d(16, 8, kernel_size=1))

        def forward(self, x):
            return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)

    return Twins(ours, Inception(), image(16, channels=16))


@pair("ESPCN (depth_to_space)", "ESPCN (PixelShuffle)")
def super_resolution():
    class DepthToSpace(layers.Layer):
        def call(self, x):
            _, h, w, c = x.shape
            x = keras.ops.reshape(x, (-1, h, w, 2, 2, c // 4))
            return keras.ops.reshape(keras.ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 2 * h, 2 * w, c // 4))

    ours = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Conv2D(16, 5, padding="same", activation="tanh"),
            layers.Conv2D(8, 3, padding="same", activation="tanh"),
            layers.Conv2D(12, 3, padding="same"),
            DepthToSpace(),
        ]
    )
    theirs = nn.Sequential(
        nn.Conv2d(3, 16, 5, padding=2),
        nn.Tanh(),
        nn.Conv2d(16, 8, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.PixelShuffle(2),
    )
    return Twins(ours, theirs, image(16))


@pair("FCN with a transposed convolution", "FCN with a transposed convolution")
def segmentation_fcn():
    inputs = keras.Input((32, 32, 3))
    skip = layers.MaxPooling2D()(layers.Conv2D(16, 3, padding="same", activation="relu")(inputs))
    deep = layers.MaxPooling2D()(layers.Conv2D(32, 3, padding="same", activation="relu")(skip))
    up = layers.Conv2DTranspose(5, 4, strides=2, padding="same", use_bias=False)(layers.Conv2D(5, 1)(deep))
    fused = layers.add([up, layers.Conv2D(5, 1)(skip)])
    ours = keras.Model(inputs, layers.Conv2DTranspose(5, 4, strides=2, padding="same", use_bias=False)(fused))

    class Fcn(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
            self.score1, self.score2 = nn.Conv2d(16, 5, 1), nn.Conv2d(32, 5, 1)
            self.up1, self.up2 = (nn.ConvTranspose2d(5, 5, 4, 2, 1, bias=False) for _ in range(2))

        def forward(self, x):
            skip = f.max_pool2d(f.relu(self.conv1(x)), 2)
            deep = f.max_pool2d(f.relu(self.conv2(skip)), 2)
            return self.up2(self.up1(self.score2(deep)) + self.score1(skip))

    return Twins(ours, Fcn(), image(32))


@pair("siamese network, one tower called twice", "siamese network, one tower called twice")
def siamese():
    inputs = keras.Input((24, 24, 1))
    x = layers.Conv2D(8, 5, activation="relu")(inputs)
    x = layers.Conv2D(16, 3, activation="relu")(layers.MaxPooling2D()(x))
    tower = keras.Model(inputs, layers.Dense(12)(layers.GlobalAveragePooling2D()(x)))
    left, right = keras.Input((24, 24, 1)), keras.Input((24, 24, 1))
    apart = keras.ops.abs(tower(left) - tower(right))
    ours = keras.Model([left, right], layers.Dense(1, activation="sigmoid")(apart))

    class Siamese(nn.Module):
        def __init__(self):
            super().__init__()
            self.tower = nn.Sequential(
                nn.Conv2d(1, 8, 5),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(8, 16, 3),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(16, 12),
            )
            self.out = nn.Linear(12, 1)

        def forward(self, a, b):
            return torch.sigmoid(self.out(torch.abs(self.tower(a) - self.tower(b))))

    a, b = image(24, channels=1), image(24, channels=1)[::-1].copy()
    there = [a.transpose(0, 3, 1, 2).copy(), b.transpose(0, 3, 1, 2).copy()]
    return Twins(ours, Siamese(), [a, b], there)


@pair("video classifier: TimeDistributed CNN and GRU", "frames folded into the batch, GRU")
def video_cnn_gru():
    frame = keras.Sequential(
        [keras.Input((16, 16, 3)), layers.Conv2D(8, 3, activation="relu"), layers.GlobalAveragePooling2D()]
    )
    inputs = keras.Input((4, 16, 16, 3))
    x = layers.GRU(12)(layers.TimeDistributed(frame)(inputs))
    ours = keras.Model(inputs, layers.Dense(3)(x))

    class Video(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gru, self.fc = nn.Conv2d(3, 8, 3), nn.GRU(8, 12, batch_first=True), nn.Linear(12, 3)

        def forward(self, x):
            b, t = x.shape[:2]
            x = f.relu(self.conv(x.flatten(0, 1))).mean((2, 3)).view(b, t, -1)
            return self.fc(self.gru(x)[0][:, -1])

    frames = image(16, n=8).reshape(2, 4, 16, 16, 3)
    return Twins(ours, Video(), frames, frames.transpose(0, 1, 4, 2, 3).copy())


@pair("3D CNN for CT scans (Keras example)", "3D CNN")
def scans_3d():
    x = inputs = keras.Input((12, 16, 16, 1))
    for filters in (8, 16):
        x = layers.Conv3D(filters, 3, padding="same", activation="relu")(x)
        x = layers.BatchNormalization()(layers.MaxPool3D(2)(x))
    x = layers.Dense(16, activation="relu")(layers.GlobalAveragePooling3D()(x))
    ours = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(layers.Dropout(0.3)(x)))
    steps = []
    for a, b in ((1, 8), (8, 16)):
        steps += [nn.Conv3d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2), nn.BatchNorm3d(b)]
    head = [nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1)]
    return Twins(
        ours,
        nn.Sequential(*steps, *head, nn.Sigmoid()),
        image(16, n=24, channels=1).reshape(2, 12, 16, 16, 1),
        convert=in_order,
    )
