"""scikit-learn's own checks of estimators, on a small new net."""

from __future__ import annotations

from sklearn.utils.estimator_checks import parametrize_with_checks

from gatedops.sklearn import NPKClassifier, NPKRidge

SMALL = {"width": 32, "depth": 2, "random_state": 0}


@parametrize_with_checks([NPKRidge(**SMALL), NPKClassifier(**SMALL)])
def test_checks_of_sklearn(estimator, check):
    check(estimator)
