"""NPKNystroem: features whose inner products approximate the neural path kernel."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from torch import nn

from gatedops.operators.base import KernelOperator
from gatedops.ops.checks import require_option
from gatedops.sklearn.base import whole_or_not_at_all
from gatedops.sklearn.kernels import Points
from gatedops.sklearn.unsupervised import UnsupervisedEstimator
from gatedops.solve.checks import checked_diagonal, whole_number
from gatedops.solve.pivoted_cholesky import pivoted_factor

_CENTRES = ("pivots", "random")
_DEFAULT = 100


class NPKNystroem(ClassNamePrefixFeaturesOutMixin, TransformerMixin, UnsupervisedEstimator):
    """Transforms inputs to k features whose inner products approximate the neural path kernel, for linear models of
    many points.

        make_pipeline(NPKNystroem(n_components=300), LinearSVC())

    Some training points are centres. With K_c, the kernel of the centres, the features of x are
    ``k(x, centres) K_c^(-1/2)``: their inner products equal the kernel between centres, and between all points if all
    training points are centres. The kernel is that of :class:`NPKTransformer`, in the same units, in float64. It is
    computed in whole matrices; ``sklearn.kernel_approximation.Nystroem`` calls a function once per pair of points.

    Args:
        net: as in :class:`NPKTransformer`.
        n_components: the number of centres and features, or None: 100. If there are fewer training points, all are
            centres; a number, unlike None, gives a UserWarning then.
        random_state: of the net and of the choice of centres.
        centres: "pivots": by randomly pivoted Cholesky (:func:`gatedops.solve.pivots`), which prefers points that the
            other centres represent badly; once they represent all points, the rest is chosen at random. "random": with
            equal chances.
        gates, width, depth, epochs, input_shape, sigma: as in :class:`NPKTransformer`.

    Attributes:
        components_: the centres, ``(k, d)``.
        component_indices_: int64 ``(k,)``, which training points they are.
        normalization_: float64 ``(k, k)``, K_c^(-1/2). Eigenvalues that rounding made are left out of it.
        network_, kernel_, points_: the net, the kernel, and the centres with their packed gates.
        n_features_in_, feature_names_in_: as in every estimator of scikit-learn.

    Source: Williams and Seeger, "Using the Nystroem method to speed up kernel machines", 2001.
    """

    def __init__(
        self,
        net: nn.Module | None = None,
        n_components: int | None = None,
        random_state: Any = None,
        *,
        centres: str = "pivots",
        gates: str = "random",
        width: int = 512,
        depth: int = 2,
        epochs: int = 10,
        input_shape: Sequence[int] | None = None,
        sigma: bool = True,
    ) -> None:
        self.net = net
        self.n_components = n_components
        self.random_state = random_state
        self.centres = centres
        self.gates = gates
        self.width = width
        self.depth = depth
        self.epochs = epochs
        self.input_shape = input_shape
        self.sigma = sigma

    @whole_or_not_at_all
    def fit(self, X: Any, y: Any = None) -> Self:
        """Makes the net and chooses the centres.

        Args:
            X: ``(n, d)``, finite numbers.
            y: ``(n,)`` or ``(n, c)``, used if `gates` is "trained".

        Raises:
            TypeError, ValueError: X, y or a parameter does not fit; the error names it.
        """
        require_option("centres", self.centres, _CENTRES)
        X = self._checked(X, reset=True)
        n, wanted = len(X), self.n_components
        count = min(_DEFAULT, n) if wanted is None else whole_number(wanted, "n_components", 1)
        if count > n:
            warnings.warn(f"n_components: got {count}, takes {n}: X has no more points", UserWarning, stacklevel=3)
            count = n
        self._fit_network(X, self._targets(X, y))
        self._fit_kernel()
        chosen = self._chosen(count)
        self.components_, self.component_indices_ = X[chosen], chosen
        # The unit is that of all training points, of which only the centres are needed from here on.
        self._unit = self.kernel_.unit
        self.points_ = Points(self.components_, self.points_.words[chosen], self.points_.layers)
        self.kernel_.points = self.points_
        self.normalization_ = _inverse_root(self._array(self.kernel_.square()))
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Returns the features of m inputs ``(m, d)``, float64 ``(m, k)``.

        Raises:
            NotFittedError: before fit. ValueError: X has another number of features than in fit.
        """
        points = self._new_points(X)
        return self._array(self.kernel_.cross(points)) @ self.normalization_.T

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def _array(self, operator: KernelOperator) -> np.ndarray:
        return operator.with_dtype(torch.float64).to_dense().numpy() / self._unit

    def _chosen(self, count: int) -> np.ndarray:
        """Returns which training points are centres, int64 ``(count,)``."""
        draws = check_random_state(self.random_state)
        order = draws.permutation(len(self.points_.X))
        operator = self.kernel_.square()
        if self.centres == "random" or not bool(operator.diag().any()):
            return order[:count]
        seed = int(draws.randint(np.iinfo(np.int32).max))
        pivots = pivoted_factor(operator, checked_diagonal(operator), count, seed).index.numpy()
        others = order[~np.isin(order, pivots)]
        return np.concatenate([pivots, others[: count - len(pivots)]])


def _inverse_root(kernel: np.ndarray) -> np.ndarray:
    """Returns K^(-1/2) of a symmetric positive semidefinite matrix; eigenvalues that are rounding count as 0."""
    values, vectors = np.linalg.eigh(kernel)
    on = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    roots = np.where(on, values, 1.0) ** -0.5 * on
    return (vectors * roots) @ vectors.T
