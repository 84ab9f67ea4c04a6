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
from gatedops.sklearn.ridge import NPKRidge

__all__ = ["NPKClassifier", "NPKRidge"]
