"""Solves with kernel matrices of any size: ridge regression, leave-one-out, gradient flow, eigenvalues, pivots,
and what each training point adds to a prediction.

Every function takes an operator (gatedops.NPKOperator), a tensor, or an operator of scipy or linear_operator.
"""

from gatedops.solve.eigen import Eigenpairs, eigsh
from gatedops.solve.gradient_flow import FlowSolution, gradient_flow
from gatedops.solve.logdet import LogDet, logdet
from gatedops.solve.loo import loo, select_ridge
from gatedops.solve.nystrom import NystromSolution, nystrom
from gatedops.solve.pivots import pivots
from gatedops.solve.representers import Representers, representers
from gatedops.solve.ridge import kernel_ridge
from gatedops.solve.ridge_path import ridge_path
from gatedops.solve.solution import Solution

__all__ = [
    "Eigenpairs",
    "FlowSolution",
    "LogDet",
    "NystromSolution",
    "Representers",
    "Solution",
    "eigsh",
    "gradient_flow",
    "kernel_ridge",
    "logdet",
    "loo",
    "nystrom",
    "pivots",
    "representers",
    "ridge_path",
    "select_ridge",
]
