"""Pivots of a kernel matrix, which serve as a coreset or as centres."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gatedops.operators.adapters import as_operator
from gatedops.solve.checks import checked_diagonal, seed_of, whole_number
from gatedops.solve.pivoted_cholesky import pivoted_factor


def pivots(K: Any, k: int, *, seed: int = 0) -> Tensor:
    """Returns k rows of a kernel that represent the others well, int64 ``(k,)``, by randomly pivoted Cholesky.

    The pivots can serve as a coreset, or as the centres of `nystrom`. What is left of the diagonal is computed in
    float64. The same seed gives the same pivots for any number of threads.

    Args:
        K: ``(n, n)``: an operator, a tensor, an array, or an operator of scipy or linear_operator.
        k: from 1 to n.
        seed: of the draws.

    Raises:
        ValueError: k is out of range; K is not square, is not finite or has a negative diagonal entry, or its rank is
            below k.
    """
    operator = as_operator(K, "K")
    diagonal = checked_diagonal(operator)
    count = whole_number(k, "k", 1, len(diagonal))
    index = pivoted_factor(operator, diagonal, count, seed_of(seed)).index
    if len(index) < count:
        raise ValueError(f"k: got {k}, but the rank of K is {len(index)} in its precision: ask for at most that many")
    return index
