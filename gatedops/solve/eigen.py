"""The largest eigenvalues of a kernel matrix, and their vectors."""

from __future__ import annotations

import warnings
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gatedops.operators.adapters import as_operator
from gatedops.operators.base import KernelOperator
from gatedops.ops.checks import require_option
from gatedops.solve import checks
from gatedops.solve.dense import decomposed
from gatedops.solve.lanczos import BlockKrylov
from gatedops.solve.row_tiles import norms, one_thread

METHODS = ("auto", "dense", "lanczos")

# "auto" decomposes a kernel of up to this many points, which takes seconds.
_SMALL = 2000
# A product with this many columns costs little more than one with a few, and more columns take fewer products.
_BLOCK, _LEAST_BLOCK = 32, 8


class Eigenpairs(NamedTuple):
    """The k largest eigenvalues, float64 ``(k,)``, the largest first; their orthonormal vectors ``(n, k)``; and
    ``residuals`` ``(k,)``, the norm of ``K v - value v`` of each pair. An eigenvalue of K is at most that far away."""

    values: Tensor
    vectors: Tensor
    residuals: Tensor


def eigsh(
    K: Any,
    k: int,
    *,
    method: str = "auto",
    tol: float = 1e-6,
    max_products: int = 200,
    seed: int = 0,
) -> Eigenpairs:
    """Returns the k largest eigenvalues of a symmetric kernel matrix, and their vectors.

    Args:
        K: ``(n, n)``: an operator, a tensor, an array, or an operator of scipy or linear_operator.
        k: from 1 to n.
        method: "dense" stores K and decomposes it (24 n^2 bytes). "lanczos" multiplies K by blocks of up to 32 vectors,
            and stores at most ``2 k + 8 * 32`` vectors. "auto" takes "dense" for up to 2,000 points, and if k is more
            than a fifth of n. "lanczos" can miss copies of an eigenvalue that occurs more than 32 times.
        tol: "lanczos" stops when all residuals are at most ``tol * values[0]``. The error of a value that lies apart
            from the others is then about ``tol^2 values[0]``.
        max_products: of K with a block. If they do not suffice, the result has the best pairs that they found.
        seed: of the first block. The same seed gives the same bits.

    Warns:
        RuntimeWarning: max_products did not suffice, or the products are too inexact for tol.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: K is not symmetric, is empty, has entries that are not finite or a diagonal of zeros; an option does
            not exist, a number is out of range, or the memory is too small.

    Source: block Lanczos with thick restarts and full orthogonalisation (Wu and Simon 2000; docs/math.md section 15).
    """
    operator = as_operator(K, "K")
    n = len(checks.checked_diagonal(operator))
    k, tol = checks.whole_number(k, "k", 1, n), checks.tol_of(tol)
    max_products, seed = checks.whole_number(max_products, "max_products", 1), checks.seed_of(seed)
    require_option("method", method, METHODS, listed=True)
    if method == "auto":
        method = "dense" if n <= _SMALL or 5 * k > n else "lanczos"
    if method == "dense":
        values, vectors = decomposed(operator, "use method='lanczos'")
        values, vectors = values[-k:].flip(0), vectors[:, -k:].flip(1)
    else:
        values, vectors = _lanczos(operator, k, tol, max_products, seed)
    residuals = norms(operator.product(vectors) - vectors * values)
    worst = float(residuals.max() / values[0])
    if method != "dense" and worst > tol:
        warnings.warn(
            f"eigsh: residuals are up to {worst:.1e} of the largest eigenvalue, not tol={tol:.1e}: use a larger "
            f"max_products; if that changes nothing, {checks.LARGER_TOL}",
            RuntimeWarning,
            stacklevel=2,
        )
    return Eigenpairs(values, vectors, residuals)


def _lanczos(operator: KernelOperator, k: int, tol: float, max_products: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns the k largest eigenvalues and their vectors, as far as max_products products find them."""
    n, made = operator.shape[0], torch.Generator().manual_seed(seed)
    width = min(n, max(_LEAST_BLOCK, min(k, _BLOCK)))

    def fresh() -> Tensor:
        return torch.randn(n, width, generator=made, dtype=torch.float64, device="cpu").to(operator.device)

    space = BlockKrylov(operator.product, fresh())
    for product in count(1):
        space.extend()
        with one_thread():
            values, vectors = torch.linalg.eigh(space.projected)
            values, vectors = values.flip(0), vectors.flip(1)
            left = norms(space.coupling @ vectors[-space.coupling.shape[1] :, :k])
        if space.size >= k and (bool((left <= tol / 2 * values[0]).all()) or product >= max_products):
            break
        if space.exhausted:
            space.renew(fresh())
        if space.size + width > 2 * k + 8 * _BLOCK:
            kept = k + 2 * _BLOCK
            space.restart(values[:kept], vectors[:, :kept])
    return values[:k], space.combine(vectors[:, :k])
