"""Packing against a memcpy of the same input: input bytes per second of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from _common.bandwidth import memcpy
from _common.timing import Timing, interleaved_medians, readable_seconds
from torch import Tensor

from _gram.sweep import Budget
from gatedops import pack_gates, reference
from gatedops.ops.gates import by_position

CHANNELS, SIDE = 64, 32
HEADER = ("input", "bytes", "packing", "runs", "bytes/s", "memcpy", "bytes/s", "of memcpy")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64, "bool": torch.bool}


@dataclass(frozen=True)
class PackEntry:
    """median_s into reused words; memcpy_s of the input's bytes, the faster of C's memcpy and torch's copy_, on a GPU
    torch's copy_."""

    name: str
    bytes: int
    words_bytes: int
    median_s: float
    memcpy_s: float
    runs: int

    @property
    def share(self) -> float:
        """Of the memcpy's bytes per second."""
        return self.memcpy_s / self.median_s

    @property
    def share_of_moved(self) -> float:
        """Bytes read and written a second over those of the copy, which writes all that it reads."""
        return (self.bytes + self.words_bytes) / (2 * self.bytes) * self.share

    def row(self) -> tuple[str, ...]:
        return (
            self.name,
            f"{self.bytes / 2**20:.0f} MiB",
            readable_seconds(self.median_s),
            str(self.runs),
            f"{self.bytes / self.median_s:.3g}",
            readable_seconds(self.memcpy_s),
            f"{self.bytes / self.memcpy_s:.3g}",
            f"{self.share:.0%}",
        )


class PackProblem:
    """Pre-activations q; raw: their bytes, and words of which the first rows are the reference's, or RuntimeError."""

    def __init__(self, name: str, q: Tensor):
        self.name, self.q = name, q
        memory = q.permute(0, 2, 3, 1) if q.dim() == 4 and not q.is_contiguous() else q
        self.raw = memory.view(torch.uint8).flatten()

    def entry(self, words: Tensor, packing: Timing, memcpy_s: float) -> PackEntry:
        few = slice(0, 3)
        if not words[few].cpu().equal(reference.pack_gates(self.q[few].cpu()).words):
            raise RuntimeError(f"gatedops packs {self.name} wrongly")
        return PackEntry(self.name, self.q.nbytes, words.nbytes, packing.median, memcpy_s, len(packing.samples))


def packing(size: int, budget: Budget, seed: int) -> list[PackEntry]:
    """Inputs of about `size` bytes each: dense layers of several dtypes, images in both memory layouts."""
    return [time_packing(PackProblem(name, make()), budget) for name, make in inputs(size, seed).items()]


def inputs(size: int, seed: int, device: str = "cpu") -> dict[str, Callable[[], Tensor]]:
    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator(device).manual_seed(seed), device=device)

    def dense(dtype: torch.dtype) -> Tensor:
        q = randn(size // dtype.itemsize // 4096 or 1, 4096)
        return q > 0 if dtype == torch.bool else q.to(dtype)

    def images() -> Tensor:
        return randn(size // (4 * CHANNELS * SIDE**2) or 1, CHANNELS, SIDE, SIDE)

    return {f"(n, 4096) {name}": lambda dtype=dtype: dense(dtype) for name, dtype in DTYPES.items()} | {
        f"NCHW float32, {CHANNELS} channels": images,
        f"NHWC float32, {CHANNELS} channels": lambda: images().contiguous(memory_format=torch.channels_last),
    }


def time_packing(problem: PackProblem, budget: Budget) -> PackEntry:
    words, positions = torch.empty_like(pack_gates(problem.q).words), by_position(problem.q)
    source, to = problem.raw, torch.empty_like(problem.raw)
    threads = torch.get_num_threads()
    times = interleaved_medians(
        {
            "packing": lambda: torch.ops.gatedops.pack_gates_out(positions, out=words),
            "memcpy": lambda: memcpy(to, source, threads),
            "copy_": lambda: to.copy_(source),
        },
        budget.repeats,
        seconds=budget.seconds,
        label=f"packing {problem.name}",
    )
    return problem.entry(words, times["packing"], min(times["memcpy"].median, times["copy_"].median))
