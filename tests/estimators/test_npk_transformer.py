"""NPKTransformer: kernels against dense ones, and estimators with kernel="precomputed" behind it."""

from __future__ import annotations

import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from dense_kernels import dense_npk, made_inputs, relu_chain
from sklearn.decomposition import KernelPCA
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

from gatedops.sklearn import NPKClassifier, NPKRidge, NPKTransformer

NET = relu_chain(5, 24, 16, 2)
DRAWN = np.random.default_rng(0)
X, OTHERS = DRAWN.normal(size=(40, 5)), DRAWN.normal(size=(7, 5))
LABELS = np.where(X[:, 0] * X[:, 1] > 0, "same", "other")
SMALL = {"width": 24, "depth": 2, "random_state": 0}


@pytest.mark.parametrize("sigma", [True, False])
def test_equals_the_dense_kernel_of_a_given_net(sigma):
    made = NPKTransformer(NET, sigma=sigma)
    square = made.fit_transform(X)
    expected = dense_npk(NET, X, sigma=sigma)
    unit = np.diag(expected).mean()
    assert square.dtype == np.float64
    assert np.array_equal(square, square.T)
    np.testing.assert_allclose(square, expected / unit, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(made.transform(X), square, rtol=1e-12, atol=1e-14)
    cross = dense_npk(NET, OTHERS, X, sigma=sigma) / unit
    np.testing.assert_allclose(made.transform(OTHERS), cross, rtol=1e-12, atol=1e-14)


def test_equals_the_dense_kernel_of_a_new_net():
    made = NPKTransformer(**SMALL).fit(X)
    rows, columns = (made_inputs(made.network_, side) for side in (OTHERS, X))
    net = made.network_.net
    expected = dense_npk(net, rows, columns) / np.diag(dense_npk(net, columns)).mean()
    np.testing.assert_allclose(made.transform(OTHERS), expected, rtol=1e-12, atol=1e-14)


def test_float32_and_bytes_give_float32():
    pixels = DRAWN.integers(0, 255, (9, 5), dtype=np.uint8)
    expected = dense_npk(NET, pixels)
    for form in (pixels, pixels.astype(np.float32)):
        found = NPKTransformer(NET).fit_transform(form)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected / np.diag(expected).mean(), rtol=1e-6)


def test_takes_data_frames_and_read_only_arrays():
    frame, frozen = pd.DataFrame(X, columns=list("abcde")), X.copy()
    frozen.flags.writeable = False
    expected = NPKTransformer(**SMALL).fit_transform(X)
    made = NPKTransformer(**SMALL).set_output(transform="pandas")
    found = made.fit_transform(frame)
    assert list(found.columns[:2]) == ["npktransformer0", "npktransformer1"]
    # The means of the features have another order of their sums.
    np.testing.assert_allclose(found.to_numpy(), expected, rtol=1e-12, atol=1e-14)
    assert list(made.feature_names_in_) == list("abcde")
    assert np.array_equal(NPKTransformer(**SMALL).fit_transform(frozen), expected)


def test_a_pipeline_equals_the_precomputed_kernel_by_hand():
    pipeline = make_pipeline(NPKTransformer(NET), SVC(kernel="precomputed")).fit(X, LABELS)
    unit = np.diag(dense_npk(NET, X)).mean()
    dense = SVC(kernel="precomputed").fit(dense_npk(NET, X) / unit, LABELS)
    expected = dense.decision_function(dense_npk(NET, OTHERS, X) / unit)
    np.testing.assert_allclose(pipeline.decision_function(OTHERS), expected, rtol=1e-9)


def test_cross_validation_has_the_training_points_of_each_fold():
    pipeline = make_pipeline(NPKTransformer(NET), SVC(kernel="precomputed"))
    with joblib.parallel_backend("threading"):
        scores = cross_val_score(pipeline, X, LABELS, cv=2, n_jobs=2)
    kernel = dense_npk(NET, X)
    assert scores.shape == (2,)
    by_hand = []
    for train, test in StratifiedKFold(2).split(X, LABELS):
        part = kernel[np.ix_(train, train)]
        unit = np.diag(part).mean()
        dense = SVC(kernel="precomputed").fit(part / unit, LABELS[train])
        by_hand.append(dense.score(kernel[np.ix_(test, train)] / unit, LABELS[test]))
    assert scores.tolist() == by_hand


