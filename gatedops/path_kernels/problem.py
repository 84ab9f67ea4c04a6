"""Checks the arguments of npk, and prepares the kernel of a network: its program and the gates of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gatedops.gatebits import GateBits
from gatedops.ops.checks import require_dtype, require_option, require_precision
from gatedops.ops.gram_args import DTYPES
from gatedops.path_kernels.compile_steps import compile_steps
from gatedops.path_kernels.dense import DenseKernel, is_dense
from gatedops.path_kernels.images import ImageKernel
from gatedops.path_kernels.network import read_network, recorded_gates, weighted_layers
from gatedops.path_kernels.npk_args import as_floats, inputs_of, most_of, require_range, sigmas_of
from gatedops.trace.batches import require_count
from gatedops.trace.checks import require_model


@dataclass(frozen=True)
class Problem:
    """The kernel of a network, and the inputs and gates of both sides; y and y_bits are None if both are the same."""

    made: DenseKernel | ImageKernel
    x: Tensor
    bits: GateBits | None
    y: Tensor | None
    y_bits: GateBits | None


def problem_of(
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
    max_work: float | None = 1e12,
    progress: bool | None = None,
) -> Problem:
    """Prepares the kernel of a network; arguments and errors are those of :func:`gatedops.npk`."""
    require_option("kernel", kernel, ("npk", "ntk"))
    require_option("bias", bias, ("ignore", "path"))
    require_dtype(dtype, "dtype", DTYPES)
    batch_size, max_work = require_count(batch_size), most_of(max_work)
    x, y = inputs_of(x, y)
    require_model(model)
    require_precision(dtype, x.device, "dtype")
    rows, columns = as_floats(x, model), None if y is None else as_floats(y, model)
    tangent, biases = kernel == "ntk", bias == "path"
    network = read_network(model, rows, biases=biases, output=output)
    sigmas = sigmas_of(sigma, weighted_layers(network.steps))
    made: DenseKernel | ImageKernel
    if is_dense(network.steps, biases=biases):
        made = DenseKernel(network.steps, sigmas, tangent=tangent)
    else:
        compiled = compile_steps(network, sigmas, tangent=tangent, biases=biases)
        made = ImageKernel(*compiled, batch_size, progress)
        made.work.require_at_most(max_work)
    for side, name in ((rows, "x"), (columns, "y")):
        require_range(side, name, dtype)
    bits, y_bits = (recorded_gates(model, network, side, batch_size, progress) for side in (rows, columns))
    if isinstance(made, DenseKernel) and x.dtype == torch.uint8:
        # Inner products of uint8 inputs are exact.
        rows, columns = x, y
    return Problem(made, rows.detach(), bits, None if columns is None else columns.detach(), y_bits)
