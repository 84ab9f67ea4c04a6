"""GateTransformer: the gates of a net as features 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted
from torch import nn

from gatedops.gatebits import GateBits
from gatedops.layout import GateLayer
from gatedops.ops.checks import require_option
from gatedops.sklearn.base import whole_or_not_at_all
from gatedops.sklearn.unsupervised import UnsupervisedEstimator
from gatedops.trace.naming import naming

_DTYPES = {"uint8": torch.uint8, "bool": torch.bool, "float32": torch.float32, "float64": torch.float64}


class GateTransformer(TransformerMixin, UnsupervisedEstimator):
    """Transforms inputs to the gates that they have in a net: 1 if a gate is on, 0 if it is off.

        make_pipeline(GateTransformer(width=256), LogisticRegression())

    The gates of a layer with several axes, such as channels and pixels, follow each other in the order of the axes.

    Args:
        net, random_state, gates, width, depth, epochs, input_shape: as in :class:`NPKTransformer`.
        layers: which layers, a list of their names or places; None: all.
        dtype: of the result: "uint8", "bool", "float32" or "float64".

    Attributes:
        network_: the net.
        layers_: the selected layers, each with its `name`, `shape` and `width`.
        n_features_in_, feature_names_in_: as in every estimator of scikit-learn.
    """

    layers_: tuple[GateLayer, ...]

    def __init__(
        self,
        net: nn.Module | None = None,
        layers: Sequence[str | int] | None = None,
        random_state: Any = None,
        *,
        dtype: str = "uint8",
        gates: str = "random",
        width: int = 512,
        depth: int = 2,
        epochs: int = 10,
        input_shape: Sequence[int] | None = None,
    ) -> None:
        self.net = net
        self.layers = layers
        self.random_state = random_state
        self.dtype = dtype
        self.gates = gates
        self.width = width
        self.depth = depth
        self.epochs = epochs
        self.input_shape = input_shape

    @whole_or_not_at_all
    def fit(self, X: Any, y: Any = None) -> Self:
        """Makes the net.

        Args:
            X: ``(n, d)``, finite numbers.
            y: ``(n,)`` or ``(n, c)``, used if `gates` is "trained".

        Raises:
            TypeError, ValueError: X, y or a parameter does not fit; the error names it.
            IndexError, KeyError: `layers` has a place or a name that no layer has. ValueError: or a layer twice.
        """
        require_option("dtype", self.dtype, tuple(_DTYPES), listed=True)
        X = self._checked(X, reset=True)
        self._make_network(X, self._targets(X, y))
        self.layers_ = self._selected(X[:1]).layers
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Returns the gates of m inputs ``(m, d)``, ``(m, gates)``, layer after layer.

        Raises:
            NotFittedError: before fit. ValueError: X has another number of features than in fit.
        """
        layers = self._selected(self._checked(X, reset=False)).unpack()
        return torch.cat([gates.flatten(1) for gates in layers], 1).to(_DTYPES[self.dtype]).numpy()

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Returns a name for each gate, such as "gate_1_7" for gate 7 of layer "1", as an array of strings.

        Args:
            input_features: None, or the names of the features in fit, which are only compared.
        """
        check_is_fitted(self)
        _check_feature_names_in(self, input_features, generate_names=False)
        names = [f"gate_{layer.name}_{place}" for layer in self.layers_ for place in range(layer.width)]
        return np.asarray(names, dtype=object)

    def _selected(self, X: np.ndarray) -> GateBits:
        bits = self.network_.record(X)
        if self.layers is None:
            return bits
        with naming({"selection": "layers"}):
            selected = bits.select_layers(self.layers)
        names = [layer.name for layer in selected.layers]
        if len(set(names)) < len(names):
            raise ValueError(f"layers: got {self.layers!r}, which selects {names}, needs each layer at most once")
        return selected

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags
