"""Kernels of models and what is done with a kernel: so far, kernel regression
(`gatedops.kernels.regression`).
"""
