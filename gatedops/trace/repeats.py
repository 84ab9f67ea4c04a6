"""Checks that a model computes each row on its own, and the same at every call. A recorded program keeps the values of
one call for everything that the model computes without torch, or from the number of rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# A call tries at most this many rows.
_MOST = 5


def require_same_outputs(model: Callable[[Tensor], Tensor], inputs: Tensor) -> None:
    """Raises ValueError if the outputs of some rows change from call to call, or with the number of other rows.

    Args:
        model: gives one tensor with the rows along its first axis; it is called without gradients.
        inputs: at least one row; the first few are tried.
    """
    rows = inputs.detach()[:_MOST]
    if rows.is_meta:
        return
    with torch.no_grad():
        outputs, again = model(rows).clone(), model(rows)
        precision = torch.finfo(outputs.dtype).eps
        if not _are_close(outputs, again, 16 * precision):
            raise ValueError(
                "model: gives other outputs for the same inputs when it is called again, so it draws random numbers (of"
                " Python or numpy) or counts its calls in forward; draw the numbers once, in __init__"
            )
        pairs = [slice(0, 2), slice(len(rows) - 2, len(rows))] if len(rows) > 1 else [slice(0, 1)]
        for pair in pairs:
            beside = rows[pair] if len(rows) > 1 else rows.repeat(2, *[1] * (rows.dim() - 1))
            if not _are_close(outputs[pair], model(beside)[: len(outputs[pair])], precision**0.5):
                raise ValueError(
                    f"model: gives other outputs for a row in a call with 2 rows than in one with {len(rows)}, so its"
                    " forward uses the number of rows or the contents of other rows; compute each row on its own"
                )


def _are_close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if a.shape != b.shape:
        return False
    largest = float(a.abs().nan_to_num(0.0, 0.0, 0.0).max()) if a.numel() else 0.0
    return torch.allclose(a, b, rtol=0.0, atol=tolerance * largest, equal_nan=True)
