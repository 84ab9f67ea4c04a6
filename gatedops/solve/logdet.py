"""The logarithm of the determinant of a kernel matrix with a ridge."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gatedops.operators.adapters import as_operator
from gatedops.operators.base import KernelOperator
from gatedops.ops.checks import require_option
from gatedops.solve import checks
from gatedops.solve.dense import factored
from gatedops.solve.lanczos import BlockKrylov
from gatedops.solve.preconditioner import Preconditioner, preconditioner_of
from gatedops.solve.row_tiles import one_thread, times, to_tiles, transposed_times

METHODS = ("auto", "cholesky", "lanczos")
# "auto" factors a kernel of up to this many points: 800 MB.
_FACTORED = 10_000
# The Krylov space is large enough when it changes the result by less than this part of the error of the probes.
_CHANGE = 0.05
# At least this many blocks are kept.
_COPIES = 12


class LogDet(NamedTuple):
    """The logarithm of a determinant, and the standard error of this number; 0 if it is exact."""

    value: float
    error: float


def logdet(
    K: Any,
    ridge: float,
    *,
    method: str = "auto",
    rank: int | None = None,
    probes: int = 32,
    max_products: int = 100,
    seed: int = 0,
) -> LogDet:
    """Returns log det(K + ridge * mean(diag K) I), for instance for the likelihood of a Gaussian process.

    Args:
        K: ``(n, n)``, symmetric and positive semidefinite: an operator, a tensor, an array, or an operator of scipy or
            linear_operator.
        ridge: at least 0, in units of the mean of the diagonal of K.
        method: "cholesky" factors the matrix in float64, ``16 n^2`` bytes. "lanczos" splits off the preconditioner P,
            whose determinant is known, and estimates the trace of log(P^-1/2 (K + lambda I) P^-1/2) with random vectors
            of +-1 (stochastic Lanczos quadrature). "auto" takes "cholesky" up to 10,000 points.
        rank: of the preconditioner, as in :func:`kernel_ridge`.
        probes: how many random vectors, at least 2. The error falls with the root of their number.
        max_products: of K with a block of that many vectors. Each takes ``8 n probes`` bytes.
        seed: of the vectors.

    Warns:
        RuntimeWarning: max_products did not suffice, so the error is larger than stated.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: K is not symmetric, is empty, has entries that are not finite, or is not positive definite with this
            ridge; an option does not exist, a number is out of range, or the memory is too small.

    Source: Ubaru, Chen and Saad 2017; docs/math.md section 15.
    """
    operator, ridge = as_operator(K, "K"), checks.ridge_of(ridge)
    diagonal = checks.checked_diagonal(operator)
    n, shift = len(diagonal), ridge * float(diagonal.mean())
    rank, probes = checks.rank_of(rank, n), checks.whole_number(probes, "probes", 2)
    most, seed = checks.whole_number(max_products, "max_products", 1), checks.seed_of(seed)
    require_option("method", method, METHODS, listed=True)
    if method == "cholesky" or (method == "auto" and n <= _FACTORED):
        lower = factored(operator, shift, ridge, "use method='lanczos'")
        return LogDet(2 * float(lower.diagonal().log().sum()), 0.0)
    needed = n * (4 * rank + 8 * _COPIES * probes)
    checks.require_memory(needed, operator.device, f"probes: a block of {probes:,} for {n:,} points", "use fewer")
    preconditioner = preconditioner_of(operator, diagonal, rank)
    if not shift + preconditioner.tail > 0:
        raise ValueError(f"ridge: got {ridge:g}, but the rank of K is at most {rank}, needs a ridge above 0")
    root = _InverseRoot(preconditioner, shift)
    made = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (n, probes), generator=made, device="cpu").to(operator.device, torch.float64) * 2 - 1
    traces = _quadrature(operator, shift, root, signs, most)
    return LogDet(root.logdet(n) + float(traces.mean()), float(traces.std()) / math.sqrt(probes))


class _InverseRoot:
    """P^-1/2 for P = F F^T + s I, with s = shift + tail."""

    def __init__(self, preconditioner: Preconditioner, shift: float) -> None:
        self._tiles, self._scale = preconditioner.tiles, shift + preconditioner.tail
        with one_thread():
            values, vectors = torch.linalg.eigh(preconditioner.gram)
            self._ratios = values.clamp(min=0) / self._scale
            # P^-1/2 = s^-1/2 (I + F C F^T), and C has the eigenvectors of F^T F.
            root = (1 + self._ratios).sqrt()
            self._inner = (vectors * (-1 / (self._scale * root * (1 + root)))) @ vectors.T

    def times(self, v: Tensor) -> Tensor:
        """Returns P^-1/2 v, ``(n, c)``."""
        inside = transposed_times(self._tiles, to_tiles(v))
        with one_thread():
            inside = self._inner @ inside
        return (v + times(self._tiles, inside).flatten(0, 1)[: len(v)]) / math.sqrt(self._scale)

    def logdet(self, n: int) -> float:
        """Returns log det P."""
        return n * math.log(self._scale) + float(self._ratios.log1p().sum())


def _quadrature(operator: KernelOperator, shift: float, root: _InverseRoot, start: Tensor, most: int) -> Tensor:
    """Returns z^T log(P^-1/2 (K + shift I) P^-1/2) z for each column z of start."""

    def product(v: Tensor) -> Tensor:
        inside = root.times(v)
        return root.times(operator.product(inside) + shift * inside)

    space = BlockKrylov(product, start)
    before = None
    for _ in range(most):
        space.extend()
        with one_thread():
            values, vectors = torch.linalg.eigh(space.projected)
            if not float(values[0]) > 0:
                raise ValueError(checks.INDEFINITE)
            inside = vectors[: len(space.head)].T @ space.head
            traces = values.log() @ inside.square()
        error = float(traces.std()) / math.sqrt(len(traces))
        if space.exhausted or (before is not None and abs(float(traces.mean()) - before) <= _CHANGE * error):
            return traces
        before = float(traces.mean())
    warnings.warn(
        f"logdet: {most} products did not suffice; the error is larger than stated: use a larger rank or max_products",
        RuntimeWarning,
        stacklevel=3,
    )
    return traces
