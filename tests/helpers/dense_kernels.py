"""Kernels of chains of Linear and ReLU, and regression with them, in float64 numpy: for tests of gatedops.sklearn."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import nn

from gatedops.sklearn.networks import MadeNetwork


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


def made_inputs(network: MadeNetwork, X: np.ndarray) -> np.ndarray:
    """What a made network takes for X, float64 ``(n, d + 1)``: centred, divided by one scale, with a constant."""
    z = (np.asarray(X, np.float64) - network.mean) / network.scale
    return np.hstack([z, np.ones((len(z), 1))]) / np.sqrt(z.shape[1] + 1)


def dense_gates(net: nn.Sequential, x: np.ndarray, slope: float = 0.0) -> list[np.ndarray]:
    """The gates of each layer, float64 ``(n, w)``: 1 if on, and the slope if off."""
    gates, hidden = [], np.asarray(x, dtype=np.float64)
    for layer in [module for module in net if isinstance(module, nn.Linear)][:-1]:
        q = hidden @ layer.weight.detach().double().numpy().T
        q = q if layer.bias is None else q + layer.bias.detach().double().numpy()
        gates.append(np.where(q > 0, 1.0, slope))
        hidden = q * gates[-1]
    return gates


def dense_npk(
    net: nn.Sequential, x: np.ndarray, y: np.ndarray | None = None, *, sigma: bool = True, slope: float = 0.0
) -> np.ndarray:
    """Sigma times the product over layers of 2 / width times the shared gates, float64 ``(n, m)``; sigma=False: that
    product alone."""
    y = x if y is None else y
    kernel = np.asarray(x, np.float64) @ np.asarray(y, np.float64).T if sigma else np.ones((len(x), len(y)))
    for left, right in zip(dense_gates(net, x, slope), dense_gates(net, y, slope), strict=True):
        kernel *= 2 / left.shape[1] * (left @ right.T)
    return kernel


def dense_ridge(K: np.ndarray, targets: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """The dual coefficients of kernel ridge regression, by numpy's solver, and the means of the targets."""
    mean = targets.mean(0)
    system = K + ridge * K.diagonal().mean() * np.eye(len(K))
    return np.linalg.solve(system, targets - mean), mean


def leave_one_out(K: np.ndarray, targets: np.ndarray, ridge: float) -> np.ndarray:
    """What n refits without a point say of it, ``(n, c)``. They keep the shift and the means of all points."""
    mean, shift = targets.mean(0), ridge * K.diagonal().mean()
    said = []
    for i in range(len(K)):
        rest = np.delete(np.arange(len(K)), i)
        alpha = np.linalg.solve(K[np.ix_(rest, rest)] + shift * np.eye(len(rest)), targets[rest] - mean)
        said.append(K[i, rest] @ alpha + mean)
    return np.array(said)
