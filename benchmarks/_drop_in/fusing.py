"""fuse_relu against the network as it was: forward, and forward with backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from _common.timing import interleaved_medians, readable_seconds
from torch import Tensor, nn

import gatedops
from _drop_in.models import Subject, random_problem

HEADER = ("network", "replaced", "kept", "pass", "eager", "fused", "runs", "eager / fused")


@dataclass(frozen=True)
class FuseResult:
    """One pass of one network, before and after. Times are None where nothing is replaced: it is the same network.

    replaced, kept  layers that are ours now, and modules whose ReLUs stay torch's
    """

    network: str
    replaced: int
    kept: int
    what: str
    eager_s: tuple[float, ...]
    fused_s: tuple[float, ...]
    eager_median_s: float | None = None
    fused_median_s: float | None = None

    def row(self) -> tuple[str, ...]:
        """The cells under HEADER."""
        cells = (self.network, str(self.replaced), str(self.kept), self.what)
        if self.eager_median_s is None or self.fused_median_s is None:
            return (*cells, "-", "the same", "-", "-")
        times = (readable_seconds(self.eager_median_s), readable_seconds(self.fused_median_s))
        return (*cells, *times, str(len(self.fused_s)), f"{self.eager_median_s / self.fused_median_s:.2f}x")


def _forward(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x)


def _backward(net: nn.Module, x: Tensor) -> Tensor:
    net.zero_grad()
    output = net(x)
    output.square().sum().backward()
    return output


PASSES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {"forward": _forward, "forward + backward": _backward}


def time_fusing(subject: Subject, batch: int, repeats: int, seed: int) -> list[FuseResult]:
    """Both passes of one batch, eager and fused in turns. RuntimeError where the outputs differ by a single bit."""
    net, x = random_problem(subject, batch, seed)
    fused = gatedops.fuse_relu(net, x)
    replaced, kept = len(fused.fuse_report.replaced), len(fused.fuse_report.kept)
    if not replaced:
        return [FuseResult(subject.name, 0, kept, "any", (), ())]
    if not torch.equal(_forward(net, x), _forward(fused, x)):
        raise RuntimeError(f"fuse_relu changes the output of {subject.name}")
    results = []
    for what, function in PASSES.items():
        pair = {"eager": lambda f=function: f(net, x), "fused": lambda f=function: f(fused, x)}
        times = interleaved_medians(pair, repeats, label=f"{what} of {subject.name}")
        eager, ours = times["eager"], times["fused"]
        samples = (eager.samples, ours.samples)
        results.append(FuseResult(subject.name, replaced, kept, what, *samples, eager.median, ours.median))
    return results
