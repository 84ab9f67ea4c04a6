"""Optimizers that follow the paths of a network instead of its weights."""

from gatedops.optim.path_sgd import PathSGD

__all__ = ["PathSGD"]
