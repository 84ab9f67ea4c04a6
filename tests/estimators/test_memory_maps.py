"""joblib maps the packed gates of fitted estimators into memory, and they are used there without a copy."""

from __future__ import annotations

import joblib
import numpy as np
import pytest

from gatedops.sklearn import NPKClassifier, NPKNeighbors, NPKNystroem, NPKRidge, NPKTransformer

DRAWN = np.random.default_rng(0)
X, OTHERS = DRAWN.normal(size=(30, 5)), DRAWN.normal(size=(7, 5))
SMALL = {"width": 40, "depth": 2, "random_state": 0}


def outputs(made):
    for name in ("transform", "predict", "kneighbors"):
        if hasattr(made, name):
            return getattr(made, name)(OTHERS)
    raise AssertionError(f"{type(made).__name__} has no output")


ESTIMATORS = [
    NPKTransformer(**SMALL),
    NPKNystroem(n_components=6, **SMALL),
    NPKNeighbors(**SMALL),
    NPKRidge(**SMALL),
    NPKClassifier(**SMALL),
]


@pytest.mark.parametrize("made", ESTIMATORS, ids=lambda made: type(made).__name__)
def test_loaded_from_a_memory_map(made, tmp_path):
    made.fit(X, X[:, 0] > 0)
    joblib.dump(made, tmp_path / "made")
    loaded = joblib.load(tmp_path / "made", mmap_mode="r")
    assert np.array_equal(outputs(loaded), outputs(made))
    points = loaded.points_
    assert isinstance(points.words, np.memmap)
    assert isinstance(points.X, np.memmap)
    assert not points.words.flags.writeable
    assert points.bits.words.data_ptr() == points.words.ctypes.data
