"""Gates of pre-activations, and numbers where gates are on, else exactly 0, whatever stood there: infinity and NaN too
(docs/math.md, sections 6 and 8).

What is simplest for torch on a GPU takes several times as long as it must on a CPU, where comparing into bool handles
one number after another, and selecting takes a branch for each.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # integers of a size in bytes


def select(values: Tensor, on: Tensor, out: Tensor | None = None) -> Tensor:
    """The values where bool `on` is true, else 0; into `out` if it is given, which may be `values`."""
    if out is None:
        out = torch.empty_like(values, memory_format=torch.contiguous_format)
    if values.device.type == "cpu":
        bits = _BITS[values.itemsize]
        torch.bitwise_and(values.view(bits), on.view(torch.int8).neg().to(bits), out=out.view(bits))
    else:
        torch.where(on, values, values.new_zeros(()), out=out)
    return out


def compare(q: Tensor, out: Tensor) -> None:
    """Writes into bool `out` where q, pre-activations or bool gates, is on: greater than 0, which NaN is not."""
    if q.dtype == torch.bool:  # whose bytes may be other than 0 and 1
        torch.ne(q, 0, out=out)
    elif q.device.type == "cpu":
        out.copy_(torch.gt(q, 0, out=torch.empty_like(q)))
    else:
        torch.gt(q, 0, out=out)
