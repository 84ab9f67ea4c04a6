"""Deep gated networks: one network gives the gates, another the values (docs/math.md, section 11)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gatedops.gate_args import require_gate_bits
from gatedops.gatebits import GateBits, pack_gates
from gatedops.nn.dgn_args import gate_kind, require_fitting, require_input
from gatedops.nn.dgn_build import networks
from gatedops.nn.dgn_chain import chain_layers, pre_activation
from gatedops.nn.dgn_spec import Spec
from gatedops.ops.checks import require_option
from gatedops.ops.gated_linear import gated_linear
from gatedops.ops.gated_linear_gate import apply_gate, relu_with_gates
from gatedops.ops.gated_linear_pair import gated_linear_pair


class DGN(nn.Module):
    """A deep gated network: the pre-activations of a feature network gate the layers of a value network of the same
    architecture (Lakshminarayanan & Singh 2020, arXiv 2006.10529; docs/math.md, section 11).

    | mode | feature network | gates, unless `gate` says otherwise |
    |---|---|---|
    | "FR-II" | frozen, initialised independently | hard |
    | "FR-DI" | frozen copy of the value network as it is initialised | hard |
    | "FL" | frozen, with the weights of `feature` | hard |
    | "DL" | trained together with the value network | soft |

    Weights are drawn Glorot-uniform and biases are 0, first the value network's, then the feature network's. A network
    that is given as `spec_or_net` gives only its architecture; in mode "FR-DI" both networks start from its weights.

    Args:
        spec_or_net: :func:`fc_spec` or :func:`conv_spec`; or a ReLU network, an nn.Sequential of nn.Linear, nn.Conv2d,
            nn.ReLU, nn.Flatten, nn.AvgPool2d and nn.AdaptiveAvgPool2d. :func:`gatedops.gated_twin` takes any other.
        mode: see the table.
        feature: for mode "FL" only: the trained network, or its state_dict.
        gate: "hard", 1{q > 0}, or "soft", ``gain * sigmoid(beta * q)``. No gradient passes through hard gates, so "DL"
            needs soft ones.
        beta, gain: positive constants of soft gates.
        value_input: the value network reads "x" (piecewise linear, PWL), or "ones" (piecewise constant, PWC).
        order: a permutation of the L gated layers: value layer l has the gates of feature layer ``order[l]``. None: it
            has the gates of feature layer l.
        shallow: each feature layer reads x directly: a convolution the image, a linear layer all numbers of x.
        generator: all weights are drawn from it; None: from torch's default generator.
        device, dtype: those of the parameters; None: torch's defaults, or those of the given network.

    Attributes:
        value: the value network; as a module by itself it is the ordinary ReLU network of its weights.
        feature: the feature network up to its last gate, with the same keys in its state_dict; shallow: its L layers.

    Raises:
        TypeError, ValueError: an argument does not fit; the error names it.
    """

    value: nn.Sequential
    feature: nn.Sequential
    _linear = False

    def __init__(
        self,
        spec_or_net: Spec | nn.Module,
        mode: str = "DL",
        *,
        feature: nn.Module | Mapping[str, Tensor] | None = None,
        gate: str | None = None,
        beta: float = 4.0,
        gain: float = 1.0,
        value_input: str = "x",
        order: Sequence[int] | None = None,
        shallow: bool = False,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.gate = gate_kind(mode, gate, beta, gain)
        require_option("value_input", value_input, ("x", "ones"), listed=True)
        made = networks(spec_or_net, mode, feature, order, self._linear, shallow, generator, device, dtype)
        self.value, self.feature = made.value, made.feature
        self.mode, self.value_input, self.shallow = mode, value_input, shallow
        self.beta, self.gain = float(beta), float(gain)
        self._gated, self._names, self._shape, self.order = made.chain.gated, made.chain.names, made.shape, made.order

    def forward(self, x: Tensor, gates: GateBits | None = None) -> Tensor:
        """The value network's output.

        Args:
            x: ``(n, ...)`` as the networks read it.
            gates: hard gates of these rows, from :meth:`gates` or a :class:`gatedops.GateCache`; with them the feature
                network does not run.

        Raises:
            TypeError, ValueError: an argument does not fit, and the error names it; gates are given to a network whose
                gates are soft.
        """
        require_input(x, self._shape, next(self.value.parameters()))
        z = x if self.value_input == "x" else torch.ones_like(x)
        if gates is not None:
            self._require_gates(gates, x)
            return self._value_of(z, [gates.select_layers([layer]) for layer in range(len(gates.layers))])
        if self.gate == "hard":
            return self._value_of(z, self._hard_gates(x))
        if self.shallow or self.order != tuple(range(len(self.order))):
            return self._value_of(z, self._in_order(self._feature_gates(x)))
        return self._side_by_side(x, z)

    def gates(self, x: Tensor) -> GateBits:
        """The hard gates 1{q > 0} of the rows of x. Layers are in the order in which the value network uses them, and
        have the names that :func:`gatedops.record_gates` gives to the feature network's."""
        require_input(x, self._shape, next(self.value.parameters()))
        names = self._in_order(self._names)
        layers, first, words = [], 0, []
        for name, bits in zip(names, self._hard_gates(x), strict=True):
            layers.append(replace(bits.layers[0], name=name, first_word=first))
            words.append(bits.words)
            first += bits.words.shape[1]
        return GateBits(torch.cat(words, dim=1), tuple(layers))

    def feature_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the feature network."""
        return self.feature.parameters()

    def value_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the value network."""
        return self.value.parameters()

    def require_layers(self, gates: GateBits) -> None:
        """Raises ValueError if the layers of these gates are not those of the value network."""
        require_fitting(gates, self._gated_layers())

    def freeze_features(self, hard: bool = False) -> None:
        """Stops the feature network from learning. Soft gates stay soft, or become hard with `hard`."""
        self.feature.requires_grad_(False)
        if hard:
            self.gate = "hard"

    def extra_repr(self) -> str:
        soft = "" if self.gate == "hard" else f", beta={self.beta}, gain={self.gain}"
        return f"mode={self.mode}, gate={self.gate}{soft}, value_input={self.value_input}, order={self.order}"

    # --- the feature network -----------------------------------------------------------------------------------

    def _hard_gates(self, x: Tensor) -> list[GateBits]:
        """The hard gates of each value layer, without gradients, so nothing is kept for a backward of the feature
        network."""
        with torch.no_grad():
            return self._in_order(self._feature_gates(x, hard=True))

    def _feature_gates(self, x: Tensor, hard: bool = False) -> list:
        """The gates in the feature network's order: GateBits if they are hard, else tensors."""
        if self.shallow:
            inputs = [x.flatten(1) if isinstance(layer, nn.Linear) else x for layer in self.feature]
            return [self._gated_layer(layer, h, hard)[1] for layer, h in zip(self.feature, inputs, strict=True)]
        h, gates = x, []
        for layer, gated in zip(chain_layers(self.feature), self._gated, strict=False):
            if gated:
                h, gate = self._gated_layer(layer, h, hard)
                gates.append(gate)
            else:
                h = layer(h)
        return gates

    def _gated_layer(self, layer: nn.Module, h: Tensor, hard: bool = False) -> tuple[Tensor, GateBits | Tensor]:
        """Returns the input of the feature network's next layer, and the gate."""
        # A shallow feature network has no next layer, so no activation is needed.
        linear = self._linear or self.shallow
        if hard and not linear and isinstance(layer, nn.Linear):
            return gated_linear(h, layer.weight, layer.bias, return_gates=True)
        q = pre_activation(layer, h)
        if hard:
            return (q, pack_gates(q)) if linear else relu_with_gates(q)
        return q if linear else torch.relu(q), self.gain * torch.sigmoid(self.beta * q)

    def _in_order(self, of_layers: Sequence) -> list:
        return [of_layers[layer] for layer in self.order]

    # --- the value network -------------------------------------------------------------------------------------

    def _value_of(self, z: Tensor, gates: Sequence[GateBits | Tensor]) -> Tensor:
        """The output, with one gate for each gated layer."""
        remaining = iter(gates)
        for layer, gated in zip(chain_layers(self.value), self._gated, strict=True):
            if not gated:
                z = layer(z)
            elif isinstance(layer, nn.Linear):
                z = gated_linear(z, layer.weight, layer.bias, next(remaining))
            else:
                z = apply_gate(pre_activation(layer, z), next(remaining))
        return z

    def _side_by_side(self, h: Tensor, z: Tensor) -> Tensor:
        """The output for soft gates in the feature network's order: runs both networks side by side, layer by layer."""
        features, values = chain_layers(self.feature), chain_layers(self.value)
        kind: dict[str, Any] = {"beta": self.beta, "gain": self.gain, "feature": "linear" if self._linear else "relu"}
        for feature, value, gated in zip(features, values, self._gated, strict=False):
            if not gated:
                h, z = feature(h), value(z)
            elif isinstance(feature, nn.Linear) and isinstance(value, nn.Linear):
                layers = (h, feature.weight, feature.bias, z, value.weight, value.bias)
                h, z, _ = gated_linear_pair(*layers, gate="soft", **kind)
            else:
                h, gate = self._gated_layer(feature, h)
                z = apply_gate(pre_activation(value, z), gate)
        for value in values[len(features) :]:
            z = value(z)
        return z

    # --- checks ------------------------------------------------------------------------------------------------

    def _gated_layers(self) -> list[nn.Module]:
        return [layer for layer, gated in zip(chain_layers(self.value), self._gated, strict=True) if gated]

    def _require_gates(self, gates: GateBits, x: Tensor) -> None:
        require_gate_bits(gates, "gates")
        if self.gate != "hard":
            raise ValueError("gates: this network's gates are soft; call freeze_features(hard=True) to make them hard")
        self.require_layers(gates)
        if gates.n != x.shape[0]:
            raise ValueError(f"gates: has {gates.n} rows, x has {x.shape[0]}")
        if gates.device != x.device:
            raise ValueError(f"gates: is on {gates.device}, x is on {x.device}; move one of them")


class DLGN(DGN):
    """A deep linearly gated network. The feature network has no activations, so it is linear in x, and all of the
    non-linearity is in the gates (Lakshminarayanan, Singh & Rajkumar 2021, arXiv 2110.03403; docs/math.md, section 11).

    The arguments are those of :class:`DGN`; with shallow=True it is DLGN-SF. For mode "FL", `feature` is the feature
    network of a trained DLGN.
    """

    _linear = True
