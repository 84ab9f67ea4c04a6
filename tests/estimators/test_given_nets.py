"""Nets that estimators cannot take: the errors name net and X, and say of a layer only what is known."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from dense_kernels import relu_chain
from torch import nn

from gatedops.sklearn import GateTransformer, NPKRidge, NPKTransformer

X = np.random.default_rng(0).normal(size=(10, 4))


class HeadFirst(nn.Module):
    """Registers its last layer first."""

    def __init__(self):
        super().__init__()
        self.head, self.first = nn.Linear(16, 1), nn.Linear(5, 16)

    def forward(self, x):
        return self.head(torch.relu(self.first(x)))


class TwoInputs(nn.Module):
    def forward(self, x, z):
        return torch.relu(x) + z


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))

    def forward(self, x):
        return self.net(x), x


def with_nan():
    net = relu_chain(4, 3, 1)
    with torch.no_grad():
        net[0].weight[0, 0] = torch.nan
    return net


NO_FIT = "net: got one that does not take inputs of shape (4,), the rows of X with 4 features"


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (HeadFirst(), f"{NO_FIT}; its first layer needs 5. Give"),
        (nn.Linear(7, 1), f"{NO_FIT}; its first layer needs 7. Give"),
        (
            nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(9, 1)),
            f"{NO_FIT}; it fails inside, in its layer '2', Linear, which gets shape (8,). Give",
        ),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), f"{NO_FIT}. Give"),
        (TwoInputs(), f"{NO_FIT}. Give a net for these features"),
        (with_nan(), "net: 0.weight has infinite values or NaN"),
        (nn.Sequential(nn.LazyLinear(3), nn.ReLU(), nn.Linear(3, 1)), "net: 0.weight of a lazy layer has no size yet"),
        (relu_chain(4, 3, 1).to("meta"), "net: 0.weight is on the device meta"),
        (nn.Linear(4, 1), "net: calls no ReLU"),
        (Pair(), "needs to return one tensor that depends on its input; wrap it in a module that returns only"),
    ],
    ids=["head first", "Linear", "inside", "convolution", "two inputs", "NaN", "lazy", "meta", "no gates", "pair"],
)
def test_is_refused_with_one_sentence(net, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        NPKTransformer(net).fit(X)


def test_numbers_beyond_the_dtype_of_the_net():
    net = relu_chain(4, 3, 1).float()
    with pytest.raises(ValueError, match=r"X: has numbers beyond torch\.float32, in which the net works"):
        NPKRidge(net).fit(X, X[:, 0]).predict(1e39 * X)
    assert GateTransformer(relu_chain(4, 3, 1)).fit(X).transform(1e39 * X).shape == (10, 3)
