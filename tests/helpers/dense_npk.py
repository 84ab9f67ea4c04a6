"""The kernels of gatedops.sklearn's fully connected nets, dense and in float64, by numpy alone."""

from __future__ import annotations

import numpy as np
from torch import nn


def made_inputs(network, X):
    """The inputs that a made network takes: centred, divided by one scale, with a constant."""
    z = (np.asarray(X, np.float64) - network.mean) / network.scale
    return np.hstack([z, np.ones((len(z), 1))]) / np.sqrt(z.shape[1] + 1)


def dense_kernel(net, x, y, *, slope=0.0, sigma=True):
    """Sigma * prod_l 2 / w_l <g_l(x), g_l(y)>, where a gate that is off counts as the slope."""
    K = x @ y.T if sigma else np.ones((len(x), len(y)))
    for layer in [module for module in net.modules() if isinstance(module, nn.Linear)][:-1]:
        weight = layer.weight.detach().double().numpy()
        bias = 0.0 if layer.bias is None else layer.bias.detach().double().numpy()
        x, y = x @ weight.T + bias, y @ weight.T + bias
        gates = [np.where(side > 0, 1.0, slope) for side in (x, y)]
        K = K * (gates[0] @ gates[1].T) * 2 / len(weight)
        x, y = x * gates[0], y * gates[1]
    return K


def dense_ridge(K, targets, ridge):
    """Returns alpha and the mean of the targets, by numpy's solver."""
    mean = targets.mean(0)
    system = K + ridge * K.diagonal().mean() * np.eye(len(K))
    return np.linalg.solve(system, targets - mean), mean


def leave_one_out(K, targets, ridge):
    """Returns what n refits without a point say of it, which keep the shift and the means of all points."""
    mean, shift = targets.mean(0), ridge * K.diagonal().mean()
    said = []
    for i in range(len(K)):
        rest = np.delete(np.arange(len(K)), i)
        alpha = np.linalg.solve(K[np.ix_(rest, rest)] + shift * np.eye(len(rest)), targets[rest] - mean)
        said.append(K[i, rest] @ alpha + mean)
    return np.array(said)
