"""The score of Mellor et al., "Neural Architecture Search without Training" (ICML 2021, arXiv 2006.04647)."""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from torch import Tensor

from gatedops.gatebits import GateBits
from gatedops.ops.overlap import gate_agreement
from gatedops.stats.checks import require_gates
from gatedops.stats.regions import count_regions

_MOST_INPUTS = 30_000  # the kernel is a matrix: 16 bytes for each pair of inputs, 14.4 GB


@overload
def naswot_score(bits: GateBits, *, per_layer: Literal[False] = False) -> float: ...


@overload
def naswot_score(bits: GateBits, *, per_layer: Literal[True]) -> tuple[float, ...]: ...


def naswot_score(bits: GateBits, *, per_layer: bool = False) -> float | tuple[float, ...]:
    """``log |det K_H|``, ``K_H[s, s'] = N - d_H(s, s')`` with N gates and d_H the Hamming distance of the activation
    patterns (docs/math.md, section 12): the larger, the better an untrained net tells the inputs of a batch apart.

    This is the definition of the paper and of its released code, which sums ``g g^T + (1 - g)(1 - g)^T`` over the ReLU
    modules of a net and takes ``numpy.linalg.slogdet``; both use one batch of 128 inputs. Layers are not weighted: wide
    ones count for more. (The first version of the paper scored Jacobians instead.)

    K_H is positive semi-definite and its entries are integers, so that its determinant is 0 or at least 1: the score is
    -inf or at least 0. It is -inf where two inputs have the same pattern, where there are more than ``N + 1`` inputs,
    and wherever the least eigenvalue is 0 to float64 rounding (``n * 2^-52`` times the largest). The released code
    returns what rounding leaves of such a determinant.

    Args:
        bits: gates of n inputs. Needs 16 bytes for each of the n^2 pairs, and n^3 operations: batches, not data sets.
        per_layer: the score of every layer by itself instead, one for each.

    Raises:
        TypeError, ValueError: bits is no GateBits, has no inputs, or more than 30,000.
    """
    require_gates(bits, "naswot_score")
    if bits.n > _MOST_INPUTS:
        raise ValueError(f"bits: has {bits.n} inputs, too many for a matrix; needs at most {_MOST_INPUTS}")
    layers = [bits.layers_of([index]) for index in range(len(bits.layers))]
    regions = count_regions(bits)
    if per_layer:
        return tuple(_score([layer], distinct) for layer, distinct in zip(layers, regions.layers, strict=True))
    return _score(layers, regions.net)


def _score(layers: list[GateBits], distinct: int) -> float:
    """The log-determinant of the agreements of these layers, `distinct` the number of different patterns in them."""
    n, gates = layers[0].n, sum(layer.widths[0] for layer in layers)
    if distinct < n or n > gates + 1:
        return -math.inf
    kernel = torch.zeros(n, n, dtype=torch.float64, device=layers[0].device)
    for layer in layers:
        kernel += gate_agreement(layer)[0]
    return _log_determinant(kernel)


def _log_determinant(kernel: Tensor) -> float:
    eigenvalues = torch.linalg.eigvalsh(kernel)  # ascending
    least = len(kernel) * torch.finfo(torch.float64).eps * float(eigenvalues[-1])
    return float(eigenvalues.log().sum()) if float(eigenvalues[0]) > least else -math.inf
