"""Runs networks of one architecture with different seeds as one network, whose parameters have the seeds first.

For S seeds and batches of B, activations are (S, B, w) between dense layers and (B, S * C, H, W) between convolutions:
there the seeds are the groups of one convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gatedops import DGN, DLGN

LAYERS = (nn.Linear, nn.Conv2d)

Activate = Callable[[int, Tensor], Tensor]


class StackedLinear(nn.Module):
    """S linear layers as one.

    The weight is (S, in, out), because the product of a batch of 32 with (S, out, in) took 3.5 times as long on the
    CPU.
    """

    def __init__(self, layers: Sequence[nn.Linear]):
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach().T for layer in layers]).contiguous())
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]).unsqueeze(1))

    def forward(self, z: Tensor) -> Tensor:
        if z.dim() == 4:
            z = z.unflatten(1, (len(self.weight), -1)).flatten(2).transpose(0, 1)
        return torch.baddbmm(self.bias, z, self.weight)

    def copy_to(self, seed: int, layer: nn.Linear) -> None:
        layer.weight.copy_(self.weight[seed].T)
        layer.bias.copy_(self.bias[seed, 0])


class StackedConv2d(nn.Module):
    """S convolutions as the groups of one convolution."""

    def __init__(self, layers: Sequence[nn.Conv2d]):
        super().__init__()
        self.seeds, one = len(layers), layers[0]
        self.conv = nn.utils.skip_init(
            nn.Conv2d,
            self.seeds * one.in_channels,
            self.seeds * one.out_channels,
            one.kernel_size,
            padding=one.padding,
            padding_mode=one.padding_mode,
            groups=self.seeds,
            device=one.weight.device,
            dtype=one.weight.dtype,
        )
        with torch.no_grad():
            self.conv.weight.copy_(torch.cat([layer.weight for layer in layers]))
            self.conv.bias.copy_(torch.cat([layer.bias for layer in layers]))

    def forward(self, z: Tensor) -> Tensor:
        return self.conv(z)

    def copy_to(self, seed: int, layer: nn.Conv2d) -> None:
        layer.weight.copy_(self.conv.weight.chunk(self.seeds)[seed])
        layer.bias.copy_(self.conv.bias.chunk(self.seeds)[seed])


def stacked_layer(layers: Sequence[nn.Module]) -> nn.Module:
    """Makes one layer of one layer of every seed."""
    return StackedLinear(layers) if isinstance(layers[0], nn.Linear) else StackedConv2d(layers)


def layers_of(network: nn.Module) -> list[nn.Module]:
    """Returns the linear layers and convolutions in the order in which they run."""
    return [module for module in network.modules() if isinstance(module, LAYERS)]


def as_channels(x: Tensor) -> Tensor:
    """Returns x (S, B, ...) as layers take it: (S, B, w) stays as it is, (S, B, C, H, W) becomes (B, S * C, H, W)."""
    return x if x.dim() == 3 else x.transpose(0, 1).flatten(1, 2)


class StackedChain(nn.Module):
    """S networks that are chains.

    chain     one of the networks as an nn.Sequential, with an nn.ReLU at every gated layer
    networks  the networks whose layers are copied; they may end before the chain does
    """

    def __init__(self, chain: nn.Sequential, networks: Sequence[nn.Module]):
        super().__init__()
        layers = [stacked_layer(of_seeds) for of_seeds in zip(*map(layers_of, networks), strict=True)]
        self.steps = nn.ModuleList()
        remaining = iter(layers)
        for module in chain:
            step = next(remaining, None) if isinstance(module, LAYERS) else module
            if step is None:
                break
            # An nn.Flatten is left out, because StackedLinear flattens its input.
            if not isinstance(step, nn.Flatten):
                self.steps.append(step)

    def forward(self, x: Tensor, activate: Activate) -> Tensor:
        """Maps x (S, B, ...) to (S, B, outputs); activate(l, z) takes the place of the ReLU of gated layer l."""
        z, gate = as_channels(x), 0
        for step in self.steps:
            if isinstance(step, nn.ReLU):
                z = activate(gate, z)
                gate += 1
            else:
                z = step(z)
        return z

    @torch.no_grad()
    def copy_to(self, networks: Sequence[nn.Module]) -> None:
        """Writes the parameters of each seed into a network of its own."""
        stacked = [step for step in self.steps if isinstance(step, (StackedLinear, StackedConv2d))]
        for seed, network in enumerate(networks):
            for step, layer in zip(stacked, layers_of(network), strict=True):
                step.copy_to(seed, layer)


class StackedReLU(nn.Module):
    """S ordinary ReLU networks."""

    def __init__(self, networks: Sequence[nn.Sequential]):
        super().__init__()
        self.value = StackedChain(networks[0], networks)

    def forward(self, x: Tensor, gates: Sequence[Tensor] | None = None) -> Tensor:
        return self.value(x, lambda _, z: z.relu())


class StackedDGN(nn.Module):
    """S deep gated networks, DGN or DLGN, of one mode.

    models  one for each seed
    chain   their architecture as an ordinary ReLU network
    """

    def __init__(self, models: Sequence[DGN], chain: nn.Sequential):
        super().__init__()
        one = models[0]
        self.ones, self.order = one.value_input == "ones", one.order
        self.beta, self.gain, self.shallow = one.beta, one.gain, one.shallow
        self.linear = isinstance(one, DLGN)
        self.value = StackedChain(chain, [model.value for model in models])
        self.feature = self._features(models, chain) if one.gate == "soft" else None

    def _features(self, models: Sequence[DGN], chain: nn.Sequential) -> nn.Module:
        if not self.shallow:
            return StackedChain(chain, [model.feature for model in models])
        of_gates = zip(*(layers_of(model.feature) for model in models), strict=True)
        return nn.ModuleList(stacked_layer(layers) for layers in of_gates)

    def forward(self, x: Tensor, gates: Sequence[Tensor] | None = None) -> Tensor:
        """Maps x (S, B, ...) to (S, B, outputs).

        gates  those of frozen feature networks, bool (S * B, ...) in the order of the value layers; None: soft gates
        """
        if gates is None:
            found = self.soft_gates(x)
        else:
            # The conversion to numbers happens once here; otherwise forward and backward would each do it.
            found = [as_channels(gate.unflatten(0, x.shape[:2])).to(x.dtype) for gate in gates]
        return self.value(torch.ones_like(x) if self.ones else x, lambda layer, z: z * found[layer])

    def soft_gates(self, x: Tensor) -> list[Tensor]:
        """Returns gain * sigmoid(beta * q) for each value layer, in the layout of its activations."""
        if self.feature is None:
            raise ValueError("gates: needs those of the frozen feature networks, got None")
        q: list[Tensor] = []

        def record(_: int, z: Tensor) -> Tensor:
            q.append(z)
            return z if self.linear else z.relu()

        if self.shallow:
            q += [layer(as_channels(x)) for layer in self.feature]
        else:
            self.feature(x, record)
        return [self.gain * torch.sigmoid(self.beta * q[layer]) for layer in self.order]
