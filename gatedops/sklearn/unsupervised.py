"""What the estimators without targets of their own share: y only trains the net, if it is trained inside fit."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import Tags, assert_all_finite, check_array, check_consistent_length
from sklearn.utils.multiclass import type_of_target

from gatedops.sklearn.base import GateEstimator


class UnsupervisedEstimator(GateEstimator):
    """An estimator that fits no targets. With gates="trained" its net is trained to give y, so that fit needs y then;
    otherwise y is ignored."""

    gates: str

    def _targets(self, X: np.ndarray, y: Any) -> np.ndarray | None:
        """Returns what the net is trained to give: labels int64 ``(n,)`` from 0, or numbers float64 ``(n, c)``. None:
        it is not trained.

        y holds labels if scikit-learn's type_of_target calls it binary or multiclass: strings, truth values, and
        numbers without a fraction.

        Raises:
            ValueError: y is needed and missing, has another number of rows than X, or holds numbers that are not
                finite.
        """
        if self.gates != "trained":
            return None
        if y is None:
            # scikit-learn's checks look for these words.
            name = type(self).__name__
            raise ValueError(f"{name} with gates='trained' requires y to be passed, but the target y is None")
        values = check_array(y, ensure_2d=False, dtype=None, input_name="y")
        check_consistent_length(X, values)
        if type_of_target(values, input_name="y") in ("binary", "multiclass"):
            return np.unique(values.reshape(len(values)), return_inverse=True)[1].astype(np.int64)
        numbers = values.astype(np.float64)
        assert_all_finite(numbers, input_name="y")  # None among objects has become NaN.
        return numbers.reshape(len(values), -1)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = self.gates == "trained"
        return tags
