"""What all estimators share: their checks of X, their network, and the gates of the points that they are fitted to."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

from gatedops.sklearn.kernels import GateKernel, Points
from gatedops.sklearn.networks import GateNetwork, network_of

_Fit = TypeVar("_Fit", bound=Callable[..., Any])

# The parameters of an estimator that say which network it uses; networks.network_of says what they mean.
NETWORK_PARAMETERS = ("net", "gates", "width", "depth", "epochs", "input_shape", "random_state")


def whole_or_not_at_all(fit: _Fit) -> _Fit:
    """Returns a fit that leaves the estimator as it was, with the attributes of an earlier fit, if it raises."""

    @wraps(fit)
    def fit_or_leave(self: BaseEstimator, *args: Any, **options: Any) -> Any:
        before = vars(self).copy()
        try:
            return fit(self, *args, **options)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return cast(_Fit, fit_or_leave)


class GateEstimator(BaseEstimator):
    """An estimator on the gates of a network.

    A subclass has the NETWORK_PARAMETERS in its constructor, and `sigma` if it computes kernels. Its fit is decorated
    with `whole_or_not_at_all`; it calls `_checked` or `_checked_pair`, then `_make_network`, or `_fit_network` if it
    keeps the training points, and then, if it needs a kernel, `_fit_kernel`. Its predict or transform calls
    `_new_points`.

    Attributes (fitted):
        network_: the :class:`~gatedops.sklearn.networks.GateNetwork`.
        points_: the :class:`~gatedops.sklearn.kernels.Points` of the training points: their X and their packed gates.
        kernel_: the :class:`~gatedops.sklearn.kernels.GateKernel`, if there is one.
        X_fit_: the X of points_.
        n_features_in_, feature_names_in_: as in every estimator of scikit-learn.
    """

    network_: GateNetwork
    points_: Points
    kernel_: GateKernel

    @property
    def X_fit_(self) -> np.ndarray:
        """The training points, ``(n, d)``."""
        return self.points_.X

    def _checked(self, X: Any, *, reset: bool) -> np.ndarray:
        """Returns X ``(n, d)`` as an array of uint8, float32 or float64.

        Args:
            reset: whether this is fit, which sets n_features_in_ and feature_names_in_.

        Raises:
            ValueError: as scikit-learn's validate_data.
        """
        if not reset:
            check_is_fitted(self)
        return as_numbers(validate_data(self, X, reset=reset, dtype="numeric"))

    def _checked_pair(self, X: Any, y: Any, **options: bool) -> tuple[np.ndarray, np.ndarray]:
        """Returns X as `_checked` does in fit, and y as scikit-learn's validate_data makes it with its options
        `multi_output` and `y_numeric`."""
        X, y = validate_data(self, X, y, dtype="numeric", **options)
        return as_numbers(X), y

    def _make_network(self, X: np.ndarray, targets: np.ndarray | None = None) -> None:
        """Makes the network: sets network_.

        Args:
            X: of `_checked`.
            targets: what a new net is trained to give if `gates` is "trained": labels int64 ``(n,)`` from 0, or numbers
                float64 ``(n, c)``. None if fit got no y.
        """
        given = {name: getattr(self, name) for name in NETWORK_PARAMETERS}
        self.network_ = network_of(X, targets, **given)

    def _fit_network(self, X: np.ndarray, targets: np.ndarray | None = None) -> None:
        """Makes the network, and records the gates of the training points: sets network_ and points_. The arguments are
        those of `_make_network`."""
        self._make_network(X, targets)
        self.points_ = Points.of(self.network_, X)

    def _fit_kernel(self) -> None:
        """Makes the kernel of the training points: sets kernel_. Its operators are kernel_.square() and, for points of
        `_new_points`, kernel_.cross(points)."""
        self.kernel_ = GateKernel(self.network_, self.points_, sigma=self.sigma)

    def _new_points(self, X: Any) -> Points:
        """Checks X, and records its gates. NotFittedError before fit."""
        X = self._checked(X, reset=False)
        return Points.of(self.network_, X)


def as_numbers(X: np.ndarray) -> np.ndarray:
    """Returns X as it is if it holds uint8, float32 or float64, and otherwise as float64."""
    return X if X.dtype in (np.uint8, np.float32, np.float64) else X.astype(np.float64)
