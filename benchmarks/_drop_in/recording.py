"""record_gates against hooks by hand, and against the network alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from _common.timing import interleaved_medians, readable_seconds
from torch import Tensor, nn

import gatedops
from _drop_in.models import Subject, random_problem

HEADER = ("network", "gates", "by", "median", "runs", "of record_gates", "bytes per input")


@dataclass(frozen=True)
class RecordResult:
    """One way to get the gates of one network, or the network alone (no bytes)."""

    network: str
    gates: int
    by: str
    median_s: float
    samples_s: tuple[float, ...]
    ratio: float
    bytes_per_input: float | None

    def row(self) -> tuple[str, ...]:
        """The cells under HEADER."""
        size = "-" if self.bytes_per_input is None else f"{self.bytes_per_input:,.0f}"
        time, runs = readable_seconds(self.median_s), str(len(self.samples_s))
        return (self.network, f"{self.gates:,}", self.by, time, runs, f"{self.ratio:.2f}x", size)


class HookedByHand:
    """What people write: a forward hook on every module that shows gates, bool masks put together at the end."""

    def __init__(self, net: nn.Module, owners: list[nn.Module], batch: int) -> None:
        self.net, self.owners, self.batch = net, owners, batch

    @torch.no_grad()
    def __call__(self, x: Tensor) -> list[Tensor]:
        seen: list[list[Tensor]] = [[] for _ in self.owners]

        def hook(kept: list[Tensor]) -> Callable[..., None]:
            return lambda module, args, output: kept.append(output > 0)

        hooks = [owner.register_forward_hook(hook(kept)) for owner, kept in zip(self.owners, seen, strict=True)]
        for rows in x.split(self.batch):
            self.net(rows)
        for handle in hooks:
            handle.remove()
        return [torch.cat(kept) for kept in seen]


def time_recording(subject: Subject, n: int, batch: int, repeats: int, seed: int) -> list[RecordResult]:
    """Three contestants in turns. RuntimeError where the two recorders do not agree: no speed of a wrong result."""
    net, x = random_problem(subject, n, seed)
    by_hand = HookedByHand(net, subject.owners(net), batch)

    @torch.no_grad()
    def alone() -> None:
        for rows in x.split(batch):
            net(rows)

    bits, masks = gatedops.record_gates(net, x, batch), by_hand(x)
    if not all(torch.equal(gates, mask) for gates, mask in zip(bits.unpack(), masks, strict=True)):
        raise RuntimeError(f"record_gates and hooks by hand disagree on {subject.name}")
    contestants: dict[str, Callable[[], object]] = {
        "record_gates": lambda: gatedops.record_gates(net, x, batch),
        "hooks by hand": lambda: by_hand(x),
        "the network alone": alone,
    }
    sizes = {"record_gates": bits.nbytes / n, "hooks by hand": sum(mask.numel() for mask in masks) / n}
    with torch.no_grad():
        times = interleaved_medians(contestants, repeats, label=f"recording {subject.name}")
    ours = times["record_gates"].median
    return [
        RecordResult(
            subject.name, sum(bits.widths), by, taken.median, taken.samples, taken.median / ours, sizes.get(by)
        )
        for by, taken in times.items()
    ]
