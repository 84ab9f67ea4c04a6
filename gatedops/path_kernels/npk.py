"""npk: the path kernels of networks (docs/math.md, sections 2, 4 and 13)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gatedops.path_kernels.problem import problem_of
from gatedops.path_kernels.underflow import underflow_of


def npk(
    model: nn.Module,
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray | None = None,
    *,
    kernel: str = "npk",
    sigma: float | Sequence[float] = 1.0,
    bias: str = "ignore",
    output: int | str | None = None,
    batch_size: int = 256,
    dtype: torch.dtype = torch.float32,
    return_exponent: bool = False,
    max_work: float | None = 1e12,
    progress: bool | None = None,
) -> Tensor | tuple[Tensor, int]:
    """Computes the neural path kernel H of a ReLU network, or its tangent kernel with frozen gates, for all pairs of
    inputs (Lakshminarayanan & Singh 2020, arXiv 2006.10529; docs/math.md, sections 2, 4 and 13).

    H(s, s') is the inner product of the path features of one output. It equals E[f(s) f(s')] over random weights of
    mean 0 and variance 1, while gates and the choices of max-pools stay as they are. The gates are those of `model` on
    x and y (:func:`gatedops.record_gates`); its weights are used for nothing else.

    npk covers Linear layers (also on every token or pixel), Conv1d, Conv2d and Conv3d layers and transposed ones (any
    size, stride, dilation, padding, groups; depthwise), ReLU in any form, LeakyReLU, PReLU and abs (by their two
    slopes), ReLU6 and hardtanh (on strictly between their limits), MaxPool1d and MaxPool2d, averages, resizing,
    padding, residual additions, concatenation, slices and permutations of channels, adding constants, multiplying by
    them, BatchNorm and Dropout in evaluation mode. The network must end with a layer; a softmax or sigmoid behind it is
    left out. A batch norm, and a factor for each channel, count as parts of the weights of the layers beside them. A
    number, and a constant that multiplies the inputs, count as they are.

    The rule needs independent weights. Weights that share memory or are computed from one parameter in any way
    (transposes, multiples, sums) are refused as tied. Parts of a parameter that do not overlap count as independent. A
    weight that does not come from a parameter (a buffer, ``torch.ones``) is averaged over like any other. With
    bias="path", biases that are parameters start paths whatever their values; a bias of zeros that does not come from a
    parameter starts none.

    Args:
        model: maps ``(n, d)``, ``(n, T, d)``, ``(n, C, T)``, ``(n, C, H, W)`` or ``(n, C, D, H, W)`` to outputs
            ``(n, c)`` or ``(n,)``; in evaluation mode. Wrappers (torch.compile, DistributedDataParallel, DataParallel)
            around it or its parts are looked through.
        x: n inputs, a tensor or numpy array of the model's dtype. Whole numbers and truth values (uint8 images) are
            converted to that dtype; the inner products of uint8 inputs of a fully connected network are exact.
        y: the m inputs of the other side; None: the symmetric Gram of x, each unordered pair computed once, bitwise
            symmetric.
        kernel: "npk": H; "ntk": E[K^V], the mean over random weights of the tangent kernel of all weights with frozen
            gates. Only a network without additions has E[K^V] = d sigma^(2 (d - 1)) H.
        sigma: standard deviation of each single weight, not divided by fan-in: one number, or one for each layer
            with weights in the order they run. With kernel="npk" and other numbers than 1 the result is E[f f'], in
            which each path is weighted by the variances of its weights.
        bias: "ignore": biases and constants only move gates, as in the papers; "path": each starts paths of its own at
            an input of 1 (with "ntk" it is trained too, and starts at 0). ``output == <npf, npv>`` needs "path".
        output: the index or key of the output whose kernel is wanted, if the model returns several.
        batch_size: inputs at a time while gates are recorded and masks are made.
        dtype: float32 or float64, for the arithmetic and the result.
        return_exponent: return the exponent too.
        max_work: refuse a network of which one pair of inputs takes more operations on numbers and words of 32 gates
            than this, as estimated from its program; a core does 1e9 to 1e10 in a second. None: take any.
        progress: show a bar (tqdm) over blocks of the Gram. None: on a terminal, once it has taken a second.

    Returns:
        ``(n, m)``, detached: the kernel times ``2 ** -exponent``, with one whole number for the whole Gram. The
        exponent depends only on the architecture, `kernel`, `sigma` and `bias`, so all Grams of one network have the
        same. With return_exponent: (Gram, exponent).

    Raises:
        TypeError, ValueError: an argument has another form; the model does not take the inputs or is in training mode;
            a step is not covered (the error names it and says what to do); weights are tied; the inputs are so large or
            so small that their squares leave `dtype`. All these are raised before the Gram is begun.

    Warns:
        UserWarning: rows of the Gram have numbers that are too small for `dtype`.
    """
    problem = problem_of(
        model,
        x,
        y,
        kernel=kernel,
        sigma=sigma,
        bias=bias,
        output=output,
        batch_size=batch_size,
        dtype=dtype,
        max_work=max_work,
        progress=progress,
    )
    made = problem.made
    gram = made.gram(problem.x, problem.bits, problem.y, problem.y_bits, dtype)
    vanished = underflow_of(gram, made, problem.x, problem.bits, problem.y, problem.y_bits)
    if vanished:
        warnings.warn(vanished, stacklevel=2)
    return (gram, made.exponent) if return_exponent else gram
