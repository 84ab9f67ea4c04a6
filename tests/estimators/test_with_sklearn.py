"""The estimators in scikit-learn's tools: pipelines, searches, copies, files; and what happens without scikit-learn."""

from __future__ import annotations

import pickle
import sys

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_moons
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import gatedops
from gatedops.sklearn import NPKClassifier, NPKRidge

X, Y = make_moons(80, noise=0.2, random_state=0)


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))


def test_a_grid_search_over_a_pipeline():
    pipeline = make_pipeline(StandardScaler(), NPKClassifier(width=32, random_state=0))
    grid = {"npkclassifier__ridge": [1e-3, 0.1], "npkclassifier__depth": [1, 2]}
    search = GridSearchCV(pipeline, grid, cv=3).fit(X, Y)
    assert search.best_score_ > 0.85
    assert search.predict(X).shape == (80,)


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_two_workers_give_what_one_gives(backend):
    estimator = NPKRidge(width=32, ridge=0.1, random_state=0)
    alone = cross_val_score(estimator, X, Y.astype(float), cv=2)
    with joblib.parallel_backend(backend):
        together = cross_val_score(estimator, X, Y.astype(float), cv=2, n_jobs=2)
    np.testing.assert_allclose(together, alone, rtol=1e-9)


@pytest.mark.parametrize("estimator", [NPKRidge(width=32), NPKClassifier(small_net())], ids=["made", "given"])
def test_a_fitted_estimator_pickles(estimator):
    fitted = clone(estimator).fit(X, Y)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict(X), fitted.predict(X))
    np.testing.assert_array_equal(gatedops.solve.loo(again.solution_), gatedops.solve.loo(fitted.solution_))


def test_a_pickle_has_no_kernel():
    many = np.random.RandomState(0).rand(600, 2)
    fitted = NPKRidge(width=32).fit(many, many[:, 0])
    assert len(pickle.dumps(fitted)) < 600 * 600


def test_joblib_maps_gates_and_points_without_a_copy(tmp_path):
    fitted = NPKClassifier(width=32, random_state=0).fit(X, Y)
    joblib.dump(fitted, tmp_path / "fitted.joblib")
    mapped = joblib.load(tmp_path / "fitted.joblib", mmap_mode="r")
    for array in (mapped.points_.words, mapped.X_fit_, mapped.dual_coef_):
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable
    assert mapped.points_.bits.words.data_ptr() == mapped.points_.words.ctypes.data
    np.testing.assert_array_equal(mapped.predict_proba(X), fitted.predict_proba(X))


def test_clone_keeps_the_net_and_fit_does_not_change_it():
    net = small_net()
    before = [parameter.clone() for parameter in net.parameters()]
    estimator = NPKClassifier(net)
    assert clone(estimator).net is not net
    fitted = estimator.fit(X, Y)
    said = fitted.decision_function(X)
    assert fitted.net is net
    assert net.training
    assert all(torch.equal(a, b) and b.requires_grad for a, b in zip(before, net.parameters(), strict=True))
    with torch.no_grad():
        net[0].weight.zero_()
    np.testing.assert_array_equal(fitted.decision_function(X), said)


def test_the_package_is_an_attribute_of_gatedops():
    assert gatedops.sklearn.NPKRidge is NPKRidge


def test_without_scikit_learn_one_sentence_says_what_to_install(monkeypatch):
    for name in [
        name for name in sys.modules if name.split(".")[0] == "sklearn" or name.startswith("gatedops.sklearn")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(gatedops, "sklearn")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs scikit-learn 1\.6 or newer.*pip install 'scikit-learn>=1.6'"):
        _ = gatedops.sklearn
