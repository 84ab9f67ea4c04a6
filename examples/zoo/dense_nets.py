"""Image networks as pytorch-cifar writes them: with ReLUs as functions, batch norm first, and branches that join."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from network import Network, images
from torch import Tensor, nn


class PreActBlock(nn.Module):
    """Has a batch norm and a ReLU before each convolution; the shortcut takes the output of the first ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        out += shortcut
        return cast(Tensor, out)


class PreActResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.layers = nn.Sequential(PreActBlock(8, 8), PreActBlock(8, 16, 2), PreActBlock(16, 16))
        self.linear = nn.Linear(16 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = F.avg_pool2d(self.layers(self.conv1(x)), 4)
        return cast(Tensor, self.linear(out.view(out.size(0), -1)))


class DenseLayer(nn.Module):
    """Puts its new maps in front of its input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 2 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * growth)
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x)))
        return torch.cat([self.conv2(F.relu(self.bn2(out))), x], 1)


class Transition(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.dense1 = nn.Sequential(DenseLayer(8, 4), DenseLayer(12, 4))
        self.trans1 = Transition(16, 8)
        self.dense2 = nn.Sequential(DenseLayer(8, 4), DenseLayer(12, 4))
        self.bn, self.linear = nn.BatchNorm2d(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.dense2(self.trans1(self.dense1(self.conv1(x))))
        out = F.avg_pool2d(F.relu(self.bn(out)), 8)
        return cast(Tensor, self.linear(out.view(out.size(0), -1)))


class ConvReLU(nn.Sequential):
    """A convolution of odd size, a batch norm and a ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, size, padding=size // 2), nn.BatchNorm2d(outputs), nn.ReLU(True))


class Inception(nn.Module):
    """Runs four branches side by side and joins their channels; the last branch begins with a max-pool."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.b1 = ConvReLU(inputs, 4, 1)
        self.b2 = nn.Sequential(ConvReLU(inputs, 4, 1), ConvReLU(4, 6, 3))
        self.b3 = nn.Sequential(ConvReLU(inputs, 2, 1), ConvReLU(2, 4, 3), ConvReLU(4, 4, 3))
        self.b4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), ConvReLU(inputs, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b1(x), self.b2(x), self.b3(x), self.b4(x)], 1)


class GoogLeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pre_layers = ConvReLU(3, 8, 3)
        self.a3, self.b3 = Inception(8), Inception(16)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.a4 = Inception(16)
        self.avgpool = nn.AvgPool2d(8, stride=1)
        self.linear = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.maxpool(self.b3(self.a3(self.pre_layers(x))))
        out = self.avgpool(self.a4(out))
        return cast(Tensor, self.linear(out.view(out.size(0), -1)))


class Fire(nn.Module):
    """A narrow convolution whose output two wider ones read."""

    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1, self.expand1x1_activation = nn.Conv2d(squeeze, expand, 1), nn.ReLU(inplace=True)
        self.expand3x3, self.expand3x3_activation = nn.Conv2d(squeeze, expand, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        one = self.expand1x1_activation(self.expand1x1(x))
        return torch.cat([one, self.expand3x3_activation(self.expand3x3(x))], 1)


def squeezenet() -> nn.Sequential:
    """Returns a net whose last convolution and ReLU give maps of the classes; the means of the maps are the output."""
    first = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True)]
    head = [nn.Dropout(), nn.Conv2d(16, 10, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*first, Fire(8, 4, 8), Fire(16, 4, 8), *head)


NETWORKS = (
    Network("PreActResNet", "pytorch-cifar", PreActResNet, images()),
    Network("DenseNet", "pytorch-cifar", DenseNet, images()),
    Network("GoogLeNet", "pytorch-cifar", GoogLeNet, images()),
    Network("SqueezeNet", "torchvision", squeezenet, images(32)),
)
