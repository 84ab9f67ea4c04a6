"""NPKClassifier: kernel ridge regression to one-hot labels with the neural path kernel."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets

from gatedops.sklearn.base import whole_or_not_at_all
from gatedops.sklearn.ridge import RidgeEstimator
from gatedops.solve.loo import loo

# The temperatures among which the best is searched, for scores that lie around 0 and 1.
_COLDEST, _HOTTEST = 1e-3, 1e2


class NPKClassifier(ClassifierMixin, RidgeEstimator):
    """Classification by kernel ridge regression to one-hot labels, with the neural path kernel of a network's gates.

    Probabilities are softmax(scores / temperature). The temperature maximizes the likelihood of the leave-one-out
    scores of the training points, whose labels count as 1 - e for the class and the rest for the others, with
    e = (c - 1) / (n + c): so it stays above 0 when all of n points of c classes are predicted right (after Platt 1999).

    Args:
        net, random_state, gates, width, depth, epochs, input_shape, sigma, method, tol, progress: as in
            :class:`NPKRidge`. With gates="trained" the net is trained with cross-entropy.
        ridge: as in NPKRidge; but the ridge with the most right leave-one-out predictions is chosen, and among equals
            the one with the smallest sum of squared errors.

    Attributes:
        classes_: the labels in y, sorted.
        temperature_: of predict_proba.
        dual_coef_: float64 ``(n, classes)``.
        intercept_: the share of each class.
        ridge_, X_fit_, n_iter_, solution_, n_features_in_, feature_names_in_, network_, points_, kernel_: as in
            NPKRidge.

    Raises (fit):
        TypeError, ValueError: as in NPKRidge, or y are not labels.
    """

    @whole_or_not_at_all
    def fit(self, X: Any, y: Any) -> Self:
        """Fits the classifier to X ``(n, d)`` and labels ``(n,)`` of any type."""
        X, y = self._checked_pair(X, y)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        targets = np.eye(len(self.classes_))[labels]
        solution = self._fit_ridge(X, targets, labels.astype(np.int64))
        self.temperature_ = _temperature(targets - loo(solution, progress=self.progress).numpy(), labels)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Returns scores for X ``(m, d)``, float64: ``(m, classes)``, which sum to 1; or for two classes ``(m,)``, the
        score of the second minus that of the first."""
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """Returns the probabilities of the classes for X ``(m, d)``, float64 ``(m, classes)``."""
        return softmax(self._scores(X) / self.temperature_, axis=1)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Returns the logarithms of predict_proba, float64 ``(m, classes)``."""
        return log_softmax(self._scores(X) / self.temperature_, axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """Returns the label with the largest score for each row of X ``(m, d)``."""
        best = self._scores(X).argmax(1)
        return self.classes_[best]


def _temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """Returns the temperature with the largest likelihood of smoothed labels.

    Args:
        scores: ``(n, c)``, each of a fit without the point.
        labels: ``(n,)``, from 0.
    """
    n, c = scores.shape
    if c == 1:
        return 1.0
    likely = np.full((n, c), 1 / (n + c))
    likely[np.arange(n), labels] = 1 - (c - 1) / (n + c)

    def loss(logarithm: float) -> float:
        return -float((likely * log_softmax(scores * np.exp(-logarithm), axis=1)).sum()) / n

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(_COLDEST), np.log(_HOTTEST)), method="bounded").x))
