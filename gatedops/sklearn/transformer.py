"""NPKTransformer: the neural path kernel with the training points, for estimators with kernel="precomputed"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from torch import nn

from gatedops.sklearn.base import whole_or_not_at_all
from gatedops.sklearn.unsupervised import UnsupervisedEstimator


class NPKTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, UnsupervisedEstimator):
    """Transforms inputs to their neural path kernel with the training points.

        make_pipeline(NPKTransformer(), SVC(kernel="precomputed"))

    The training points are those of fit, so in a Pipeline each fold of a cross-validation has its own. The kernel is in
    units of the mean of its diagonal over the training points, so that a ridge or the C of an SVC means the same for
    every net.

    Args:
        net, random_state, gates, width, depth, epochs, input_shape, sigma: as in :class:`NPKRidge`. With
            gates="trained" the net is trained to give the y of fit: labels, or numbers.

    Attributes:
        X_fit_: the training points ``(n, d)``.
        points_: the training points and their packed gates, numpy arrays.
        network_, kernel_: the net, and the kernel with the training points.
        n_features_in_, feature_names_in_: as in every estimator of scikit-learn.
    """

    def __init__(
        self,
        net: nn.Module | None = None,
        random_state: Any = None,
        *,
        gates: str = "random",
        width: int = 512,
        depth: int = 2,
        epochs: int = 10,
        input_shape: Sequence[int] | None = None,
        sigma: bool = True,
    ) -> None:
        self.net = net
        self.random_state = random_state
        self.gates = gates
        self.width = width
        self.depth = depth
        self.epochs = epochs
        self.input_shape = input_shape
        self.sigma = sigma

    @whole_or_not_at_all
    def fit(self, X: Any, y: Any = None) -> Self:
        """Makes the net and records the gates of the training points.

        Args:
            X: ``(n, d)``, finite numbers; uint8 and float32 are kept as they are.
            y: ``(n,)`` or ``(n, c)``, used if `gates` is "trained".

        Raises:
            TypeError, ValueError: X, y or a parameter does not fit; the error names it.
        """
        X = self._checked(X, reset=True)
        self._fit_network(X, self._targets(X, y))
        self._fit_kernel()
        return self

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:
        """Fits, and returns the kernel of the training points, ``(n, n)``, symmetric; X and y are those of fit."""
        self.fit(X, y)
        return self.kernel_.array(self.kernel_.square())

    def transform(self, X: Any) -> np.ndarray:
        """Returns the kernel of m inputs ``(m, d)`` with the training points, ``(m, n)``: float32 if X was float32 or
        uint8 in fit, and float64 otherwise.

        Raises:
            NotFittedError: before fit. ValueError: X has another number of features than in fit.
        """
        points = self._new_points(X)
        return self.kernel_.array(self.kernel_.cross(points))

    @property
    def _n_features_out(self) -> int:
        return len(self.points_.X)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
