"""Finds kernels whose numbers are too small for their dtype."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gatedops.devices import most_precise
from gatedops.gatebits import GateBits
from gatedops.path_kernels.dense import DenseKernel
from gatedops.path_kernels.images import ImageKernel

# At most this many rows are computed again.
_TRIED = 8
# The inputs of these rows are scaled up to this exponent: float64 holds the squares and leaves room for sums.
_LARGEST = 400


def underflow_of(
    gram: Tensor,
    made: DenseKernel | ImageKernel,
    x: Tensor,
    bits: GateBits | None,
    y: Tensor | None,
    y_bits: GateBits | None,
) -> str:
    """The warning about a Gram in which a row that is not 0 has vanished; empty if there is no such row.

    Rows whose numbers are all too small are computed again, in float64 and from larger inputs.
    """
    if gram.is_meta or most_precise(gram.device) != torch.float64:
        return ""
    tiny = torch.finfo(gram.dtype).tiny
    # The diagonal bounds the entries of a row. We do not read the whole Gram, because that takes as long as making it.
    seen = gram.diagonal().unsqueeze(1) if y is None else gram[:, :_TRIED]
    for row in (seen.abs().amax(1) < tiny).nonzero().flatten()[:_TRIED].tolist():
        if y is not None and float(gram[row].abs().max()) >= tiny:
            continue
        columns = slice(row, row + 1) if y is None else slice(0, _TRIED)
        other, other_bits = (x, bits) if y is None else (y, y_bits)
        sides = [x[row : row + 1].double(), other[columns].double()]
        shifts = [_LARGEST - math.frexp(float(side.abs().max()))[1] for side in sides]
        sides = [torch.ldexp(side, torch.tensor(shift)) for side, shift in zip(sides, shifts, strict=True)]
        kept, other_kept = (
            None if b is None else b[s] for b, s in ((bits, slice(row, row + 1)), (other_bits, columns))
        )
        if isinstance(made, DenseKernel):
            logs = made.logarithms(sides[0], kept, sides[1], other_kept)
        else:
            logs = made.gram(sides[0], kept, sides[1], other_kept, torch.float64).abs().log2()
        exponent = float(logs.max()) - sum(shifts)
        if -math.inf < exponent < math.log2(tiny):
            wider = gram.dtype != torch.float64 and exponent > math.log2(torch.finfo(torch.float64).tiny)
            remedy = "use dtype=torch.float64" if wider else "multiply the inputs by a constant, or take fewer layers"
            return (
                f"the kernel of row {row} of x has numbers of at most {_power_of_ten(exponent)}, which vanish in"
                f" {gram.dtype}; {remedy}"
            )
    return ""


def _power_of_ten(exponent: float) -> str:
    return f"1e{math.floor(exponent * math.log10(2)):d}"
