"""Kernels of recorded gates: the neural path kernel of an estimator's points, as operators and as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gatedops.arrays import as_tensor
from gatedops.gatebits import GateBits
from gatedops.layout import GateLayer
from gatedops.operators.base import KernelOperator
from gatedops.operators.npk_operator import NPKOperator
from gatedops.path_kernels.dense import DenseKernel
from gatedops.path_kernels.problem import problem_of
from gatedops.sklearn.networks import ALONE, GateNetwork, GivenNetwork
from gatedops.trace.naming import naming

# What a user of an estimator calls the arguments of npk.
_NAMES = {"model": "net", "x": "X", "y": "X"}


@dataclass(frozen=True, eq=False)
class Points:
    """Inputs and their packed gates.

    Both are numpy arrays, which joblib maps into memory without a copy.

    Attributes:
        X: ``(n, d)``.
        words: int32 ``(n, W)``, of :class:`gatedops.GateBits`.
        layers: of the same.
    """

    X: np.ndarray
    words: np.ndarray
    layers: tuple[GateLayer, ...]

    @staticmethod
    def of(network: GateNetwork, X: np.ndarray) -> Points:
        """Records the gates of the rows of X."""
        bits = network.record(X)
        return Points(X, bits.words.numpy(), bits.layers)

    @property
    def bits(self) -> GateBits:
        """The gates, which share the memory of `words`."""
        return GateBits(as_tensor(self.words, "words"), self.layers)


class GateKernel:
    """The kernel of a network's gates: NPK = Sigma * Lambda, or Lambda alone, times a constant.

    For fully connected nets Lambda is the product over layers of 2 / width times the gates that two inputs share (with
    the slopes of LeakyReLU). For other nets it is :func:`gatedops.npk` times a power of 2; their gates of both sides
    are recorded anew for each operator.

    Attributes:
        network: whose gates.
        points: those that an estimator was fitted to.

    Args:
        network, points: see above.
        sigma: whether the inner products of inputs are a factor. False is for fully connected nets alone.

    Raises:
        ValueError, TypeError: as in gatedops.npk; or sigma is False and the net is not fully connected.
    """

    def __init__(self, network: GateNetwork, points: Points, *, sigma: bool = True) -> None:
        self.network, self.points, self._sigma = network, points, bool(sigma)
        self._slopes: list[float] = []
        self._is_dense = True
        if isinstance(network, GivenNetwork):
            first = network.net_inputs(points.X[:1])
            with ALONE, naming(_NAMES):
                made = problem_of(network.net, first, dtype=network.dtype, progress=False).made
            self._is_dense = isinstance(made, DenseKernel)
            self._slopes = made.slopes if isinstance(made, DenseKernel) else []
        if not self._is_dense and not self._sigma:
            raise ValueError("sigma: got False, needs True, because the given net is not fully connected")

    @cached_property
    def unit(self) -> float:
        """The mean of the diagonal of the fitted points' kernel; 1 if it is 0."""
        unit = float(self.square().diag().mean())
        return unit if unit > 0 else 1.0

    def new_points(self, X: np.ndarray) -> Points:
        """Records the gates of other inputs."""
        return Points.of(self.network, X)

    def square(self, points: Points | None = None) -> KernelOperator:
        """Returns the kernel of points with themselves, ``(n, n)``, symmetric, as an operator. None: the fitted
        points."""
        return self._operator(self.points if points is None else points, None)

    def cross(self, points: Points, others: Points | None = None) -> KernelOperator:
        """Returns the kernel of points with others, ``(m, n)``, as an operator. None: the fitted points."""
        return self._operator(points, self.points if others is None else others)

    def array(self, operator: KernelOperator) -> np.ndarray:
        """Returns one of these operators as an array, divided by `unit`."""
        return operator.to_dense().div_(self.unit).numpy()

    def _operator(self, rows: Points, columns: Points | None) -> KernelOperator:
        network = self.network
        # A kernel of other points is multiplied once, so nothing of it is worth storing.
        cache = "auto" if columns is None else "none"
        if not self._is_dense and isinstance(network, GivenNetwork):
            given = None if columns is None else network.net_inputs(columns.X)
            inputs = network.net_inputs(rows.X)
            with ALONE, naming(_NAMES):
                return NPKOperator.of(network.net, inputs, given, dtype=network.dtype, cache=cache, progress=False)
        bits, y_bits = rows.bits, None if columns is None else columns.bits
        x = y = None
        if self._sigma:
            x, y = (None if side is None else network.inputs(side.X).flatten(1) for side in (rows, columns))
            if x is not None and y is not None and x.dtype != y.dtype:  # Bytes on one side only.
                x, y = x.to(network.dtype), y.to(network.dtype)
        scale = [2 / width for width in bits.widths]
        slope = self._slopes or 0.0
        return NPKOperator(bits, x, y_bits, y, scale=scale, slope=slope, dtype=network.dtype, cache=cache)
