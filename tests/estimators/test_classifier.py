"""NPKClassifier equals dense kernel ridge regression to one-hot labels, and its probabilities are sensible."""

from __future__ import annotations

import numpy as np
import pytest
from dense_kernels import dense_npk, dense_ridge, leave_one_out, made_inputs
from sklearn.datasets import make_blobs, make_moons
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import KFold, cross_val_predict

from gatedops.sklearn import NPKClassifier

SMALL = {"width": 48, "depth": 2, "random_state": 0}
X, LABELS = make_blobs(60, centers=3, cluster_std=1.2, random_state=0)
NAMES = np.array(["ant", "bee", "cat"])[LABELS]
MOONS, SIDES = make_moons(60, noise=0.2, random_state=0)


def dense(fitted, x):
    x = made_inputs(fitted.network_, x)
    return dense_npk(fitted.network_.net, x)


def test_equals_dense_kernel_ridge_to_one_hot_labels():
    fitted = NPKClassifier(ridge=0.05, **SMALL).fit(X[:40], NAMES[:40])
    K = dense(fitted, X)
    alpha, mean = dense_ridge(K[:40, :40], np.eye(3)[LABELS[:40]], 0.05)
    scores = K[40:, :40] @ alpha + mean
    assert fitted.classes_.tolist() == ["ant", "bee", "cat"]
    np.testing.assert_allclose(fitted.decision_function(X[40:]), scores, rtol=1e-8, atol=1e-10)
    assert fitted.predict(X[40:]).tolist() == np.array(["ant", "bee", "cat"])[scores.argmax(1)].tolist()
    assert fitted.score(X[40:], NAMES[40:]) > 0.8


def test_two_classes_have_one_score():
    fitted = NPKClassifier(ridge=0.05, **SMALL).fit(MOONS[:40], SIDES[:40])
    K = dense(fitted, MOONS)
    alpha, _ = dense_ridge(K[:40, :40], 2.0 * SIDES[:40] - 1, 0.05)
    scores = K[40:, :40] @ alpha + np.mean(2.0 * SIDES[:40] - 1)
    np.testing.assert_allclose(fitted.decision_function(MOONS[40:]), scores, rtol=1e-8, atol=1e-10)
    np.testing.assert_array_equal(fitted.predict(MOONS[40:]), scores > 0)


@pytest.mark.parametrize(("points", "labels"), [(X, NAMES), (MOONS, SIDES)], ids=["blobs", "moons"])
def test_probabilities(points, labels):
    fitted = NPKClassifier(ridge="loo", **SMALL).fit(points, labels)
    probabilities = fitted.predict_proba(points)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-12)
    np.testing.assert_array_equal(fitted.classes_[probabilities.argmax(1)], fitted.predict(points))
    np.testing.assert_allclose(fitted.predict_log_proba(points), np.log(probabilities), rtol=1e-9)
    np.testing.assert_array_equal(
        NPKClassifier(ridge="loo", **SMALL).fit(points, labels).predict_proba(points), probabilities
    )


@pytest.mark.parametrize("spread", [1.2, 0.2])
def test_the_temperature_has_the_best_leave_one_out_likelihood(spread):
    """All points are predicted right with the smaller spread, and only the smoothing of labels bounds the
    temperature."""
    points, labels = make_blobs(60, centers=3, cluster_std=spread, random_state=0)
    fitted = NPKClassifier(ridge=0.05, **SMALL).fit(points, labels)
    said = leave_one_out(dense(fitted, points), np.eye(3)[labels], 0.05)
    assert (said.argmax(1) == labels).all() == (spread == 0.2)
    likely = np.where(np.eye(3)[labels] > 0, 1 - 2 / 63, 1 / 63)

    def loss(temperature):
        scores = said / temperature
        return -(likely * (scores - np.log(np.exp(scores).sum(1, keepdims=True)))).sum()

    losses = [loss(fitted.temperature_ * factor) for factor in (0.995, 1.0, 1.005)]
    assert np.argmin(losses) == 1


def test_of_several_ridges_the_most_right_leave_one_out_predictions_win():
    points, sides = make_moons(60, noise=0.2, random_state=3)
    ridges, targets = [1e-6, 1e-3, 0.1, 10.0], np.eye(2)[sides]
    fitted = NPKClassifier(ridge=ridges, **SMALL).fit(points, sides)
    said = [leave_one_out(dense(fitted, points), targets, ridge) for ridge in ridges]
    hits = [(one.argmax(1) == sides).sum() for one in said]
    errors = [np.square(one - targets).sum() for one in said]
    # Two ridges have the most hits; of these the second has smaller errors, and a third has the smallest.
    assert hits[0] == hits[1] == max(hits)
    assert errors[0] > errors[1] > errors[2] == min(errors)
    assert fitted.ridge_ == ridges[1]


def test_classes_missing_in_a_fold():
    """A fold without a class predicts the others, and gives it no probability."""
    order = np.argsort(LABELS, kind="stable")
    with pytest.warns(RuntimeWarning, match="Number of classes in training fold"):
        said = cross_val_predict(NPKClassifier(**SMALL), X[order], LABELS[order], cv=KFold(3), method="predict_proba")
    assert said.shape == (60, 3)
    np.testing.assert_array_equal(said[:20, 0], 0)
    np.testing.assert_allclose(said.sum(1), 1, rtol=1e-12)


def test_one_class_is_always_predicted():
    fitted = NPKClassifier(ridge="loo", **SMALL).fit(X, np.full(60, "ant"))
    assert set(fitted.predict(X)) == {"ant"}
    np.testing.assert_array_equal(fitted.predict_proba(X), np.ones((60, 1)))


def test_trained_gates_know_the_classes():
    fitted = NPKClassifier(gates="trained", epochs=40, width=48, random_state=0).fit(X, NAMES)
    outputs = fitted.network_.net(fitted.network_.inputs(X)).detach().numpy()
    assert outputs.shape == (60, 3)
    assert (outputs.argmax(1) == LABELS).mean() > 0.8  # A third, if the weights were those drawn.


def test_numbers_are_not_labels():
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        NPKClassifier(**SMALL).fit(X, X[:, 0])
    with pytest.raises(NotFittedError):
        NPKClassifier(**SMALL).predict(X)
