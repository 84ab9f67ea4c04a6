"""The two-call baseline on a GPU: cuBLASLt products whose epilogues write and apply one bit per gate.

Forward: RELU_AUX_BIAS for layers gated by themselves, DRELU on the gates' bits for layers gated from outside (that
epilogue adds no bias: the biases of the nets timed here are 0). Backward: the product that carries a gradient to the
layer below masks it with that layer's bits; only the uppermost gradient is masked in a pass of its own. The bits are
those of GateBits: width / 8 bytes a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from _gated_linear.cublaslt import DRELU, RELU_AUX_BIAS, Product
from _gated_linear.nets import Net


class TwoCalls:
    """One net, planned for its tensors; `forward` and `training` run it and leave results and gradients in buffers."""

    def __init__(self, net: Net):
        width = net.cell.width
        if width % 128:
            raise ValueError(f"the masks of cuBLASLt need a width that is a multiple of 128, got {width}")
        self.net = net
        own = [torch.empty(net.cell.batch, width // 8, dtype=torch.uint8, device=net.x.device) for _ in net.values]
        given = [bits.words.view(torch.uint8) for bits in net.bits]
        self.masks = given or own
        self.features = _Network(net, net.features, self.masks, writes=True)
        self.values = _Network(net, net.values, self.masks, writes=net.kind == "layer")

    def forward(self) -> None:
        for layer in range(self.net.cell.depth):
            for network in (self.features, self.values):
                network.forward(layer)

    def training(self) -> None:
        self.forward()
        trained = [self.features] if self.net.kind == "pair" else []
        gates = self.net.masks[-1] if self.net.masks else None
        for network, cotangent in zip([*trained, self.values], self.net.cotangents, strict=False):
            if gates is None:
                top = (self.features if self.net.features else self.values).results[-1]
                gates = top > 0
            network.backward(cotangent, gates)

    def results(self) -> tuple[Tensor, ...]:
        """Of the last run, in the order of the net's own."""
        return self.net.results(self.features.results[-1] if self.net.features else None, self.values.results[-1])


class _Network:
    """The layers of one network; writes: they are gated by themselves and write their masks."""

    def __init__(self, net: Net, layers: list[tuple[Tensor, Tensor]], masks: list[Tensor], writes: bool):
        weights, biases = ([t.detach() for t in ts] for ts in (zip(*layers, strict=True) if layers else ((), ())))
        self.results = [torch.empty_like(net.x) for _ in weights]
        self.inputs = [net.x, *self.results[:-1]]
        self.gradients = [torch.empty_like(net.x) for _ in weights]
        self.weight_gradients = [torch.empty_like(weight) for weight in weights]
        self.bias_gradients = [torch.empty_like(bias) for bias in biases]
        self._forward, self._down, self._weights = [], [], []
        for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            epilogue = RELU_AUX_BIAS if writes else DRELU
            x, y, mask, gradient = self.inputs[layer], self.results[layer], masks[layer], self.gradients[layer]
            self._forward.append(Product(x, weight.T, y, epilogue, bias if writes else None, mask))
            self._weights.append(Product(gradient.T, x, self.weight_gradients[layer]))
            if layer > 0:
                self._down.append(Product(gradient, weight, self.gradients[layer - 1], DRELU, None, masks[layer - 1]))

    def forward(self, layer: int) -> None:
        if self._forward:
            self._forward[layer]()

    def backward(self, cotangent: Tensor, gates: Tensor) -> None:
        torch.mul(cotangent, gates, out=self.gradients[-1])
        for layer in reversed(range(len(self._weights))):
            self._weights[layer]()
            torch.sum(self.gradients[layer], 0, out=self.bias_gradients[layer])
            if layer > 0:
                self._down[layer - 1]()
