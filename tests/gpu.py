"""What tests of the kernels for NVIDIA GPUs need: a GPU, and GATEDOPS_BACKEND=triton set before Python starts."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gatedops import backends

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or the deterministic mode of tests warns of every product
DEVICE = torch.device("cuda")


def needs_gpu() -> list[pytest.MarkDecorator]:
    """For `pytestmark`: marked gpu, and skipped with one sentence where the kernels are not there."""
    ready = backends.chosen_backend()[0] == "triton"
    missing = backends.missing_for_triton() or "runs where GATEDOPS_BACKEND=triton is set before Python starts"
    return [pytest.mark.gpu, pytest.mark.skipif(not ready, reason=f"the kernels for NVIDIA GPUs: {missing}")]


def on_gpu(*values: object) -> list:
    """Tensors moved to the GPU, in need of a gradient where they were; anything else as it is."""
    return [t.detach().to(DEVICE).requires_grad_(t.requires_grad) if isinstance(t, Tensor) else t for t in values]


def captured(function: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A CUDA graph of a call, after the runs on a side stream that torch asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph
