"""The network of an estimator: made for the features at hand, or given; and the gates that it has for inputs."""

from __future__ import annotations

import copy
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor, nn

from gatedops.arrays import as_tensor
from gatedops.gatebits import GateBits
from gatedops.ops.checks import require_option
from gatedops.scalars import whole_number
from gatedops.sklearn.net_checks import require_fit, require_weights
from gatedops.sklearn.training import train
from gatedops.trace import record_gates
from gatedops.trace.naming import naming

GATES = ("random", "trained")
_BATCH = 256
# Sums and differences of such numbers are finite in float64.
_LARGEST = 1e300
# scikit-learn may fit and predict in several threads (n_jobs). torch.export and record_gates change the state of the
# process for a moment, so one thread at a time looks into a net.
ALONE = threading.Lock()


class GateNetwork(ABC):
    """A network whose gates an estimator uses.

    Attributes:
        net: the torch module: a copy of the given one, or a made one.
        dtype: torch.float64 or torch.float32; of the inputs and of kernels.
    """

    net: nn.Module
    dtype: torch.dtype

    @abstractmethod
    def inputs(self, X: np.ndarray) -> Tensor:
        """Returns the inputs of the kernel, ``(n, d)``: Sigma is their inner product."""

    @abstractmethod
    def record(self, X: np.ndarray) -> GateBits:
        """Records the gates of n inputs, in the memory of the CPU."""


class MadeNetwork(GateNetwork):
    """A new fully connected ReLU net without biases, whose inputs get a constant.

    The inputs are z = (x - mean) / scale, with the means of the features in X and one scale for all features, the root
    of the mean of their variances. So the kernel does not depend on the unit of X, and features keep their proportions.
    The gates of a bias-free net depend on the direction of its input alone, so that inputs on one ray from the origin
    could not be told apart. Hence a 1 follows the d features, which acts as the biases of the first layer. All is
    divided by sqrt(d + 1): Sigma is about 1 on the diagonal. Weights are normal with variance 2 / inputs, which keeps
    the size of pre-activations from layer to layer.

    Args:
        X: ``(n, d)``, what the estimator is fitted to.
        targets: labels int64 ``(n,)`` from 0, or numbers float64 ``(n, c)``: the net is trained to give them. None: its
            weights stay as they are drawn.
        width, depth: the number of gates in a layer, and of layers with gates.
        epochs, random_state: of the training, and of all that is drawn.
    """

    def __init__(
        self,
        X: np.ndarray,
        targets: np.ndarray | None,
        *,
        width: int,
        depth: int,
        epochs: int,
        random_state: Any,
    ) -> None:
        self.dtype = torch.float32 if X.dtype in (np.float32, np.uint8) else torch.float64
        floats = X.astype(np.float64)
        largest = float(np.abs(floats).max())
        if largest > _LARGEST:
            raise ValueError(f"X: got {largest:g}, needs numbers up to {_LARGEST:g}: divide X by its largest")
        # Numbers around 1, whose squares neither overflow nor underflow. Powers of 2 change no digit.
        exponent = int(np.frexp(largest)[1])
        np.ldexp(floats, -exponent, out=floats)
        self.mean = np.ldexp(floats.mean(0), exponent)
        spread = float(np.ldexp(np.sqrt(floats.var(0).mean()), exponent))
        self.scale = spread if spread > 0 else 1.0
        draws = check_random_state(random_state)
        generator = torch.Generator().manual_seed(int(draws.randint(np.iinfo(np.int32).max)))
        outputs = 1 if targets is None else int(targets.max()) + 1 if targets.ndim == 1 else targets.shape[1]
        self.net = _drawn([X.shape[1] + 1, *[width] * depth, outputs], generator, self.dtype)
        if targets is not None:
            train(self.net, self.inputs(X), as_tensor(targets, "y"), epochs, generator)

    def inputs(self, X: np.ndarray) -> Tensor:
        n, d = X.shape
        made = np.ones((n, d + 1))
        np.subtract(X, self.mean, out=made[:, :d])
        made[:, :d] /= self.scale
        made /= np.sqrt(d + 1)
        return torch.from_numpy(made).to(self.dtype)

    def record(self, X: np.ndarray) -> GateBits:
        with ALONE:
            return record_gates(self.net, self.inputs(X), _BATCH, progress=False)


