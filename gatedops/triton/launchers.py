"""The Triton launchers of all ops that have one. gatedops/backends/kernels.py makes them kernels of those ops."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from gatedops.triton import (
    gated_linear,
    gated_linear_backward,
    gated_linear_gate,
    gated_linear_pair,
    gates,
    gram,
)


def _on_the_tensors_gpu(launcher: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a launcher run on the GPU of its arguments. Triton launches on the current GPU, which may be another."""

    @wraps(launcher)
    def run(*args: Any, **kwargs: Any) -> Any:
        tensor = next(value for value in args if isinstance(value, Tensor))
        with torch.cuda.device_of(tensor):
            return launcher(*args, **kwargs)

    return run


# Has every op with a launcher. A launcher takes the arguments of the schema in csrc/ops.cpp.
LAUNCHERS = {
    launcher.__name__: _on_the_tensors_gpu(launcher)
    for launcher in (
        gates.pack_gates,
        gates.pack_gates_out,
        gates.unpack_gates,
        gram.gate_overlap,
        gram.npk_diag,
        gram.npk_gram,
        gram.npk_gram_backward,
        gram.npk_gram_out,
        gram.npk_matvec,
        gated_linear.gated_linear,
        gated_linear.gated_linear_relu,
        gated_linear.gated_linear_soft,
        gated_linear_backward.gated_linear_backward,
        gated_linear_backward.gated_linear_soft_backward,
        gated_linear_gate.gate_relu,
        gated_linear_gate.gate_select,
        gated_linear_pair.gated_linear_pair,
        gated_linear_pair.gated_linear_pair_backward,
        gated_linear_pair.gated_linear_pair_out,
        gated_linear_pair.gated_linear_pair_soft,
        gated_linear_pair.gated_linear_pair_soft_backward,
    )
}
