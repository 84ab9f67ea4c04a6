"""Records a training step as a CUDA graph, which launches the hundred small kernels of the step at once.

This is experimental: it has not run on a GPU yet.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from _dgn_training.training import Training

# This many steps run before the recording, because torch's CUDA graphs need a warm-up.
WARM_UP = 3


class GraphedStep:
    """Records `training.step` at the first call and replays it for batches of the same shape; others run unrecorded."""

    def __init__(self, training: Training):
        self.training = training
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Tensor) -> Tensor:
        if self.graph is None:
            self._record(batch)
        if batch.shape != self.batch.shape:
            return self.training.step(batch)
        self.batch.copy_(batch)
        self.graph.replay()
        return self.loss

    def _record(self, batch: Tensor) -> None:
        """Warms up and records, then puts parameters and the optimizer's state back.

        It writes them in place, because the graph reads their memory.
        """
        net, optimizer = self.training.net, self.training.optimizer
        before = deepcopy((net.state_dict(), optimizer.state_dict()))
        self.batch = batch.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.training.step(self.batch)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = self.training.step(self.batch)
        self._put_back(*before)

    @torch.no_grad()
    def _put_back(self, parameters: dict, optimizer: dict) -> None:
        self.training.net.load_state_dict(parameters)
        slots = self.training.optimizer.state_dict()["state"]
        for index, slot in slots.items():
            for name, value in slot.items():
                earlier = optimizer["state"].get(index, {}).get(name)
                value.zero_() if earlier is None else value.copy_(earlier)
