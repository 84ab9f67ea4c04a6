"""The nets that are timed: by gatedops, by plain torch, and only the matrix products that both need."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from gatedops import GateBits, gated_linear, gated_linear_pair

Tensors = tuple[Tensor, ...]
Layers = Callable[[Tensor], Tensors]  # takes x, returns the results that get a gradient

BETA = 4.0


@dataclass(frozen=True)
class Cell:
    """A net of `depth` gated layers of `width` gates on `batch` rows."""

    batch: int
    width: int
    depth: int

    def __str__(self) -> str:
        return f"{self.batch} x {self.width}, {self.depth} layers"


class Net:
    """One kind of net at one size.

    Weights are normal with variance 2 / width, biases are 0. The input x, the cotangents and the gates from outside are
    random and the same on every device.
    """

    def __init__(self, kind: str, cell: Cell, seed: int, device: str = "cpu", dtype: torch.dtype = torch.float32):
        made = torch.Generator().manual_seed(seed)
        n, width = cell.batch, cell.width

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=made)

        def there(t: Tensor) -> Tensor:
            return t.to(device, dtype)

        def network() -> list[tuple[Tensor, Tensor]]:
            weights = [there(normal(width, width) * math.sqrt(2 / width)) for _ in range(cell.depth)]
            return [(weight.requires_grad_(), weight.new_zeros(width).requires_grad_()) for weight in weights]

        self.kind, self.cell = kind, cell
        self.gate: dict[str, Any] = {"gate": "soft", "beta": BETA} if kind == "soft" else {}
        self.x, self.cotangents = there(normal(n, width)), [there(normal(n, width)) for _ in range(2)]
        self.masks = [there(normal(n, width) > 0) for _ in range(cell.depth)] if kind == "value" else []
        self.bits = [GateBits.pack([mask]) for mask in self.masks]
        self.features = [] if kind in ("layer", "value") else network()
        self.values = network()
        if kind == "frozen":
            self.features = [(weight.detach(), bias.detach()) for weight, bias in self.features]

    def facts(self) -> dict[str, object]:
        """For the JSON of an entry."""
        return {"kind": self.kind} | asdict(self.cell)

    @property
    def parameters(self) -> list[Tensor]:
        return [t for layer in [*self.features, *self.values] for t in layer if t.requires_grad]

    def ours(self, x: Tensor) -> Tensors:
        if not self.features:
            gates: Sequence[GateBits | None] = self.bits or [None] * len(self.values)
            for (weight, bias), bits in zip(self.values, gates, strict=True):
                x = gated_linear(x, weight, bias, bits)
            return (x,)
        h = z = x
        for (w_f, b_f), (w_v, b_v) in zip(self.features, self.values, strict=True):
            h, z, _ = gated_linear_pair(h, w_f, b_f, z, w_v, b_v, **self.gate)
        return self.results(h, z)

    def eager(self, x: Tensor) -> Tensors:
        if self.kind == "layer":
            for weight, bias in self.values:
                x = linear(x, weight, bias).relu()
            return (x,)
        if self.kind == "value":
            for (weight, bias), mask in zip(self.values, self.masks, strict=True):
                x = linear(x, weight, bias) * mask
            return (x,)
        h = z = x
        for (w_f, b_f), (w_v, b_v) in zip(self.features, self.values, strict=True):
            q = linear(h, w_f, b_f)
            gate = torch.sigmoid(BETA * q) if self.kind == "soft" else (q > 0).to(q.dtype)
            h, z = q.relu(), linear(z, w_v, b_v) * gate
        return self.results(h, z)

    def results(self, h: Tensor | None, z: Tensor) -> Tensors:
        """A hard gate passes no gradient on: a feature network that is trained then has an output of its own."""
        return (h, z) if h is not None and self.kind == "pair" else (z,)

    def run(self, layers: Layers, backward: bool) -> Callable[[], Tensors]:
        """Returns the call that is timed: a forward without gradients, or a forward and a backward, which drops the
        gradients as an optimiser does."""

        def forward() -> Tensors:
            with torch.no_grad():
                return layers(self.x)

        def training() -> Tensors:
            results = layers(self.x)
            torch.autograd.backward(results, self.cotangents[: len(results)])
            for parameter in self.parameters:
                parameter.grad = None
            return results

        return training if backward else forward

    def products(self, backward: bool) -> Callable[[], None]:
        """Returns a call of the matrix products alone, which no implementation by torch's routines can leave out."""
        x, grad = self.x, self.cotangents[0]

        def run() -> None:
            for network in (self.features, self.values):
                for weight, bias in network:
                    linear(x, weight, bias)
                trained = backward and any(weight.requires_grad for weight, _ in network)
                for _ in network if trained else []:
                    torch.mm(grad.t(), x)
                for weight, _ in network[1:] if trained else []:  # x itself needs no gradient
                    torch.mm(grad, weight)

        return torch.no_grad()(run)
