"""NPKNystroem: its features against dense Nystrom features in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dense_kernels import dense_npk, relu_chain
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from torch import nn

from gatedops.sklearn import NPKNystroem, NPKTransformer

NET = relu_chain(5, 24, 16, 2)
DRAWN = np.random.default_rng(0)
X, OTHERS = DRAWN.normal(size=(40, 5)), DRAWN.normal(size=(7, 5))
LABELS = X[:, 0] * X[:, 1] > 0
SMALL = {"width": 24, "depth": 2, "random_state": 0}


@pytest.mark.parametrize("centres", ["pivots", "random"])
def test_inner_products_are_the_nystrom_approximation(centres):
    made = NPKNystroem(NET, 12, random_state=0, centres=centres)
    features = made.fit_transform(X)
    chosen = made.component_indices_
    assert np.array_equal(made.components_, X[chosen])
    assert len(set(chosen.tolist())) == 12
    assert features.shape == (40, 12)
    kernel = dense_npk(NET, X) / np.diag(dense_npk(NET, X)).mean()
    columns, core = kernel[:, chosen], kernel[np.ix_(chosen, chosen)]
    expected = columns @ np.linalg.solve(core, columns.T)
    np.testing.assert_allclose(features @ features.T, expected, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(features[chosen] @ features[chosen].T, core, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(made.normalization_ @ core @ made.normalization_, np.eye(12), atol=1e-9)


def test_all_points_as_centres_give_the_kernel_also_for_new_points():
    made = NPKNystroem(NET, 40).fit(X)
    kernel = NPKTransformer(NET).fit(X)
    found = made.transform(OTHERS) @ made.transform(X).T
    np.testing.assert_allclose(found, kernel.transform(OTHERS), rtol=1e-7, atol=1e-9)


def test_float32_inputs_are_computed_in_float64():
    """The kernel of one centre twice is singular, up to the rounding of float64 only."""
    few = np.repeat(X[:6], 2, 0).astype(np.float32)
    made = NPKNystroem(NET, 12).fit(few)
    exact, features = dense_npk(NET, few), made.transform(few)
    assert features.dtype == np.float64
    assert np.linalg.matrix_rank(made.normalization_) == 6
    found = features @ features.T
    # The unit, a mean of float32 numbers, is the same for all entries.
    np.testing.assert_allclose(found / found.trace(), exact / exact.trace(), rtol=1e-10, atol=1e-12)


def test_pivots_are_better_centres_than_random_ones():
    """For points of which most lie in one place."""
    crowd = np.vstack([X[:1] + 1e-3 * DRAWN.normal(size=(150, 5)), DRAWN.normal(size=(10, 5))])
    kernel = dense_npk(NET, crowd) / np.diag(dense_npk(NET, crowd)).mean()
    left = {}
    for centres in ("pivots", "random"):
        features = NPKNystroem(NET, 15, random_state=0, centres=centres).fit_transform(crowd)
        left[centres] = np.trace(kernel - features @ features.T)
    assert left["pivots"] < 0.01 * left["random"]


def test_the_random_state_decides_everything():
    first, second = (NPKNystroem(n_components=5, **SMALL).fit(X) for _ in range(2))
    assert np.array_equal(first.component_indices_, second.component_indices_)
    assert np.array_equal(first.transform(OTHERS), second.transform(OTHERS))
    other = NPKNystroem(n_components=5, width=24, random_state=1).fit(X)
    assert not np.array_equal(first.component_indices_, other.component_indices_)


def test_fewer_points_than_the_default_are_all_centres():
    made = NPKNystroem(**SMALL).fit(X)
    assert sorted(made.component_indices_) == list(range(40))
    assert list(made.get_feature_names_out()[:2]) == ["npknystroem0", "npknystroem1"]
    assert len(made.get_feature_names_out()) == 40


def test_points_that_few_represent_and_a_kernel_of_zeros():
    rays = np.outer(np.arange(1, 9), X[0])
    chain = nn.Sequential(nn.Linear(5, 8, bias=False), nn.ReLU(), nn.Linear(8, 1, bias=False)).double()
    made = NPKNystroem(chain, 5, random_state=0).fit(rays)
    features = made.transform(rays)
    assert len(set(made.component_indices_.tolist())) == 5
    expected = dense_npk(chain, rays) / np.diag(dense_npk(chain, rays)).mean()
    np.testing.assert_allclose(features @ features.T, expected, rtol=1e-9)
    with torch.no_grad():
        chain[0].weight.zero_()
    assert not NPKNystroem(chain, 5, random_state=0).fit_transform(rays).any()


def test_more_centres_than_points_are_all_points():
    with pytest.warns(UserWarning, match="n_components: got 41, takes 40"):
        many = NPKNystroem(NET, 41, random_state=0).fit_transform(X)
    np.testing.assert_array_equal(many, NPKNystroem(NET, 40, random_state=0).fit_transform(X))


def test_works_in_a_grid_search():
    pipeline = make_pipeline(NPKNystroem(**SMALL), RidgeClassifier())
    search = GridSearchCV(pipeline, {"npknystroem__n_components": [2, 10]}, cv=2).fit(X, LABELS)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (NPKNystroem(NET, 0), "n_components: got 0, needs a whole number of at least 1"),
        (NPKNystroem(NET, 2.5), "n_components: got 2.5, needs a whole number"),
        (NPKNystroem(NET, 5, centres="best"), "centres: got 'best', needs 'pivots' or 'random'"),
    ],
)
def test_bad_input(made, message):
    with pytest.raises((TypeError, ValueError), match=message):
        made.fit(X)
