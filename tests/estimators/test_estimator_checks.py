"""scikit-learn's own checks of estimators, on a small new net."""

from __future__ import annotations

import pytest
from sklearn.base import clone
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

from gatedops.sklearn import GateTransformer, NPKClassifier, NPKNeighbors, NPKNystroem, NPKRidge, NPKTransformer

SMALL = {"width": 32, "depth": 2, "random_state": 0}
TRANSFORMERS = [NPKTransformer(**SMALL), NPKNystroem(**SMALL), GateTransformer(**SMALL)]


@parametrize_with_checks(
    [
        NPKRidge(**SMALL),
        NPKClassifier(**SMALL),
        *TRANSFORMERS,
        NPKTransformer(sigma=False, gates="trained", epochs=1, **SMALL),
        NPKNeighbors(n_neighbors=2, **SMALL),
        NPKNeighbors(n_neighbors=2, metric="hamming", **SMALL),
    ]
)
def test_checks_of_sklearn(estimator, check):
    check(estimator)


@pytest.mark.filterwarnings("ignore:X (does not have|has) (valid )?feature names")
@pytest.mark.parametrize("estimator", TRANSFORMERS, ids=lambda estimator: type(estimator).__name__)
@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_transformer_get_feature_names_out,
        estimator_checks.check_transformer_get_feature_names_out_pandas,
        estimator_checks.check_set_output_transform,
        estimator_checks.check_set_output_transform_pandas,
        estimator_checks.check_global_output_transform_pandas,
        estimator_checks.check_dataframe_column_names_consistency,
    ],
    ids=lambda check: check.__name__,
)
def test_checks_of_names_and_data_frames(estimator, check):
    """scikit-learn runs these on its own estimators only."""
    check(type(estimator).__name__, clone(estimator))
