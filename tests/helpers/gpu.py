"""Helps the tests of the kernels for NVIDIA GPUs. They need a GPU, and GATEDOPS_BACKEND set before Python starts.

GATEDOPS_DRY_GPU=1 runs the same tests with the CPU in place of the GPU. Then the ops' CPU kernels do the work, so a
test that fails is wrong itself. Tests of the GPU itself are skipped then, each with its reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gatedops import backends

# Without this, the deterministic mode of tests warns about every product.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
DRY = os.environ.get("GATEDOPS_DRY_GPU") == "1"
DEVICE = torch.device("cpu" if DRY else "cuda")
COMPILER = "aot_eager" if DRY else "inductor"  # A dry run need not let torch.compile compile C++.
# These marks ignore warnings of torch.compile about itself.
OF_THE_COMPILER = [
    pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Online softmax is disabled"),
]


def needs_gpu(*names: str) -> list[pytest.MarkDecorator]:
    """Returns marks for `pytestmark`: gpu, and a skip with one sentence if none of these backends runs on a GPU. If
    GATEDOPS_BACKEND forces none, the chosen kernels run, and this counts as portable."""
    ready = DRY or (torch.cuda.is_available() and (backends.forced_backend() or "portable") in names)
    forced = " or ".join(f"GATEDOPS_BACKEND={name}" for name in names)
    missing = backends.missing_for(names[-1]) or f"run where {forced} is set before Python starts"
    return [pytest.mark.gpu, pytest.mark.skipif(not ready, reason=f"on an NVIDIA GPU, {' or '.join(names)}: {missing}")]


def not_dry(subject: str) -> pytest.MarkDecorator:
    """Skips a test in a dry run, because only a GPU has what it tests."""
    return pytest.mark.skipif(DRY, reason=f"needs a GPU: {subject}")


def only_on(name: str, subject: str) -> pytest.MarkDecorator:
    """Skips a test with other backends, because only this one has what it tests."""
    absent = DRY or backends.forced_backend() != name
    return pytest.mark.skipif(absent, reason=f"needs a GPU and GATEDOPS_BACKEND={name}: {subject}")


def on_gpu(*values: object) -> list:
    """Moves tensors to the GPU, which need a gradient if they did before; leaves anything else as it is."""
    return [t.detach().to(DEVICE).requires_grad_(t.requires_grad) if isinstance(t, Tensor) else t for t in values]


class _CallAgain:
    """Stands for a CUDA graph in a dry run."""

    def __init__(self, function: Callable[[], object]):
        self.replay = function


def captured(function: Callable[[], object]) -> torch.cuda.CUDAGraph | _CallAgain:
    """Makes a CUDA graph of a call, after the runs on a side stream that torch asks for."""
    if DRY:
        return _CallAgain(function)
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
