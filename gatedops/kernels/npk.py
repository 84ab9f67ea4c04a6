"""npk: the path kernels of networks (docs/math.md, sections 2, 4 and 13)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gatedops.kernels.compile_steps import compile_steps
from gatedops.kernels.dense import DenseKernel, is_dense
from gatedops.kernels.images import ImageKernel
from gatedops.kernels.network import layers_of, recorded_gates, steps_of
from gatedops.kernels.npk_args import require_inputs, require_option, require_range, sigmas_of
from gatedops.ops.checks import require_dtype, require_precision
from gatedops.ops.gram_args import DTYPES
from gatedops.trace.batches import require_count


def npk(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    kernel: str = "npk",
    sigma: float | Sequence[float] = 1.0,
    bias: str = "ignore",
    batch_size: int = 256,
    dtype: torch.dtype = torch.float32,
    return_exponent: bool = False,
    progress: bool | None = None,
) -> Tensor | tuple[Tensor, int]:
    """The neural path kernel H of a ReLU network, or its tangent kernel with frozen gates, for all pairs of inputs
    (Lakshminarayanan & Singh 2020, arXiv 2006.10529; docs/math.md, sections 2, 4 and 13).

    H(s, s') is the inner product of the path features of one output, E[f(s) f(s')] over random values of the weights of
    mean 0 and variance 1 while gates and the choices of max-pools stay as they are. The gates are those of `model` on x
    and y (:func:`gatedops.record_gates`); its weights do not enter otherwise.

    Covered are Linear and Conv2d layers (any size, stride, padding with zeros or circular, dilation; no groups), ReLU
    in any form, MaxPool2d, AvgPool2d, means over all pixels, Flatten, residual additions with gates before or after
    them, layers without a gate, adding constants, BatchNorm behind a layer and Dropout, both in evaluation mode. The
    network ends with a Linear or Conv2d layer.

    Args:
        model: maps ``(n, d)`` or ``(n, C, H, W)`` to outputs ``(n, c)``; in evaluation mode.
        x: n inputs of a float dtype.
        y: the m inputs of the other side; None: the symmetric Gram of x, each unordered pair computed once, bitwise
            symmetric.
        kernel: "npk": H; "ntk": E[K^V], the mean over random weights of the tangent kernel of all weights with frozen
            gates. A network without additions has E[K^V] = d sigma^(2 (d - 1)) H, others have not.
        sigma: standard deviation of each single weight, not divided by fan-in: one number, or one for each Linear and
            Conv2d layer in the order they run. With kernel="npk" and other numbers than 1 the result is E[f f'], each
            path weighed by the variances of its weights.
        bias: "ignore": biases and constants only move gates, as in the papers; "path": each starts paths of its own at
            an input of 1 (with "ntk" it is trained too, and starts at 0). ``output == <npf, npv>`` needs "path".
        batch_size: inputs at a time while gates are recorded and masks are made.
        dtype: float32 or float64; of the arithmetic and the result.
        return_exponent: give the exponent too.
        progress: a bar (tqdm) over blocks of the Gram. None: on a terminal, once it has taken a second.

    Returns:
        ``(n, m)``, detached: the kernel times ``2 ** -exponent``, with one whole number for the whole Gram. It depends
        on the architecture, `kernel`, `sigma` and `bias` alone, so that Grams of one network go together. With
        return_exponent: (Gram, exponent).

    Raises:
        TypeError, ValueError: an argument of another form; a model in training mode; a step that is not covered, by
            name; inputs so large or so small that their squares leave `dtype`. All before the Gram is begun.
    """
    require_option("kernel", kernel, ("npk", "ntk"))
    require_option("bias", bias, ("ignore", "path"))
    require_dtype(dtype, "dtype", DTYPES)
    require_count(batch_size)
    require_inputs(x, y)
    require_precision(dtype, x.device, "dtype")
    steps = steps_of(model, x)
    sigmas = sigmas_of(sigma, layers_of(steps))
    tangent, biases = kernel == "ntk", bias == "path"
    made: DenseKernel | ImageKernel
    if is_dense(steps, biases=biases):
        made = DenseKernel(steps, sigmas, tangent=tangent)
    else:
        compiled = compile_steps(steps, sigmas, tangent=tangent, biases=biases)
        made = ImageKernel(*compiled, batch_size, progress)
    for side, name in ((x, "x"), (y, "y")):
        require_range(side, name, dtype)
    bits, y_bits = (recorded_gates(model, steps, side, batch_size, progress) for side in (x, y))
    gram = made.gram(x.detach(), bits, None if y is None else y.detach(), y_bits, dtype)
    return (gram, made.exponent) if return_exponent else gram
