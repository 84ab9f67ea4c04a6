"""Image networks as torchvision writes them: everything is a module, ReLUs work in place, and one is called twice."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from network import Network, images
from torch import Tensor, nn


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Returns a convolution that keeps the size of its maps if the stride is 1."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


def vgg(batch_norm: bool) -> nn.Sequential:
    """Returns blocks of convolutions with a max-pool behind each, and a classifier with dropout."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (8, 8, 0, 12, 12, 0):
        if width == 0:
            layers.append(nn.MaxPool2d(2, 2))
            continue
        layers.append(nn.Conv2d(channels, width, 3, padding=1))
        layers += [nn.BatchNorm2d(width)] if batch_norm else []
        layers.append(nn.ReLU(inplace=True))
        channels = width
    head = [nn.Flatten(), nn.Linear(channels * 16, 24), nn.ReLU(True), nn.Dropout(), nn.Linear(24, 10)]
    return nn.Sequential(nn.Sequential(*layers), *head)


class BasicBlock(nn.Module):
    """Has two convolutions and a shortcut; both ReLUs are one module."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, stride=stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return cast(Tensor, self.relu(self.bn2(self.conv2(out)) + identity))


class Bottleneck(nn.Module):
    """The block of ResNeXt: a grouped convolution between two of size 1."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int = 4) -> None:
        super().__init__()
        inner = outputs // 2
        self.conv1, self.bn1 = conv(inputs, inner, 1), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = conv(inner, inner, 3, stride, groups), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = conv(inner, outputs, 1), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += self.downsample(x)
        return cast(Tensor, self.relu(out))


class ResNet(nn.Module):
    """Has a stem with a max-pool, stages of blocks, a mean over the pixels and one linear layer."""

    def __init__(self, block: type[BasicBlock] | type[Bottleneck]) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 8), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(block(8, 8, 1), block(8, 8, 1))
        self.layer2 = nn.Sequential(block(8, 16, 2), block(16, 16, 1))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.avgpool(self.layer2(self.layer1(x)))
        return cast(Tensor, self.fc(torch.flatten(x, 1)))


class RepVGGBlock(nn.Module):
    """Adds a convolution of size 3, one of size 1 and the input, each with a batch norm, and applies a ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.dense = nn.Sequential(conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs))
        self.one = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        self.identity = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None
        self.nonlinearity = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        identity = 0 if self.identity is None else self.identity(x)
        return cast(Tensor, self.nonlinearity(self.dense(x) + self.one(x) + identity))


def repvgg() -> nn.Sequential:
    blocks = [RepVGGBlock(3, 8, 2), RepVGGBlock(8, 8), RepVGGBlock(8, 16, 2), RepVGGBlock(16, 16)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    first = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*first, nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU(inplace=True))


class UNet(nn.Module):
    """Goes two levels down and up again, by a transposed convolution and by interpolation; torch.cat joins skips."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down1, self.down2 = double_conv(3, 4), double_conv(4, 8), double_conv(8, 16)
        self.pool = nn.MaxPool2d(2)
        self.up1, self.join1 = nn.ConvTranspose2d(16, 8, 2, stride=2), double_conv(16, 8)
        self.join2, self.leave = double_conv(12, 4), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        top = self.enter(x)
        middle = self.down1(self.pool(top))
        up = self.join1(torch.cat([middle, self.up1(self.down2(self.pool(middle)))], dim=1))
        up = F.interpolate(up, scale_factor=2, mode="bilinear", align_corners=False)
        return cast(Tensor, self.leave(self.join2(torch.cat([top, up], dim=1))))


NETWORKS = (
    Network("VGG", "torchvision", lambda: vgg(batch_norm=False), images()),
    Network("VGG-BN", "torchvision", lambda: vgg(batch_norm=True), images()),
    Network("ResNet", "torchvision", lambda: ResNet(BasicBlock), images()),
    Network("ResNeXt", "torchvision", lambda: ResNet(Bottleneck), images()),
    Network("RepVGG", "timm", repvgg, images()),
    Network("U-Net", "Pytorch-UNet", UNet, images()),
)