class GivenNetwork(GateNetwork):
    """A copy of a torch net that the user gave.

    The copy is in evaluation mode. The rows of X are its inputs, in its dtype and on its device.

    Args:
        net: any ReLU net. It is not changed.
        X: ``(n, d)``, what the estimator is fitted to.
        input_shape: the shape of one input of the net, such as (1, 28, 28), to which rows are reshaped; None: ``(d,)``.

    Raises:
        TypeError: net is not a torch module. ValueError: its weights are not finite numbers, or the rows of X are not
            inputs of it.
    """

    def __init__(self, net: Any, X: np.ndarray, input_shape: Sequence[int] | None) -> None:
        if not isinstance(net, nn.Module):
            raise TypeError(f"net: got {type(net).__name__}, needs a torch.nn.Module, or None for a new net")
        require_weights(net)
        self.net = copy.deepcopy(net).eval()
        self.shape = _shape_of(input_shape, X.shape[1])
        parameter = next((one for one in self.net.parameters() if one.is_floating_point()), torch.empty(0))
        self._net_dtype, self._device = parameter.dtype, parameter.device
        self.dtype = torch.float32 if X.dtype in (np.float32, np.uint8) else torch.float64
        require_fit(self.net, self.net_inputs(X[:1]), self.shape, X.shape[1])

    def inputs(self, X: np.ndarray) -> Tensor:
        rows = as_tensor(np.ascontiguousarray(X), "X").reshape(len(X), *self.shape)
        return rows if rows.dtype == torch.uint8 else rows.to(self.dtype)

    def net_inputs(self, X: np.ndarray) -> Tensor:
        """Returns the rows of X as the net takes them. ValueError: X has numbers that are too large for its dtype."""
        rows = self.inputs(X).to(self._device, self._net_dtype)
        if not bool(torch.isfinite(rows).all()):
            raise ValueError(f"X: has numbers beyond {self._net_dtype}, in which the net works: use net.double()")
        return rows

    def record(self, X: np.ndarray) -> GateBits:
        inputs = self.net_inputs(X)
        with ALONE, naming({"model": "net", "x": "X", "data": "X"}):
            bits = record_gates(self.net, inputs, _BATCH, activations="piecewise", progress=False)
        return bits.cpu()


def network_of(
    X: np.ndarray,
    targets: np.ndarray | None = None,
    *,
    net: nn.Module | None = None,
    gates: str = "random",
    width: int = 512,
    depth: int = 2,
    epochs: int = 10,
    input_shape: Sequence[int] | None = None,
    random_state: Any = None,
) -> GateNetwork:
    """Returns the network that the parameters of an estimator ask for.

    Args:
        X: ``(n, d)``, numbers, checked.
        targets: as in :class:`MadeNetwork`; used if `gates` is "trained".
        net: a torch net, used as it is; None: a new net is made.
        gates: "random" or "trained": whether the new net is trained to give the targets.
        width, depth, epochs: of the new net.
        input_shape: of the given net.
        random_state: of the new net: None, a number, or a numpy RandomState.

    Raises:
        TypeError, ValueError: an argument has another type or value, or the arguments do not fit each other.
    """
    require_option("gates", gates, GATES)
    sizes = {name: _count(value, name) for name, value in (("width", width), ("depth", depth), ("epochs", epochs))}
    if net is not None:
        if gates == "trained":
            raise ValueError("gates: got 'trained' and a net, which is used as it is: train it first, or leave out net")
        return GivenNetwork(net, X, input_shape)
    if input_shape is not None:
        raise ValueError(f"input_shape: got {input_shape}, but no net: it is the shape of the inputs of a given net")
    if gates == "trained" and targets is None:
        raise ValueError("gates: got 'trained' but no y, needs y: the net is trained to give it")
    return MadeNetwork(X, targets if gates == "trained" else None, random_state=random_state, **sizes)


def _drawn(sizes: Sequence[int], generator: torch.Generator, dtype: torch.dtype) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layer = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=False, dtype=dtype)
        with torch.no_grad():
            # Drawn in float64, so that the same random state gives the same net in both dtypes.
            drawn = torch.randn((outputs, inputs), generator=generator, dtype=torch.float64)
            layer.weight.copy_((2 / inputs) ** 0.5 * drawn)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _count(given: Any, name: str) -> int:
    number = whole_number(given)
    if number is None:
        raise TypeError(f"{name}: got {given!r}, needs a whole number")
    if number < 1:
        raise ValueError(f"{name}: got {number}, needs at least 1")
    return number


def _shape_of(given: Sequence[int] | None, features: int) -> tuple[int, ...]:
    if given is None:
        return (features,)
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise TypeError(f"input_shape: got {given!r}, needs a sequence of whole numbers, such as (1, 28, 28)")
    shape = tuple(_count(size, "input_shape") for size in given)
    if int(np.prod(shape)) != features:
        raise ValueError(f"input_shape: got {shape}, {np.prod(shape)} numbers, but X has {features} features")
    return shape
