"""Solves with kernel matrices of any size: ridge regression, leave-one-out, gradient flow, eigenvalues, pivots.

Every function takes an operator (gatedops.NPKOperator), a tensor, or an operator of scipy or linear_operator.
"""
