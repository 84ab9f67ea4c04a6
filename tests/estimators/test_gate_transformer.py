"""GateTransformer: its features against the gates of the net, computed by numpy."""

from __future__ import annotations

import numpy as np
import pytest
from dense_kernels import dense_gates, relu_chain
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from torch import nn

from gatedops import record_gates
from gatedops.sklearn import GateTransformer

NET = relu_chain(5, 24, 16, 2)
DRAWN = np.random.default_rng(0)
X, OTHERS = DRAWN.normal(size=(40, 5)), DRAWN.normal(size=(7, 5))
LABELS = X[:, 0] * X[:, 1] > 0


@pytest.mark.parametrize("dtype", ["uint8", "bool", "float32", "float64"])
def test_equals_the_gates_of_the_net(dtype):
    made = GateTransformer(NET, dtype=dtype).fit(X)
    found = made.transform(OTHERS)
    assert found.dtype == dtype
    assert np.array_equal(found, np.hstack(dense_gates(NET, OTHERS)))


@pytest.mark.parametrize(("layers", "places"), [([1], [1]), (["3", 0], [1, 0]), ([-1], [1])])
def test_selects_layers(layers, places):
    made = GateTransformer(NET, layers).fit(X)
    gates = dense_gates(NET, OTHERS)
    assert np.array_equal(made.transform(OTHERS), np.hstack([gates[place] for place in places]))
    assert [layer.width for layer in made.layers_] == [(24, 16)[place] for place in places]
    names = [f"gate_{('1', '3')[place]}_{gate}" for place in places for gate in range((24, 16)[place])]
    assert made.get_feature_names_out().tolist() == names


def test_a_convolutional_net():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 1)).double()
    images = DRAWN.normal(size=(6, 16))
    made = GateTransformer(net, input_shape=(1, 4, 4)).fit(images)
    bits = record_gates(net, images.reshape(6, 1, 4, 4))
    assert np.array_equal(made.transform(images), bits.unpack()[0].flatten(1).numpy())
    assert made.get_feature_names_out()[-1] == "gate_1_11"


def test_data_frames_come_out():
    made = GateTransformer(width=4, depth=1, random_state=0).set_output(transform="pandas")
    found = made.fit_transform(X)
    assert list(found.columns) == ["gate_1_0", "gate_1_1", "gate_1_2", "gate_1_3"]
    assert set(found.dtypes) == {np.dtype("uint8")}


def test_a_linear_model_on_gates():
    pipeline = make_pipeline(GateTransformer(width=64, random_state=0), LogisticRegression())
    assert np.isfinite(cross_val_score(pipeline, X, LABELS, cv=2)).all()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (GateTransformer(NET, dtype="int4"), "dtype: got 'int4', needs one of"),
        (GateTransformer(NET, [5]), "layers: layer 5 is out of range for 2 layers"),
        (GateTransformer(NET, ["fc"]), "layers: 'fc' names 0 of the layers"),
        (GateTransformer(NET, 1), "layers: got 1, needs a list"),
        (GateTransformer(NET, []), "layers: got none, needs at least one"),
        (GateTransformer(NET, [0.5]), "layers: got 0.5, needs names or indices"),
        (GateTransformer(NET, [True]), "layers: got True, needs names or indices"),
        (GateTransformer(NET, [0, "1"]), "layers: got .0, '1'., which selects .'1', '1'., needs each layer at most"),
        (GateTransformer(relu_chain(4, 8, 1)), "net: got one that does not take inputs"),
    ],
)
def test_bad_input(made, message):
    with pytest.raises((TypeError, ValueError, IndexError), match=message):
        made.fit(X)
