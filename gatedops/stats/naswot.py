"""The score of Mellor et al., "Neural Architecture Search without Training" (ICML 2021, arXiv 2006.04647)."""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from torch import Tensor

from gatedops.devices import in_float64
from gatedops.gatebits import GateBits
from gatedops.ops.overlap import gate_agreement
from gatedops.progress import with_bar
from gatedops.scalars import whole_number
from gatedops.stats.checks import require_gates
from gatedops.stats.regions import count_regions

# The kernel is a matrix with 16 bytes for each pair of inputs, 14.4 GB for this many inputs.
_MOST_INPUTS = 30_000


@overload
def naswot_score(
    bits: GateBits, *, per_layer: Literal[False] = False, batch_size: int | None = None, progress: bool | None = None
) -> float: ...


@overload
def naswot_score(
    bits: GateBits, *, per_layer: Literal[True], batch_size: int | None = None, progress: bool | None = None
) -> tuple[float, ...]: ...


def naswot_score(
    bits: GateBits, *, per_layer: bool = False, batch_size: int | None = None, progress: bool | None = None
) -> float | tuple[float, ...]:
    """Returns ``log |det K_H|``, where ``K_H[s, s'] = N - d_H(s, s')`` for N gates and the Hamming distance d_H of the
    activation patterns (docs/math.md, section 12). The larger it is, the better an untrained net tells the inputs of a
    batch apart.

    The released code of the paper sums ``g g^T + (1 - g)(1 - g)^T`` over the calls of the ReLU modules of a net and
    takes ``numpy.linalg.slogdet``. It runs one batch of 128 inputs through the untrained net in training mode, so that
    batch norms take the statistics of that batch. Its score is that of

        naswot_score(record_gates(net, x, batch_size=len(x), training=True))

    and gates recorded in evaluation mode have another score. Layers are not weighted, so wide layers count for more.
    (The first version of the paper scored Jacobians instead.)

    K_H is positive semi-definite and its entries are integers, so its determinant is 0 or at least 1, and the score is
    -inf or at least 0. It is -inf if two inputs have the same pattern, if there are more than ``N + 1`` inputs, or if
    the least eigenvalue is 0 up to float64 rounding (``n * 2^-52`` times the largest). For such a determinant the
    released code returns a number that is only rounding.

    Args:
        bits: gates of n inputs. All n at once need 16 bytes for each of the n^2 pairs, and n^3 operations.
        per_layer: return the score of every layer by itself instead.
        batch_size: return the mean score of successive batches of that many inputs, for a data set of any size. Inputs
            at the end that do not fill a batch are not scored.
        progress: show a bar (tqdm) over the batches. None: on a terminal, once it has taken a second.

    Raises:
        TypeError, ValueError: bits is not a GateBits, or has no inputs; batch_size, or n without it, is above 30,000.
    """
    require_gates(bits)
    size = _batch(bits.n, batch_size)
    starts = range(0, bits.n - size + 1, size)
    total = [0.0] * (len(bits.layers) if per_layer else 1)
    for start in with_bar(starts, "scoring", "batch", len(starts), progress):
        found = _scores(bits[start : start + size], per_layer)
        total = [one + other for one, other in zip(total, found, strict=True)]
    means = tuple(one / len(starts) for one in total)
    return means if per_layer else means[0]


def _batch(n: int, batch_size: int | None) -> int:
    """The number of inputs that are scored at a time."""
    if batch_size is None:
        if n > _MOST_INPUTS:
            raise ValueError(
                f"bits: has {n} inputs, too many for a matrix; needs at most {_MOST_INPUTS}, or batch_size=128"
            )
        return n
    size = whole_number(batch_size)
    if size is None:
        raise TypeError(f"batch_size: got {batch_size!r}, needs a whole number")
    most = min(n, _MOST_INPUTS)
    if not 1 <= size <= most:
        raise ValueError(f"batch_size: got {size}, needs 1 .. {most} for {n} inputs")
    return size


def _scores(bits: GateBits, per_layer: bool) -> list[float]:
    """The scores of one batch: of each layer by itself, or of all layers together."""
    layers = [bits.select_layers([index]) for index in range(len(bits.layers))]
    regions = count_regions(bits)
    if per_layer:
        return [_score([layer], distinct) for layer, distinct in zip(layers, regions.layers, strict=True)]
    return [_score(layers, regions.net)]


def _score(layers: list[GateBits], distinct: int) -> float:
    """The log-determinant of the agreements of these layers, which have `distinct` different patterns."""
    n, gates = layers[0].n, sum(layer.widths[0] for layer in layers)
    if distinct < n or n > gates + 1:
        return -math.inf
    kernel = gate_agreement(layers[0])[0]
    for layer in layers[1:]:
        kernel += gate_agreement(layer)[0]
    return _log_determinant(in_float64(kernel))


def _log_determinant(kernel: Tensor) -> float:
    # eigvalsh returns the eigenvalues in ascending order.
    eigenvalues = torch.linalg.eigvalsh(kernel)
    least = len(kernel) * torch.finfo(torch.float64).eps * float(eigenvalues[-1])
    return float(eigenvalues.log().sum()) if float(eigenvalues[0]) > least else -math.inf
