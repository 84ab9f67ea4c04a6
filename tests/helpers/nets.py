"""Small networks in the styles that people write, for the tests of gatedops.trace.

Networks with ``taps`` copy every pre-activation themselves, just before its ReLU. Recorded gates are compared with
these copies, which share no code with the recorder.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Tapped(nn.Module):
    """Keeps a copy of each tensor that passes ``tap``."""

    def __init__(self) -> None:
        super().__init__()
        self.taps: list[Tensor] = []

    def tap(self, q: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.taps.append(q.detach().clone())
        return q


class EveryForm(Tapped):
    """Calls a ReLU in each way, in place or not, shared and repeated; (n, 6) inputs, 2 outputs."""

    # These are the names of the gates, in the order of the calls.
    names = ("act", "act#2", "relu", "relu#2", "relu#3", "relu#4", "relu#5", "relu#6", "inner.0", "inner.0#2")

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6 if i == 0 else 9, 9) for i in range(10))
        self.act = nn.ReLU(inplace=True)
        self.alias = self.act
        self.inner = nn.Sequential(nn.ReLU())
        self.head = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        forms: list[Callable[[Tensor], Tensor]] = [
            self.act,
            self.alias,
            F.relu,
            lambda q: F.relu(input=q, inplace=True),
            torch.relu,
            torch.relu_,
            lambda q: q.relu(),
            lambda q: q.relu_(),
            self.inner,
            self.inner[0],
        ]
        for layer, form in zip(self.layers, forms, strict=True):
            x = form(self.tap(layer(x)))
        return self.head(x)


class Dropped(Tapped):
    """Throws away the result of an in-place ReLU; (n, 5) inputs, 3 outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.act = nn.Linear(5, 7), nn.Linear(7, 3), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tap(self.first(x))
        self.act(x)
        return self.second(x)


class Block(nn.Module):
    """conv, norm, relu, conv, norm, add, relu, all functional; the shortcut is a strided 1x1 if the size changes."""

    def __init__(self, owner: Tapped, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.tap = owner.tap
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.shortcut = nn.Identity()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.tap(self.bn1(self.conv1(x))))
        z = self.bn2(self.conv2(z))
        z += self.shortcut(x)
        return F.relu(self.tap(z))


class ResNet(Tapped):
    """A small ResNet-18: stem with a max-pool, two blocks, global average; (n, 3, 12, 12) inputs, 4 outputs."""

    names = ("relu", "block1.relu", "block1.relu#2", "block2.relu", "block2.relu#2")

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 5, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(5)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.block1 = Block(self, 5, 5, 1)
        self.block2 = Block(self, 5, 7, 2)
        self.fc = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.tap(self.bn1(self.conv1(x)))))
        x = self.block2(self.block1(x))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Attention(nn.Module):
    """Two of torch's transformer encoder layers and a head; (n, 5, 8) inputs, 3 outputs."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 11, dropout=0.1, activation="relu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


def mlp(*, bias: bool = True) -> nn.Sequential:
    """Makes a net with (n, 6) inputs, two gated layers and 3 outputs."""
    return nn.Sequential(
        nn.Linear(6, 33, bias), nn.ReLU(), nn.Linear(33, 20, bias), nn.ReLU(inplace=True), nn.Linear(20, 3, bias)
    )


def vgg() -> nn.Sequential:
    """Makes a small VGG with (n, 3, 8, 8) inputs and 4 outputs."""
    features: list[nn.Module] = []
    for inside, outside in ((3, 6), (6, 9)):
        features += [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU(True), nn.MaxPool2d(2)]
    head = [nn.Flatten(), nn.Linear(36, 17), nn.ReLU(True), nn.Dropout(), nn.Linear(17, 4)]
    return nn.Sequential(nn.Sequential(*features), nn.Sequential(*head))


INPUTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "every form": (EveryForm, (6,)),
    "dropped": (Dropped, (5,)),
    "mlp": (mlp, (6,)),
    "vgg": (vgg, (3, 8, 8)),
    "resnet": (ResNet, (3, 12, 12)),
    "transformer": (Attention, (5, 8)),
}


def made(name: str, n: int, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Makes the network in evaluation mode, with statistics in its batch norms, and inputs (n, ...)."""
    make, shape = INPUTS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net, x = make(), torch.randn(n, *shape)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.running_mean, module.weight.data, module.bias.data):
                    tensor.normal_()
                module.running_var.uniform_(0.5, 2.0)
    return net.eval(), x


def pre_activations(name: str, net: nn.Module, x: Tensor) -> list[Tensor]:
    """Returns what enters each ReLU, in call order: from the taps, or from hooks on the ReLU modules."""
    seen: list[Tensor] = []
    hooks = []
    for module in net.modules():
        if isinstance(module, nn.ReLU) and not isinstance(net, Tapped):
            hooks.append(module.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone())))
        if isinstance(module, nn.TransformerEncoderLayer):
            hooks.append(module.linear1.register_forward_hook(lambda _, args, output: seen.append(output.clone())))
    if isinstance(net, Tapped):
        net.taps.clear()
        seen = net.taps
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return list(seen)
