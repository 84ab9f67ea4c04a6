"""Kernels of chains of Linear and ReLU in plain float64 numpy, for the tests of gatedops.sklearn."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import nn


def relu_chain(*sizes: int, seed: int = 0) -> nn.Sequential:
    """A float64 chain of Linear and ReLU, ending with a Linear, with random weights and biases."""
    drawn = torch.Generator().manual_seed(seed)
    modules: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layer = nn.Linear(inputs, outputs, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.normal_(0, inputs**-0.5, generator=drawn)
            layer.bias.normal_(0, 0.3, generator=drawn)
        modules += [layer, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def dense_gates(net: nn.Sequential, x: np.ndarray) -> list[np.ndarray]:
    """The gates of each layer as 0.0 and 1.0, float64 ``(n, w)``."""
    gates, hidden = [], np.asarray(x, dtype=np.float64)
    for layer in [module for module in net if isinstance(module, nn.Linear)][:-1]:
        q = hidden @ layer.weight.detach().double().numpy().T
        q = q if layer.bias is None else q + layer.bias.detach().double().numpy()
        gates.append((q > 0).astype(np.float64))
        hidden = q * gates[-1]
    return gates


def dense_npk(net: nn.Sequential, x: np.ndarray, y: np.ndarray | None = None, *, sigma: bool = True) -> np.ndarray:
    """Sigma times the product over layers of 2 / width times the shared gates, float64 ``(n, m)``; sigma=False: that
    product alone."""
    y = x if y is None else y
    kernel = np.asarray(x, np.float64) @ np.asarray(y, np.float64).T if sigma else np.ones((len(x), len(y)))
    for left, right in zip(dense_gates(net, x), dense_gates(net, y), strict=True):
        kernel *= 2 / left.shape[1] * (left @ right.T)
    return kernel
