"""Lists all portable ops by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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

# This has every op of csrc/ops.cpp, with the arguments of its schema.
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
        gram.npk_product,
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
