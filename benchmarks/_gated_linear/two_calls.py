"""The two-call baseline on a GPU: cuBLASLt products whose epilogues write and apply one bit per gate.

The forward uses RELU_AUX_BIAS for layers gated by themselves, and DRELU on the gates' bits for layers gated from
outside. DRELU adds no bias: the biases of the nets timed here are 0. In the backward, the product that carries a
gradient to the layer below masks it with that layer's bits; only the uppermost gradient is masked in a pass of its own.
The bits are laid out as in GateBits, width / 8 bytes a row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from _gated_linear.cublaslt import DRELU, RELU_AUX_BIAS, Product
from _gated_linear.nets import Net, Tensors


class TwoCalls:
    """One net, planned for its tensors; results and gradients are left in buffers that every run uses again."""

    def __init__(self, net: Net):
        self.net = net
        given = [bits.words.view(torch.uint8) for bits in net.bits]
        size = (net.cell.batch, net.cell.width // 8)
        masks = given or [torch.empty(size, dtype=torch.uint8, device=net.x.device) for _ in net.values]
        self.features = _Network(net, net.features, masks, writes=True)
        self.values = _Network(net, net.values, masks, writes=net.kind == "layer")

    def run(self, backward: bool) -> Callable[[], Tensors]:
        """Returns the call that is timed, which returns the results in the order of the net's own."""
        return self._training if backward else self._forward

    def _forward(self) -> Tensors:
        for layer in range(self.net.cell.depth):
            for network in (self.features, self.values):
                network.forward(layer)
        return self.net.results(self.features.results[-1] if self.net.features else None, self.values.results[-1])

    def _training(self) -> Tensors:
        results = self._forward()
        trained = [self.features] if self.net.kind == "pair" else []
        gating = self.features if self.net.features else self.values
        gates = self.net.masks[-1] if self.net.masks else gating.results[-1] > 0
        for network, cotangent in zip([*trained, self.values], self.net.cotangents, strict=False):
            network.backward(cotangent, gates)
        return results


class _Network:
    """The layers of one network. With `writes` they are gated by themselves and write their masks."""

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
