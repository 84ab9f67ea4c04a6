"""Small networks with the parts of modern ones: concatenation, groups, channel shuffle, slopes, batch norms anywhere,
factors, interpolation, tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Calls(nn.Module):
    """Computes ``forward(self, x)`` with the given parts."""

    def __init__(self, forward: Callable[[Calls, Tensor], object], **parts: nn.Module | nn.Parameter | Tensor) -> None:
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> object:
        return self._forward(self, x)


def conv(inside: int, out: int, kernel: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inside, out, kernel, **({"padding": kernel // 2} | options))


def shuffle(x: Tensor, groups: int) -> Tensor:
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def head(channels: int, pixels: int = 1) -> nn.Sequential:
    return nn.Sequential(
        *[] if pixels > 1 else [nn.AdaptiveAvgPool2d(1)], nn.Flatten(), nn.Linear(channels * pixels, 2)
    )


# Gives for each network a function that makes it, and the shape of its inputs.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "parts side by side": (
        lambda: Calls(
            lambda net, x: net.out(net.c(torch.cat([h := net.a(x).relu(), net.b(h), x], 1)).relu()),
            a=conv(2, 2),
            b=conv(2, 2, 1, bias=False),
            c=conv(6, 4, groups=2),
            out=head(4, 4),
        ),
        (2, 2, 2),
    ),
    "depthwise": (
        lambda: nn.Sequential(
            *[conv(2, 4, groups=2), nn.ReLU(), conv(4, 4, groups=4, bias=False), conv(4, 2, 1), nn.ReLU()],
            *[conv(2, 2, groups=2), nn.ReLU(), head(2)],
        ),
        (2, 2, 1),
    ),
    "channels shuffled and split": (
        lambda: Calls(
            lambda net, x: net.out(
                torch.cat([(h := shuffle(net.b(net.a(x).relu()).relu(), 2).chunk(2, 1))[0], net.c(h[1]).relu()], 1)
            ),
            a=conv(1, 4),
            b=conv(4, 4, 1, groups=2),
            c=conv(2, 2),
            out=head(4, 4),
        ),
        (1, 2, 2),
    ),
    "batch norm before layers": (
        lambda: Calls(
            lambda net, x: net.out(net.n2(net.b(net.n1(h := net.a(net.n0(x))).relu()) + h).relu()),
            n0=nn.BatchNorm2d(2),
            a=conv(2, 3, bias=False),
            n1=nn.BatchNorm2d(3),
            b=conv(3, 3, 1),
            n2=nn.BatchNorm2d(3),
            out=head(3, 4),
        ),
        (2, 2, 2),
    ),
    "slopes": (
        lambda: Calls(
            lambda net, x: net.out(net.p(net.c(F.leaky_relu(net.b(net.a(x).abs()), 0.3)))),
            a=conv(1, 3),
            b=conv(3, 3, 1),
            c=conv(3, 3, 1),
            p=nn.PReLU(3),
            out=head(3),
        ),
        (1, 2, 3),
    ),
    "max-pools behind a slope": (
        lambda: nn.Sequential(
            conv(2, 3), nn.LeakyReLU(0.2), nn.MaxPool2d(2, 1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6, 2)
        ),
        (2, 5, 4),
    ),
    "factors": (
        lambda: Calls(
            lambda net, x: net.out((net.b(net.a((x - net.mean) / net.std).relu() * net.share) * net.layer + x).relu()),
            mean=torch.rand(2, 1, 1),
            std=torch.rand(2, 1, 1) + 0.5,
            share=torch.tensor(0.5),
            a=conv(2, 3, 1),
            b=conv(3, 2),
            layer=nn.Parameter(torch.rand(2, 1, 1)),
            out=nn.Sequential(conv(2, 2, 1), head(2, 4)),
        ),
        (2, 2, 2),
    ),
    "pixels moved and mixed": (
        lambda: nn.Sequential(
            *[conv(1, 2, 2, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Upsample(scale_factor=2)],
            *[conv(2, 2, 1), nn.ReLU(), nn.Upsample((3, 5), mode="bilinear"), nn.AdaptiveAvgPool2d(2), head(2, 4)],
        ),
        (1, 2, 3),
    ),
    "signals": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Conv1d(3, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)
        ),
        (2, 5),
    ),
    "tokens": (
        lambda: Calls(
            lambda net, x: net.out((net.b(h := net.a(x).relu()).relu() + h).mean(1)),
            a=nn.Linear(3, 4),
            b=nn.Linear(4, 4),
            out=nn.Linear(4, 2),
        ),
        (5, 3),
    ),
    "vectors side by side": (
        lambda: Calls(
            lambda net, x: net.out(torch.cat([h := net.a(x).relu(), F.leaky_relu(net.b(h), 0.1), x[:, :2]], 1)),
            a=nn.Linear(3, 4),
            b=nn.Linear(4, 3),
            out=nn.Linear(9, 2),
        ),
        (3,),
    ),
}


@torch.no_grad()
def modern(name: str) -> nn.Module:
    """Makes a network of NETWORKS in float64 and evaluation mode, with seeded weights and statistics."""
    torch.manual_seed(0)
    net = NETWORKS[name][0]()
    for parameter in net.parameters():
        parameter.normal_()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net.double().eval()


def inputs_of(name: str, n: int) -> Tensor:
    return torch.randn(n, *NETWORKS[name][1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
