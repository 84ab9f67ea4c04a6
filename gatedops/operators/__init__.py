"""Kernel matrices that multiply vectors without being stored.

base says what an operator does. npk_operator has NPKOperator, the neural path kernel of packed gates; adapters makes
operators of matrices and of the operators of other libraries.
"""
