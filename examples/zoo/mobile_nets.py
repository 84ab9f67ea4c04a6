"""Image networks for small devices: with depthwise convolutions, ReLU6, and channels that are split and shuffled."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from network import PIECEWISE, Network, images
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Separable(nn.Module):
    """A depthwise convolution and one of size 1."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        self.conv2 = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def mobilenet_v1() -> nn.Sequential:
    stem = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    blocks = [Separable(8, 12, 1), Separable(12, 16, 2), Separable(16, 16, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


class ConvReLU6(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> None:
        convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Is wide inside and narrow outside, and has no ReLU behind the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = inputs * expand
        wide = [ConvReLU6(inputs, inner, 1), ConvReLU6(inner, inner, 3, stride, inner)]
        self.conv = nn.Sequential(*wide, nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.use_res_connect = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + self.conv(x) if self.use_res_connect else self.conv(x))


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        blocks = [InvertedResidual(8, 8, 1, 2), InvertedResidual(8, 12, 2, 3), InvertedResidual(12, 12, 1, 3)]
        self.features = nn.Sequential(ConvReLU6(3, 8, 3), *blocks, ConvReLU6(12, 24, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(24, 10))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.classifier(self.features(x).mean([2, 3])))


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    n, channels, height, width = x.shape
    return x.view(n, groups, channels // groups, height, width).transpose(1, 2).reshape(x.shape)


class ShuffleUnit(nn.Module):
    """Half of the channels pass through, half go through three convolutions, and all are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        first = [nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True)]
        depthwise = [nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False), nn.BatchNorm2d(half)]
        last = [nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True)]
        self.branch2 = nn.Sequential(*first, *depthwise, *last)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, dim=1)
        return channel_shuffle(torch.cat((kept, self.branch2(changed)), dim=1), 2)


def shufflenet_v2() -> nn.Sequential:
    stem = [nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(inplace=True)]
    return nn.Sequential(
        *stem, ShuffleUnit(12), ShuffleUnit(12), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)
    )


class StdConv2d(nn.Conv2d):
    """A convolution whose weights are standardised by batch norm at each call."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class StdBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(2, channels), StdConv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.GroupNorm(2, channels), StdConv2d(channels, channels, 3, padding=1, bias=False)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + self.conv2(self.act(self.norm2(self.conv1(self.act(self.norm1(x)))))))


def resnet_v2_std() -> nn.Sequential:
    blocks = [StdConv2d(3, 8, 3, 2, 1, bias=False), StdBlock(8), StdBlock(8), nn.GroupNorm(2, 8), nn.ReLU()]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


class SqueezeExcite(nn.Module):
    """Scales each channel by a factor that two convolutions of size 1 compute from the means of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        self.bn, self.act, self.gate = nn.Identity(), nn.ReLU(inplace=True), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        return cast(Tensor, x * self.gate(self.fc2(self.act(self.bn(self.fc1(means))))))


class SEBlock(nn.Module):
    """A residual block that scales its branch and, in training, drops it for random inputs (stochastic depth)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.se, self.act1, self.act2 = SqueezeExcite(channels), nn.ReLU(inplace=True), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.se(self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x))))))
        if self.training:
            branch = branch * torch.empty(len(x), 1, 1, 1).bernoulli_(0.9) / 0.9
        return cast(Tensor, self.act2(branch + x))


def se_resnet() -> nn.Sequential:
    stem = [nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(inplace=True)]
    return nn.Sequential(*stem, SEBlock(12), SEBlock(12), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))


class Checkpointed(nn.Module):
    """A network that computes its blocks again in the backward pass instead of keeping their activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        blocks = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(2)]
        self.blocks, self.head = nn.ModuleList(blocks), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = cast(Tensor, checkpoint(block, x, use_reentrant=False))
        return cast(Tensor, self.head(x.mean((2, 3))))


NETWORKS = (
    Network("MobileNet v1", "pytorch-cifar", mobilenet_v1, images()),
    Network("MobileNet v2", "torchvision", MobileNetV2, images(), PIECEWISE),
    Network("ShuffleNet v2", "torchvision", shufflenet_v2, images()),
    Network("ResNet v2 with StdConv", "timm", resnet_v2_std, images()),
    Network("SE-ResNet", "timm", se_resnet, images()),
    Network("checkpointed CNN", "timm", Checkpointed, images()),
)
