"""NPKNeighbors: against sorted dense distances, and against NearestNeighbors of scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from dense_kernels import dense_gates, relu_chain
from scipy.sparse import issparse
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import NearestNeighbors

from gatedops.sklearn import GateTransformer, NPKNeighbors

NET = relu_chain(5, 24, 17, 2)
DRAWN = np.random.default_rng(0)
X, OTHERS = DRAWN.normal(size=(40, 5)), DRAWN.normal(size=(7, 5))


def dense_distances(metric, x, y):
    layers = list(zip(dense_gates(NET, x), dense_gates(NET, y), strict=True))
    if metric == "hamming":
        return sum((a[:, None] != b[None]).sum(2) for a, b in layers) / 41
    return 1 - np.prod([a @ b.T / a.shape[1] for a, b in layers], 0)


@pytest.mark.parametrize("metric", ["npk", "hamming"])
def test_equals_sorted_dense_distances(metric):
    made = NPKNeighbors(NET, 4, metric=metric).fit(X)
    own = dense_distances(metric, X, X)
    np.fill_diagonal(own, np.inf)
    for given, expected in ((OTHERS, dense_distances(metric, OTHERS, X)), (None, own)):
        distances, index = made.kneighbors(given)
        order = np.argsort(expected, 1, kind="stable")[:, :4]
        assert distances.dtype == np.float64
        np.testing.assert_allclose(distances, np.take_along_axis(expected, order, 1), rtol=1e-13, atol=1e-15)
        if metric == "hamming":
            assert np.array_equal(index, order)
        np.testing.assert_allclose(np.take_along_axis(expected, index, 1), distances, rtol=1e-13, atol=1e-15)


def test_hamming_equals_nearest_neighbors_on_gates():
    ours = NPKNeighbors(NET, 3, metric="hamming").fit(X)
    gates = GateTransformer(NET).fit(X)
    theirs = NearestNeighbors(n_neighbors=3, metric="hamming").fit(gates.transform(X).astype(bool))
    for given in (OTHERS, None):
        expected, _ = theirs.kneighbors(None if given is None else gates.transform(given).astype(bool))
        np.testing.assert_allclose(ours.kneighbors(given)[0], expected, rtol=1e-13)


@pytest.mark.parametrize("mode", ["connectivity", "distance"])
def test_the_graph_is_that_of_scikit_learn(mode):
    made = NPKNeighbors(NET, 3, metric="hamming").fit(X)
    graph = made.kneighbors_graph(OTHERS, mode=mode)
    distances, index = made.kneighbors(OTHERS)
    assert issparse(graph)
    assert graph.format == "csr"
    assert graph.shape == (7, 40)
    expected = np.zeros((7, 40))
    np.put_along_axis(expected, index, distances if mode == "distance" else 1.0, 1)
    assert np.array_equal(graph.toarray(), expected)
    assert made.kneighbors_graph(n_neighbors=2).sum() == 80


def test_the_order_of_the_arguments_is_that_of_scikit_learn():
    made = NPKNeighbors(NET, 3).fit(X)
    index = made.kneighbors(OTHERS, 2, False)
    assert index.shape == (7, 2)
    assert np.array_equal(index, made.kneighbors(OTHERS)[1][:, :2])
    assert made.n_samples_fit_ == 40


def test_an_input_that_was_trained_on_is_its_own_nearest():
    distances, index = NPKNeighbors(NET, 1, metric="hamming").fit(X).kneighbors(X)
    assert np.array_equal(index[:, 0], np.arange(40))
    assert not distances.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NPKNeighbors(NET, 0).fit(X), "n_neighbors: got 0, needs a whole number of at least 1"),
        (lambda: NPKNeighbors(NET, metric="l2").fit(X), "metric: got 'l2', needs 'npk' or 'hamming'"),
        (lambda: NPKNeighbors(NET).kneighbors(X), "not fitted yet"),
        (lambda: NPKNeighbors(NET).fit(X).kneighbors(X, 41), "n_neighbors: got 41, needs 1 to 40"),
        (lambda: NPKNeighbors(NET).fit(X).kneighbors(None, 40), "needs 1 to 39.*not its own neighbour"),
        (lambda: NPKNeighbors(NET).fit(X).kneighbors(X, 2.5), "n_neighbors: got 2.5, needs a whole number"),
        (lambda: NPKNeighbors(NET).fit(X).kneighbors(X[:, :3]), "X has 3 features, but NPKNeighbors is expecting 5"),
        (lambda: NPKNeighbors(NET).fit(X).kneighbors_graph(X, mode="all"), "mode: got 'all', needs"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((TypeError, ValueError, NotFittedError), match=message):
        call()
