"""Registers the portable ops: on every device without a kernel of its own, or in place of the CPU's kernels too."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from gatedops.portable import (
    conv_gram,
    gated_linear,
    gated_linear_gate,
    gated_linear_pair,
    gates,
    gram,
    gram_neighbors,
    soft_gram,
)

# Every op of csrc/ops.cpp; the arguments are those of its schema.
OPS: dict[str, Callable[..., Any]] = {
    op.__name__: op
    for op in (
        gates.pack_gates,
        gates.pack_gates_out,
        gates.unpack_gates,
        gates.gate_counts,
        gram.gate_overlap,
        gram.npk_diag,
        gram.npk_gram,
        gram.npk_gram_out,
        gram.npk_gram_backward,
        gram.npk_matvec,
        gram_neighbors.gate_neighbors,
        conv_gram.conv_gram,
        soft_gram.soft_npk_gram,
        soft_gram.soft_npk_gram_backward,
        gated_linear.gated_linear,
        gated_linear.gated_linear_relu,
        gated_linear.gated_linear_soft,
        gated_linear.gated_linear_backward,
        gated_linear.gated_linear_soft_backward,
        gated_linear_gate.gate_relu,
        gated_linear_gate.gate_select,
        gated_linear_pair.gated_linear_pair,
        gated_linear_pair.gated_linear_pair_backward,
        gated_linear_pair.gated_linear_pair_out,
        gated_linear_pair.gated_linear_pair_soft,
        gated_linear_pair.gated_linear_pair_soft_backward,
    )
}

_library = torch.library.Library("gatedops", "IMPL")  # kernels stay registered as long as it lives


def _as_kernel(op: Callable[..., Any]) -> Callable[..., Any]:
    """The op as torch runs a kernel: without autocast, which would turn the products inside it to half precision and
    which the wrappers have applied already, and without a record of what it does for a backward."""

    @wraps(op)
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._DisableAutocast(), torch._C._AutoDispatchBelowAutograd():
            return op(*args, **kwargs)

    return run


def register(key: str) -> None:
    """Registers all ops for a dispatch key: CompositeExplicitAutograd stands for all devices, and a device's own
    kernel comes before it."""
    for name, op in OPS.items():
        _library.impl(name, _as_kernel(op), key)
