"""Four networks written the way people write them, and for each the hooks that its owner would write for its gates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE = (3, 32, 32)
TOKENS, EMBEDDING = 32, 256
CLASSES = 10
VGG11 = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")


@dataclass(frozen=True)
class Subject:
    """A network of the benchmark.

    shape   of one input
    owners  the modules whose output is > 0 exactly where a gate is on, in call order: what hooks by hand are put on
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    owners: Callable[[nn.Module], list[nn.Module]]


class Block(nn.Module):
    """ResNet's basic block, its ReLUs functional."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.shortcut = nn.Sequential()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.bn1(self.conv1(x)))
        z = self.bn2(self.conv2(z))
        z += self.shortcut(x)
        return F.relu(z)


class ResNet18(nn.Module):
    """ResNet-18 for 32 x 32 images: 17 gated layers, 557,056 gates."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(IMAGE[0], 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        widths = (64, 128, 256, 512)
        blocks: list[nn.Module] = []
        for inside, outside in zip((64, *widths), widths, strict=False):
            blocks += [Block(inside, outside, 1 if inside == outside else 2), Block(outside, outside, 1)]
        self.layers = nn.Sequential(*blocks)
        self.linear = nn.Linear(512, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(F.relu(self.bn1(self.conv1(x))))
        return self.linear(F.avg_pool2d(x, 4).flatten(1))


class Encoder(nn.Module):
    """Two of torch's transformer encoder layers and a head over the mean token."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(EMBEDDING, 4, 1024, activation="relu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(EMBEDDING, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


def mlp() -> nn.Sequential:
    """3,072 inputs, four gated layers of 1,024."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inside in (3072, 1024, 1024, 1024):
        layers += [nn.Linear(inside, 1024), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(1024, CLASSES))


def vgg11() -> nn.Sequential:
    """VGG-11 for 32 x 32 images, without batch norm."""
    layers: list[nn.Module] = []
    channels = IMAGE[0]
    for width in VGG11:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
    head = [nn.Flatten(), nn.Linear(512, 512), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(512, CLASSES)]
    return nn.Sequential(*layers, *head)


def _relus(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, nn.ReLU)]


def _residual(net: nn.Module) -> list[nn.Module]:
    owners: list[nn.Module] = [net.get_submodule("bn1")]
    for block in net.get_submodule("layers").children():
        owners += [block.get_submodule("bn1"), block]
    return owners


def _hidden(net: nn.Module) -> list[nn.Module]:
    return [layer.linear1 for layer in net.modules() if isinstance(layer, nn.TransformerEncoderLayer)]


SUBJECTS = (
    Subject("MLP", mlp, IMAGE, _relus),
    Subject("VGG-11", vgg11, IMAGE, _relus),
    Subject("ResNet-18", ResNet18, IMAGE, _residual),
    Subject("transformer", Encoder, (TOKENS, EMBEDDING), _hidden),
)


def random_problem(subject: Subject, n: int, seed: int) -> tuple[nn.Module, Tensor]:
    """The network with random weights, in evaluation mode, and n normal inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return subject.make().eval(), torch.randn(n, *subject.shape)
