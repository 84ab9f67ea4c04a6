"""What tests of the kernels for NVIDIA GPUs need: a GPU, and GATEDOPS_BACKEND set before Python starts.

GATEDOPS_DRY_GPU=1 runs the same tests with the CPU in the place of the GPU: the ops' CPU kernels do the work, so that a
test that fails is wrong itself. Tests whose subject is the GPU are skipped then, each with its reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gatedops import backends

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or the deterministic mode of tests warns of every product
DRY = os.environ.get("GATEDOPS_DRY_GPU") == "1"
DEVICE = torch.device("cpu" if DRY else "cuda")
COMPILER = "aot_eager" if DRY else "inductor"  # of torch.compile: a dry run is not there to compile C++
# Warnings of torch.compile about itself, as marks.
OF_THE_COMPILER = [
    pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Online softmax is disabled"),
]


def needs_gpu(*names: str) -> list[pytest.MarkDecorator]:
    """For `pytestmark`: marked gpu, and skipped with one sentence where none of these backends runs on a GPU. Where
    GATEDOPS_BACKEND forces none, what is chosen by itself runs, and counts as portable."""
    ready = DRY or (torch.cuda.is_available() and (backends.forced_backend() or "portable") in names)
    forced = " or ".join(f"GATEDOPS_BACKEND={name}" for name in names)
    missing = backends.missing_for(names[-1]) or f"run where {forced} is set before Python starts"
    return [pytest.mark.gpu, pytest.mark.skipif(not ready, reason=f"on an NVIDIA GPU, {' or '.join(names)}: {missing}")]


def not_dry(subject: str) -> pytest.MarkDecorator:
    """Skips a test of something that only a GPU has."""
    return pytest.mark.skipif(DRY, reason=f"needs a GPU: {subject}")


def only_on(name: str, subject: str) -> pytest.MarkDecorator:
    """Skips a test of something that only one backend has."""
    absent = DRY or backends.forced_backend() != name
    return pytest.mark.skipif(absent, reason=f"needs a GPU and GATEDOPS_BACKEND={name}: {subject}")


def on_gpu(*values: object) -> list:
    """Tensors moved to the GPU, in need of a gradient where they were; anything else as it is."""
    return [t.detach().to(DEVICE).requires_grad_(t.requires_grad) if isinstance(t, Tensor) else t for t in values]


class _CallAgain:
    """What a dry run takes for a CUDA graph."""

    def __init__(self, function: Callable[[], object]):
        self.replay = function


def captured(function: Callable[[], object]) -> torch.cuda.CUDAGraph | _CallAgain:
    """A CUDA graph of a call, after the runs on a side stream that torch asks for."""
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
