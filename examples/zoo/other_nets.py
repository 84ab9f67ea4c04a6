"""Networks for vectors, points, pairs and games."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from network import PIECEWISE, N, Network, images
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3))


def discriminator() -> nn.Sequential:
    """Returns the discriminator of DCGAN: it has strides instead of pools, LeakyReLU, and one sigmoid at the end."""
    first = [nn.Conv2d(3, 8, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
    second = [nn.Conv2d(8, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.LeakyReLU(0.2, inplace=True)]
    return nn.Sequential(*first, *second, nn.Conv2d(16, 1, 4, 1, 0, bias=False), nn.Flatten(), nn.Sigmoid())


def spectral_discriminator() -> nn.Sequential:
    """Returns a discriminator with ReLU and spectral norm."""
    first, second = spectral_norm(nn.Conv2d(3, 8, 4, 2, 1)), spectral_norm(nn.Conv2d(8, 16, 4, 2, 1))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), spectral_norm(nn.Linear(256, 1)))


class NeRF(nn.Module):
    """Maps the sines and cosines of points and directions to a density and colours; the points enter twice."""

    def __init__(self, width: int = 24, frequencies: int = 3) -> None:
        super().__init__()
        size = 3 + 6 * frequencies
        self.frequencies, self.skip = frequencies, 2
        sizes = [size, width, width + size, width]
        self.pts_linears = nn.ModuleList([nn.Linear(inputs, width) for inputs in sizes])
        self.alpha_linear, self.feature_linear = nn.Linear(width, 1), nn.Linear(width, width)
        self.views_linear, self.rgb_linear = nn.Linear(width + size, width // 2), nn.Linear(width // 2, 3)

    def embedded(self, points: Tensor) -> Tensor:
        scaled = [points * 2.0**k for k in range(self.frequencies)]
        return torch.cat([points, *map(torch.sin, scaled), *map(torch.cos, scaled)], -1)

    def forward(self, x: Tensor) -> Tensor:
        points, views = map(self.embedded, torch.split(x, 3, dim=-1))
        h = points
        for index, layer in enumerate(self.pts_linears):
            h = F.relu(layer(torch.cat([points, h], -1) if index == self.skip else h))
        alpha = self.alpha_linear(h)
        h = F.relu(self.views_linear(torch.cat([self.feature_linear(h), views], -1)))
        return torch.cat([torch.sigmoid(self.rgb_linear(h)), F.relu(alpha)], -1)


class DuelingQNet(nn.Module):
    """Maps frames of a game, with pixels 0 to 255, to a value plus the advantages of the actions less their mean."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(4, 8, 4, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()]
        self.network = nn.Sequential(*convolutions)
        self.advantage = nn.Sequential(nn.Linear(200, 24), nn.ReLU(), nn.Linear(24, 5))
        self.value = nn.Sequential(nn.Linear(200, 24), nn.ReLU(), nn.Linear(24, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.network(x / 255.0)
        advantage = self.advantage(x)
        return cast(Tensor, self.value(x) + advantage - advantage.mean(dim=1, keepdim=True))


class Siamese(nn.Module):
    """Runs one encoder on both of two images, and a linear layer on the distances of its outputs."""

    def __init__(self) -> None:
        super().__init__()
        first = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten()]
        self.encoder = nn.Sequential(*first, nn.Linear(8 * 25, 16), nn.ReLU())
        self.head = nn.Linear(16, 1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return cast(Tensor, self.head((self.encoder(left) - self.encoder(right)).abs()))


class PointNet(nn.Module):
    """Reads each point by itself, then takes the maximum over the points."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8)
        self.conv2, self.bn2 = nn.Conv1d(8, 24, 1), nn.BatchNorm1d(24)
        self.fc1, self.fc2 = nn.Linear(24, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x)).max(dim=2).values
        return F.log_softmax(self.fc2(F.relu(self.fc1(x))), dim=-1)


class GCN(nn.Module):
    """Averages each node of one graph with its neighbours in every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gc1, self.gc2 = nn.Linear(6, 16, bias=False), nn.Linear(16, 4, bias=False)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        x = F.dropout(F.relu(adjacency @ self.gc1(x)), 0.5, training=self.training)
        return F.log_softmax(adjacency @ self.gc2(x), dim=1)


def graph() -> tuple[Tensor, Tensor]:
    """Returns nodes on a ring, and the matrix that averages each node with its two neighbours."""
    ring = torch.eye(N)
    return torch.randn(N, 6), (ring + ring.roll(1, 0) + ring.roll(-1, 0)) / 3


def video_net() -> nn.Sequential:
    """Returns a net with convolutions over frames, rows and columns."""
    layers = [nn.Conv3d(3, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(inplace=True), nn.MaxPool3d(2)]
    return nn.Sequential(
        *layers, nn.Conv3d(6, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 4)
    )


class StyleFeatures(nn.Module):
    """Runs the layers of a Sequential one by one and keeps the outputs of its convolutions."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)]
        self.features = nn.Sequential(*convolutions)

    def forward(self, x: Tensor) -> list[Tensor]:
        taps = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.Conv2d):
                taps.append(x)
        return taps


NETWORKS = (
    Network("MLP", "torch.nn", mlp, lambda: torch.randn(N, 6)),
    Network("DCGAN discriminator", "pytorch/examples", discriminator, images(), PIECEWISE),
    Network("spectral-norm discriminator", "torch.nn", spectral_discriminator, images()),
    Network("NeRF", "nerf-pytorch", NeRF, lambda: torch.randn(N, 6)),
    Network("dueling Q-net", "CleanRL", DuelingQNet, lambda: torch.randint(256, (N, 4, 16, 16)).float()),
    Network("siamese", "pytorch/examples", Siamese, lambda: (torch.randn(N, 1, 16, 16), torch.randn(N, 1, 16, 16))),
    Network("PointNet", "pointnet.pytorch", PointNet, lambda: torch.randn(N, 3, 20)),
    Network("GCN", "pygcn", GCN, graph),
    Network("3-d CNN", "torchvision", video_net, lambda: torch.randn(N, 3, 4, 8, 8)),
    Network("style features", "pytorch/examples", StyleFeatures, images(), {"npk": {"output": 2}}),
)