def test_a_grid_search_over_both_steps():
    pipeline = make_pipeline(NPKTransformer(**SMALL), SVC(kernel="precomputed"))
    grid = {"npktransformer__depth": [1, 2], "svc__C": [0.1, 10.0]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(X, LABELS)
    assert len(search.cv_results_["params"]) == 4
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.predict(OTHERS).shape == (7,)


def test_one_kernel_for_a_whole_grid_search():
    """What the docstring of npk_kernel says: GridSearchCV takes the rows and columns of each fold."""
    grid = {"C": [0.1, 10.0]}
    once = GridSearchCV(SVC(kernel="precomputed"), grid, cv=2).fit(NPKTransformer(NET).fit_transform(X), LABELS)
    unit = np.diag(dense_npk(NET, X)).mean()
    dense = GridSearchCV(SVC(kernel="precomputed"), grid, cv=2).fit(dense_npk(NET, X) / unit, LABELS)
    assert once.cv_results_["mean_test_score"].tolist() == dense.cv_results_["mean_test_score"].tolist()


def test_kernel_pca_behind_it():
    found = make_pipeline(NPKTransformer(NET), KernelPCA(2, kernel="precomputed")).fit_transform(X)
    assert found.shape == (40, 2)


@pytest.mark.parametrize(
    ("y", "supervised"),
    [(LABELS, NPKClassifier), (LABELS == "same", NPKClassifier), (X[:, 0], NPKRidge), (X[:, :2], NPKRidge)],
    ids=["labels", "bools", "numbers", "two"],
)
def test_a_net_is_trained_inside_as_that_of_a_classifier_or_regression(y, supervised):
    trained = {"gates": "trained", "epochs": 3, **SMALL}
    made = NPKTransformer(**trained).fit(X, y)
    expected = supervised(**trained).fit(X, y).network_.net.parameters()
    assert all(map(torch.equal, made.network_.net.parameters(), expected))
    assert not np.array_equal(made.transform(X), NPKTransformer(**SMALL).fit_transform(X, y))


def test_y_is_ignored_unless_it_trains_the_net():
    expected = NPKTransformer(**SMALL).fit_transform(X)
    assert np.array_equal(NPKTransformer(**SMALL).fit_transform(X, ["no numbers"]), expected)


def test_pickles_transform_alike():
    made = NPKTransformer(**SMALL).fit(X)
    assert np.array_equal(pickle.loads(pickle.dumps(made)).transform(OTHERS), made.transform(OTHERS))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NPKTransformer(NET).fit(X[:, :4]), "net: got one that does not take inputs.*first layer needs 5"),
        (lambda: NPKTransformer(NET).fit(X).transform(X[:, :4]), "X has 4 features, but NPKTransformer is expecting 5"),
        (lambda: NPKTransformer(gates="trained").fit(X), "with gates='trained' requires y"),
        (lambda: NPKTransformer(gates="trained").fit(X, LABELS[:3]), "inconsistent numbers of samples"),
        (lambda: NPKTransformer(gates="trained").fit(X, X[:, 0] * np.nan), "Input y contains NaN"),
        (lambda: NPKTransformer().transform(X), "This NPKTransformer instance is not fitted yet"),
        (lambda: SVC(kernel="precomputed").fit(NPKTransformer(NET).fit(X).transform(OTHERS), LABELS[:7]), "square"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((TypeError, ValueError, NotFittedError), match=message):
        call()


@pytest.mark.parametrize("missing", [None, np.inf])
def test_a_missing_target_is_refused_before_the_net_is_trained(missing):
    targets = X[:, 0].astype(object)
    targets[5] = missing
    with pytest.raises(ValueError, match="Input y contains"):
        NPKTransformer(gates="trained", epochs=1, **SMALL).fit(X, targets)
