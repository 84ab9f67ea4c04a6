"""Kernel matrices that multiply vectors without being stored.

base says what an operator does. npk_operator has NPKOperator, the neural path kernel of packed gates, and sigma chooses
how it computes the inner products of inputs. tiles keeps entries that are expensive. adapters makes operators of
matrices and of the operators of other libraries.
"""

from gatedops.operators.adapters import as_operator
from gatedops.operators.base import KernelOperator
from gatedops.operators.npk_operator import NPKOperator

__all__ = ["KernelOperator", "NPKOperator", "as_operator"]
