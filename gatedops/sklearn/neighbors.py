"""NPKNeighbors: the training points whose gates are nearest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.utils.validation import check_is_fitted
from torch import nn

from gatedops.gatebits import GateBits
from gatedops.ops.checks import require_option
from gatedops.ops.overlap import gate_neighbors
from gatedops.sklearn.base import whole_or_not_at_all
from gatedops.sklearn.kernels import Points
from gatedops.sklearn.unsupervised import UnsupervisedEstimator
from gatedops.solve.checks import whole_number

_METRICS = ("npk", "hamming")
_MODES = ("connectivity", "distance")


class NPKNeighbors(UnsupervisedEstimator):
    """Finds the nearest training points by their gates, as ``sklearn.neighbors.NearestNeighbors`` does by features. The
    matrix of all distances is never stored.

    Args:
        net: as in :class:`NPKTransformer`.
        n_neighbors: the number of neighbours, if a method is given none.
        random_state: of the net.
        metric: "npk": the distance of two inputs is 1 - Lambda, where Lambda is the product over layers of the share of
            the layer's gates that are on for both: 0 if all gates are on for both, 1 if they share none in some layer.
            An input has a distance from itself, so this is not a metric in the sense of mathematics. "hamming": the
            share of all gates that are on for one of the two inputs and off for the other, as metric="hamming" of
            NearestNeighbors on the features of :class:`GateTransformer`: 0 if both inputs lie in the same linear
            region.
        gates, width, depth, epochs, input_shape: as in :class:`NPKTransformer`.

    Attributes:
        n_samples_fit_: the number of training points.
        X_fit_: the training points ``(n, d)``.
        network_, points_: the net, and the training points with their packed gates.
        n_features_in_, feature_names_in_: as in every estimator of scikit-learn.
    """

    n_samples_fit_: int

    def __init__(
        self,
        net: nn.Module | None = None,
        n_neighbors: int = 5,
        random_state: Any = None,
        *,
        metric: str = "npk",
        gates: str = "random",
        width: int = 512,
        depth: int = 2,
        epochs: int = 10,
        input_shape: Sequence[int] | None = None,
    ) -> None:
        self.net = net
        self.n_neighbors = n_neighbors
        self.random_state = random_state
        self.metric = metric
        self.gates = gates
        self.width = width
        self.depth = depth
        self.epochs = epochs
        self.input_shape = input_shape

    @whole_or_not_at_all
    def fit(self, X: Any, y: Any = None) -> Self:
        """Makes the net and records the gates of the training points.

        Args:
            X: ``(n, d)``, finite numbers.
            y: ``(n,)`` or ``(n, c)``, used if `gates` is "trained".

        Raises:
            TypeError, ValueError: X, y or a parameter does not fit; the error names it.
        """
        require_option("metric", self.metric, _METRICS)
        whole_number(self.n_neighbors, "n_neighbors", 1)
        X = self._checked(X, reset=True)
        self._make_network(X, self._targets(X, y))
        self.points_ = self._of(Points.of(self.network_, X))
        self.n_samples_fit_ = len(X)
        return self

    def kneighbors(
        self, X: Any = None, n_neighbors: int | None = None, return_distance: bool = True
    ) -> tuple[np.ndarray, np.ndarray] | np.ndarray:
        """Finds the nearest training points of each input, the nearest first, equally near ones by their indices.

        Args:
            X: ``(m, d)``; None: the training points, and then a point is not its own neighbour.
            n_neighbors: how many; None: that of the constructor.
            return_distance: whether to return the distances too.

        Returns:
            (distances float64 ``(m, k)``, indices int64 ``(m, k)``), or the indices alone.

        Raises:
            NotFittedError: before fit. TypeError, ValueError: X has another number of features than in fit, or there
                are fewer training points than n_neighbors.
        """
        check_is_fitted(self)
        count = whole_number(self.n_neighbors if n_neighbors is None else n_neighbors, "n_neighbors", 1)
        others = None if X is None else self._of(self._new_points(X))
        most = self.n_samples_fit_ - (others is None)
        if count > most:
            raise ValueError(
                f"n_neighbors: got {count}, needs 1 to {most}: n_samples_fit = {self.n_samples_fit_}"
                + (", and a point is not its own neighbour" if others is None else "")
            )
        bits = self.points_.bits
        slope = -1.0 if self.metric == "hamming" else 0.0
        rows, columns = (bits, None) if others is None else (others.bits, bits)
        found, index = gate_neighbors(rows, count, columns, slope=slope, dtype=torch.float64)
        distances = (1.0 - found) / 2 if self.metric == "hamming" else 1.0 - found
        return (distances.numpy(), index.numpy()) if return_distance else index.numpy()

    def kneighbors_graph(self, X: Any = None, n_neighbors: int | None = None, mode: str = "connectivity") -> csr_matrix:
        """Returns the graph of the neighbours as a sparse matrix ``(m, n)``, float64, with an entry for each neighbour.

        Args:
            X, n_neighbors: as in :meth:`kneighbors`.
            mode: "connectivity": the entries are 1. "distance": they are distances.

        Raises:
            NotFittedError, TypeError, ValueError: as in :meth:`kneighbors`; or mode is another one.
        """
        require_option("mode", mode, _MODES)
        distances, index = self.kneighbors(X, n_neighbors)
        entries = np.ones(index.size) if mode == "connectivity" else distances.ravel()
        starts = np.arange(0, index.size + 1, index.shape[1])
        return csr_matrix((entries, index.ravel(), starts), shape=(len(index), self.n_samples_fit_))

    def _of(self, points: Points) -> Points:
        """Returns the points with the gates as the metric compares them: those of all layers as one layer, if it counts
        the ones that differ."""
        if self.metric == "npk":
            return points
        gates = torch.cat([layer.flatten(1) for layer in points.bits.unpack()], 1)
        bits = GateBits.pack([gates], names=["all"])
        return Points(points.X, bits.words.numpy(), bits.layers)
