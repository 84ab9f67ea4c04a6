"""Five networks for images of 32 x 32, in the sizes of pytorch-cifar: branches that are joined, groups, depthwise
layers, channels that are split and shuffled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 10


def conv_norm(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size of the image if the stride is 1, and a batch norm."""
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


class Joined(nn.Module):
    """Puts the outputs of branches side by side."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Residual(nn.Module):
    """Adds a shortcut to what its body computes, and rectifies the sum if asked to."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, rectified: bool) -> None:
        super().__init__()
        self.body, self.shortcut, self.rectified = body, shortcut, rectified

    def forward(self, x: Tensor) -> Tensor:
        total = self.body(x) + self.shortcut(x)
        return F.relu(total) if self.rectified else total


def head(channels: int) -> list[nn.Module]:
    """The mean over all pixels and a linear layer."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]


# --- GoogLeNet -------------------------------------------------------------------------------------------------


def inception(inputs: int, one: int, three: Sequence[int], five: Sequence[int], pool: int) -> Joined:
    def conv(inputs: int, outputs: int, size: int) -> list[nn.Module]:
        return [*conv_norm(inputs, outputs, size), nn.ReLU()]

    two_threes = [*conv(five[0], five[1], 3), *conv(five[1], five[1], 3)]
    return Joined(
        nn.Sequential(*conv(inputs, one, 1)),
        nn.Sequential(*conv(inputs, three[0], 1), *conv(three[0], three[1], 3)),
        nn.Sequential(*conv(inputs, five[0], 1), *two_threes),
        nn.Sequential(nn.MaxPool2d(3, 1, 1), *conv(inputs, pool, 1)),
    )


_INCEPTIONS = [
    [(64, (96, 128), (16, 32), 32), (128, (128, 192), (32, 96), 64)],
    [
        (192, (96, 208), (16, 48), 64),
        (160, (112, 224), (24, 64), 64),
        (128, (128, 256), (24, 64), 64),
        (112, (144, 288), (32, 64), 64),
        (256, (160, 320), (32, 128), 128),
    ],
    [(256, (160, 320), (32, 128), 128), (384, (192, 384), (48, 128), 128)],
]


def googlenet(divisor: int = 1) -> nn.Sequential:
    """Returns GoogLeNet; `divisor` divides its numbers of channels."""
    channels = 192 // divisor
    layers: list[nn.Module] = [*conv_norm(3, channels, 3), nn.ReLU()]
    for stage, blocks in enumerate(_INCEPTIONS):
        layers += [nn.MaxPool2d(3, 2, 1)] if stage else []
        for one, three, five, pool in blocks:
            a, b, c = one // divisor, [n // divisor for n in three], [n // divisor for n in five]
            layers.append(inception(channels, a, b, c, pool // divisor))
            channels = a + b[1] + c[1] + pool // divisor
    return nn.Sequential(*layers, *head(channels)).eval()


# --- DenseNet --------------------------------------------------------------------------------------------------


def norm_conv(inputs: int, outputs: int, size: int) -> list[nn.Module]:
    """A batch norm, a ReLU and a convolution."""
    return [nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)]


def densenet121(growth: int = 32, blocks: Sequence[int] = (6, 12, 24, 16)) -> nn.Sequential:
    """Returns DenseNet-121: each layer puts `growth` new channels beside all before it."""
    channels = 2 * growth
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
    for stage, count in enumerate(blocks):
        if stage:
            layers += [*norm_conv(channels, channels // 2, 1), nn.AvgPool2d(2)]
            channels //= 2
        for _ in range(count):
            inner = [*norm_conv(channels, 4 * growth, 1), *norm_conv(4 * growth, growth, 3)]
            layers.append(Joined(nn.Sequential(*inner), nn.Identity()))
            channels += growth
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(), *head(channels)).eval()


# --- ResNeXt ---------------------------------------------------------------------------------------------------


def resnext29(groups: int = 32, width: int = 4, blocks: Sequence[int] = (3, 3, 3)) -> nn.Sequential:
    """Returns ResNeXt-29 with `groups` groups of `width` channels in its first stage."""
    channels = 64 if groups * width >= 64 else groups * width
    layers: list[nn.Module] = [*conv_norm(3, channels, 1), nn.ReLU()]
    for stage, count in enumerate(blocks):
        inner = groups * width * 2**stage
        for index in range(count):
            stride = 2 if stage and not index else 1
            body = [*conv_norm(channels, inner, 1), nn.ReLU(), *conv_norm(inner, inner, 3, stride, groups), nn.ReLU()]
            body += conv_norm(inner, 2 * inner, 1)
            changes = stride > 1 or channels != 2 * inner
            shortcut = nn.Sequential(*conv_norm(channels, 2 * inner, 1, stride)) if changes else nn.Identity()
            layers.append(Residual(nn.Sequential(*body), shortcut, rectified=True))
            channels = 2 * inner
    return nn.Sequential(*layers, *head(channels)).eval()


# --- MobileNetV2 -----------------------------------------------------------------------------------------------

# Each row has the expansion, the channels, the number of blocks and the stride of the first.
_MOBILE = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]


def mobilenet_v2(divisor: int = 1, rows: Sequence[tuple[int, int, int, int]] = _MOBILE) -> nn.Sequential:
    """Returns MobileNetV2, whose blocks are wide inside and have a depthwise layer there."""
    channels = 32 // divisor
    layers: list[nn.Module] = [*conv_norm(3, channels, 3), nn.ReLU()]
    for expansion, outputs, count, first in rows:
        for index in range(count):
            stride, inner, made = (1 if index else first), channels * expansion, outputs // divisor
            body = [*conv_norm(channels, inner, 1), nn.ReLU(), *conv_norm(inner, inner, 3, stride, inner), nn.ReLU()]
            body += conv_norm(inner, made, 1)
            if stride > 1:
                layers.append(nn.Sequential(*body))
            else:
                shortcut = nn.Sequential(*conv_norm(channels, made, 1)) if channels != made else nn.Identity()
                layers.append(Residual(nn.Sequential(*body), shortcut, rectified=False))
            channels = made
    last = 1280 // divisor
    return nn.Sequential(*layers, *conv_norm(channels, last, 1), nn.ReLU(), *head(last)).eval()


# --- ShuffleNetV2 ----------------------------------------------------------------------------------------------


class ShuffleUnit(nn.Module):
    """One half of the channels passes through, the other through three convolutions, and all are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.half = half
        self.body = nn.Sequential(*shuffle_body(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x[:, : self.half], x[:, self.half :]
        return shuffled(torch.cat([kept, self.body(changed)], 1))


class ShuffleDown(nn.Module):
    """Two branches of stride 2, joined and shuffled."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        left = [*conv_norm(inputs, inputs, 3, 2, inputs), *conv_norm(inputs, half, 1), nn.ReLU()]
        self.joined = Joined(nn.Sequential(*left), nn.Sequential(*shuffle_body(inputs, half, 2)))

    def forward(self, x: Tensor) -> Tensor:
        return shuffled(self.joined(x))


def shuffle_body(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    first = [*conv_norm(inputs, outputs, 1), nn.ReLU(), *conv_norm(outputs, outputs, 3, stride, outputs)]
    return [*first, *conv_norm(outputs, outputs, 1), nn.ReLU()]


def shuffled(x: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    return x.view(n, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)


def shufflenet_v2(widths: Sequence[int] = (116, 232, 464), blocks: Sequence[int] = (3, 7, 3)) -> nn.Sequential:
    """Returns ShuffleNetV2 with `widths` channels in its stages."""
    channels = 24
    layers: list[nn.Module] = [*conv_norm(3, channels, 1), nn.ReLU()]
    for width, count in zip(widths, blocks, strict=True):
        layers += [ShuffleDown(channels, width), *(ShuffleUnit(width) for _ in range(count))]
        channels = width
    last = max(8, 2 * channels + 96)
    return nn.Sequential(*layers, *conv_norm(channels, last, 1), nn.ReLU(), *head(last)).eval()


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {
    "GoogLeNet": googlenet,
    "DenseNet-121": densenet121,
    "ResNeXt-29 (32x4d)": resnext29,
    "MobileNetV2": mobilenet_v2,
    "ShuffleNetV2": shufflenet_v2,
}

# The same architectures with few channels and blocks, on which the kernel in plain torch takes a moment.
SMALL_NETWORKS: dict[str, Callable[[], nn.Sequential]] = {
    "GoogLeNet": partial(googlenet, 16),
    "DenseNet-121": partial(densenet121, 4, (2, 1)),
    "ResNeXt-29 (32x4d)": partial(resnext29, 4, 2, (1, 1)),
    "MobileNetV2": partial(mobilenet_v2, 8, [(1, 16, 1, 1), (2, 24, 1, 1), (2, 24, 1, 1), (2, 32, 1, 2)]),
    "ShuffleNetV2": partial(shufflenet_v2, (8, 16), (1, 1)),
}
