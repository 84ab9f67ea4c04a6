"""Solves with kernel matrices of any size: ridge regression, leave-one-out, gradient flow, eigenvalues, pivots.

Every function takes an operator (gatedops.NPKOperator), a tensor, or an operator of scipy or linear_operator.
"""

from gatedops.solve.pivots import pivots
from gatedops.solve.ridge import kernel_ridge
from gatedops.solve.ridge_path import ridge_path
from gatedops.solve.solution import Solution

__all__ = ["Solution", "kernel_ridge", "pivots", "ridge_path"]
