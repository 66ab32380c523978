"""torch twins of published networks, written for these tests after the papers."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class LayerUnit(nn.Sequential):
    """Convolution, norm, activation; ``pads`` at the end only, as Keras' applications do for strides."""

    def __init__(self, channels, width, size=3, stride=1, groups=1, pad=None, act=None, eps=1e-3, bias=False):
        pad = (size - 1) // 2 if pad is None else pad
        layers = [nn.ZeroPad2d(pad)] if isinstance(pad, tuple) else []
        inside = 0 if isinstance(pad, tuple) else pad
        layers += [nn.Conv2d(channels, width, size, stride, inside, groups=groups, bias=bias)]
        layers += [nn.BatchNorm2d(width, eps=eps, momentum=0.01)]
        super().__init__(*layers, *([act] if act is not None else []))


class Inverted(nn.Module):
    def __init__(self, channels, width, stride, growth):
        super().__init__()
        inner = channels * growth
        pad = (0, 1, 0, 1) if stride == 2 else None
        layers = [] if growth == 1 else [LayerUnit(channels, inner, 1, act=nn.ReLU6())]
        layers += [LayerUnit(inner, inner, 3, stride, inner, pad, nn.ReLU6()), LayerUnit(inner, width, 1)]
        self.layers = nn.Sequential(*layers)
        self.adds = stride == 1 and channels == width

    def forward(self, x):
        y = self.layers(x)
        return x + y if self.adds else y


class MobileNetV2(nn.Module):
    def __init__(self):
        super().__init__()
        layers = [LayerUnit(3, 32, 3, 2, pad=(0, 1, 0, 1), act=nn.ReLU6())]
        channels = 32
        plan = [
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ]
        for growth, width, count, stride in plan:
            for index in range(count):
                layers.append(Inverted(channels, width, stride if index == 0 else 1, growth))
                channels = width
        self.features = nn.Sequential(*layers, LayerUnit(channels, 1280, 1, act=nn.ReLU6()))
        self.head = nn.Linear(1280, 10)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


class Bottleneck(nn.Module):
    """A residual block whose shortcut is defined and called last; Keras' comes first."""

    def __init__(self, channels, width, stride, changes):
        super().__init__()
        same = {"eps": 1.001e-5, "bias": True}
        self.body = nn.Sequential(
            LayerUnit(channels, width, 1, stride, act=nn.ReLU(), **same),
            LayerUnit(width, width, 3, act=nn.ReLU(), **same),
            LayerUnit(width, 4 * width, 1, **same),
        )
        self.shortcut = LayerUnit(channels, 4 * width, 1, stride, **same) if changes else nn.Identity()

    def forward(self, x):
        return functional.relu(self.body(x) + self.shortcut(x))


class ResNet50(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = LayerUnit(3, 64, 7, 2, act=nn.ReLU(), eps=1.001e-5, bias=True)
        layers, channels = [], 64
        for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for index in range(count):
                layers.append(Bottleneck(channels, width, stride if index == 0 else 1, index == 0))
                channels = 4 * width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(2048, 10)

    def forward(self, x):
        x = functional.max_pool2d(functional.pad(self.stem(x), (1, 1, 1, 1)), 3, 2)
        return self.head(self.layers(x).mean((2, 3)))


class Squeeze(nn.Module):
    def __init__(self, channels, width):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, width, 1), nn.Conv2d(width, channels, 1)

    def forward(self, x):
        y = functional.silu(self.reduce(x.mean((2, 3), keepdim=True)))
        return x * self.expand(y).sigmoid()


class MBConv(nn.Module):
    def __init__(self, channels, width, size, stride, growth):
        super().__init__()
        inner = channels * growth
        half = size // 2
        pad = (half - 1, half, half - 1, half) if stride == 2 else None
        layers = [] if growth == 1 else [LayerUnit(channels, inner, 1, act=nn.SiLU())]
        layers += [LayerUnit(inner, inner, size, stride, inner, pad, nn.SiLU()), Squeeze(inner, max(1, channels // 4))]
        self.layers = nn.Sequential(*layers, LayerUnit(inner, width, 1))
        self.adds = stride == 1 and channels == width

    def forward(self, x):
        y = self.layers(x)
        return x + y if self.adds else y


class Standardize(nn.Module):
    """The first layer of Keras' EfficientNet."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("variance", torch.ones(3))

    def forward(self, x):
        shape = (1, 3, 1, 1)
        return (x - self.mean.reshape(shape)) / self.variance.reshape(shape).sqrt()


class EfficientNetB0(nn.Module):
    def __init__(self):
        super().__init__()
        self.standardize = Standardize()
        layers, channels = [LayerUnit(3, 32, 3, 2, pad=(0, 1, 0, 1), act=nn.SiLU())], 32
        plan = [(1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5)]
        for growth, width, count, stride, size in [*plan, (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)]:
            for index in range(count):
                layers.append(MBConv(channels, width, size, stride if index == 0 else 1, growth))
                channels = width
        self.features = nn.Sequential(*layers, LayerUnit(channels, 1280, 1, act=nn.SiLU()))
        self.head = nn.Linear(1280, 10)

    def forward(self, x):
        return self.head(self.features(self.standardize(x / 255)).mean((2, 3)))


class VGG16(nn.Module):
    def __init__(self, size):
        super().__init__()
        layers, channels = [], 3
        for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        wide = 512 * (size // 32) ** 2
        dense = [nn.Flatten(), nn.Linear(wide, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 10)]
        super().__init__()
        self.layers = nn.Sequential(*layers, *dense)

    def forward(self, x):
        return self.layers(x)
