"""Estimators of scikit-learn on the neural path kernel and its gates.

networks makes or takes a network and records its gates. kernels computes the kernels of recorded gates. base is what
the estimators share.
"""

from __future__ import annotations

try:
    from sklearn.utils.validation import validate_data as _needed  # noqa: F401
except ImportError:
    raise ModuleNotFoundError(
        "gatedops.sklearn needs scikit-learn 1.6 or newer, which is not installed: pip install 'scikit-learn>=1.6'"
    ) from None

from gatedops.sklearn.classifier import NPKClassifier
from gatedops.sklearn.gate_transformer import GateTransformer
from gatedops.sklearn.neighbors import NPKNeighbors
from gatedops.sklearn.npk_kernel import NPKKernel, npk_kernel
from gatedops.sklearn.nystroem import NPKNystroem
from gatedops.sklearn.ridge import NPKRidge
from gatedops.sklearn.transformer import NPKTransformer

__all__ = [
    "GateTransformer",
    "NPKClassifier",
    "NPKKernel",
    "NPKNeighbors",
    "NPKNystroem",
    "NPKRidge",
    "NPKTransformer",
    "npk_kernel",
]
