"""Lists every path of a small fully connected ReLU net one by one: the ground truth for the kernel tests.

It uses numpy and nothing of gatedops, so the listing shares no code with what it checks (docs/math.md, section 1).
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Path = tuple[int, ...]

# The input dimension and the widths of nets with at most 250 paths and one to five gated layers.
PATH_NETS = [
    (3, [8]),
    (1, [5, 5]),
    (5, [5, 10]),
    (7, [1, 6]),
    (3, [3, 5, 5]),
    (2, [5, 1, 5, 5]),
    (2, [3, 3, 2, 3, 2]),
]


def random_net(rng: np.random.Generator, d_in: int, widths: list[int], *, integers: bool) -> list[Array]:
    """Makes the weight matrices (w_l, w_{l-1}) of a net without biases; the last one is (1, w_L)."""
    sizes = [d_in, *widths, 1]
    shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
    if integers:
        return [rng.integers(-3, 4, shape) for shape in shapes]
    return [rng.standard_normal(shape) for shape in shapes]


def forward(weights: list[Array], x: Array) -> tuple[list[Array], Array]:
    """Computes, for inputs (n, d_in), the gates, bool (n, w_l) per layer, and the outputs (n,)."""
    gates, z = [], x
    for weight in weights[:-1]:
        q = z @ weight.T
        gates.append(q > 0)
        z = q * (q > 0)
    return gates, (z @ weights[-1].T)[:, 0]


def all_paths(weights: list[Array]) -> list[Path]:
    """Returns each path as (input node, unit of layer 1, .., unit of layer L)."""
    return list(itertools.product(*(range(weight.shape[1]) for weight in weights)))


def features(x: Array, gates: list[Array], paths: list[Path]) -> Array:
    """Computes the neural path features (n, P): the path's input times its gates."""
    phi = np.zeros((len(x), len(paths)), dtype=x.dtype)
    for row in range(len(x)):
        for index, (node, *units) in enumerate(paths):
            active = all(gates[layer][row, unit] for layer, unit in enumerate(units))
            phi[row, index] = x[row, node] if active else 0
    return phi


def values(weights: list[Array], paths: list[Path]) -> Array:
    """Computes the neural path values (P,): the product of the weights on each path."""
    v = np.ones(len(paths), dtype=weights[0].dtype)
    for index, path in enumerate(paths):
        nodes = (*path, 0)
        for weight, (source, target) in zip(weights, itertools.pairwise(nodes), strict=True):
            v[index] *= weight[target, source]
    return v
