"""Computes kernels of fully connected networks whose biases start no paths: multiples of Sigma * Lambda
(docs/math.md, section 2)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from gatedops import trace
from gatedops.gatebits import GateBits
from gatedops.ops.gram import npk_gram
from gatedops.path_kernels.network import weighted_layers
from gatedops.trace import Step


def is_dense(steps: Sequence[Step], *, biases: bool) -> bool:
    """Whether a network of vectors is [Flatten,] (Linear, Gate) once or more, then Linear, each gate has one slope, and
    no bias starts paths."""
    rest = list(steps[2:] if len(steps) > 1 and isinstance(steps[1], trace.Flatten) else steps[1:])
    kinds = [trace.Linear, trace.Gate] * (len(rest) // 2) + [trace.Linear]
    if len(rest) < 3 or [type(step) for step in rest] != kinds:
        return False
    alike = all(_has_one_slope(step) for step in rest if isinstance(step, trace.Gate))
    if not alike or any(math.prod(step.shape[1:]) > 1 for step in rest):
        return False
    chained = all(step.inputs == (index,) for index, step in enumerate(steps[1:]))
    return chained and not (biases and any(layer.bias is not None for layer in weighted_layers(rest)))


def _has_one_slope(step: trace.Gate) -> bool:
    return step.inside is None and (not isinstance(step.slope, Tensor) or step.slope.numel() == 1)


class DenseKernel:
    """Computes E[f f'] = (prod_l sigma_l^2) H, or E[K^V] = (sum_l sigma_l^-2) times that, by npk_gram.

    Args:
        steps: steps for which :func:`is_dense` is True.
        sigmas: one for each Linear layer.
        tangent: the kernel is E[K^V]; False: E[f f'].
    """

    def __init__(self, steps: Sequence[Step], sigmas: Sequence[float], *, tangent: bool) -> None:
        layers = weighted_layers(steps)
        factors = [sigma**2 * math.prod(layer.shape) for sigma, layer in zip(sigmas, layers, strict=True)]
        factors[-1] = sigmas[-1] ** 2 * (sum(sigma**-2 for sigma in sigmas) if tangent else 1.0)
        widths = [math.prod(layer.shape) for layer in layers[:-1]]
        exponents = [math.ceil(math.log2(factor)) for factor in factors]
        self.exponent = sum(exponents)
        scaled = [math.ldexp(factor, -exponent) for factor, exponent in zip(factors, exponents, strict=True)]
        self.scales = [scale / width for scale, width in zip(scaled, widths, strict=False)]
        self.scales[-1] *= scaled[-1]
        self.slopes = [float(step.slope) for step in steps if isinstance(step, trace.Gate)]

    def gram(
        self, x: Tensor, bits: GateBits | None, y: Tensor | None, y_bits: GateBits | None, dtype: torch.dtype
    ) -> Tensor:
        """The kernel of the inputs with these gates, times ``2 ** -exponent``."""
        if bits is None:
            raise RuntimeError("a fully connected network with hidden layers has gates")
        rows, y_rows = x.flatten(1), None if y is None else y.flatten(1)
        with warnings.catch_warnings():
            # npk gives a warning of its own instead.
            warnings.filterwarnings("ignore", "the largest value of the kernel", UserWarning)
            return npk_gram(rows, bits, y_rows, y_bits, scale=self.scales, slope=self.slopes, dtype=dtype)

    def logarithms(self, x: Tensor, bits: GateBits | None, y: Tensor, y_bits: GateBits | None) -> Tensor:
        """log2 of the absolute values of that kernel for a few inputs; works also if the values leave float64."""
        logs = (x.flatten(1).double() @ y.flatten(1).double().T).abs().log2()
        if bits is not None and y_bits is not None:
            layers = zip(bits.unpack(), y_bits.unpack(), self.scales, self.slopes, strict=True)
            for mask, other, scale, slope in layers:
                left, right = (slope + (1 - slope) * gates.double() for gates in (mask, other))
                logs = logs + (left @ right.T * scale).abs().log2()
        return logs
