"""Timing on a GPU: the same turns as on a CPU, by CUDA events, with a cold second-level cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from tqdm import tqdm

from _common.timing import Timing

FLUSH = 256 << 20  # bytes written before each run: several times the second-level cache


def interleaved_gpu_medians(
    functions: Mapping[str, Callable[[], object]], repeats: int = 21, *, warm_up: int = 3, label: str = "timing"
) -> dict[str, Timing]:
    """Times every function `repeats` times, in turns; warm-up runs compile, choose tiles and allocate."""
    for function in functions.values():
        for _ in range(warm_up):
            function()
    flush = torch.empty(FLUSH, dtype=torch.uint8, device="cuda")
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in functions}
    for _ in tqdm(range(repeats), desc=label, leave=False, disable=None):
        for name, function in functions.items():
            flush.zero_()
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            function()
            end.record()
            events[name].append((begin, end))
    torch.cuda.synchronize()
    return {name: Timing(tuple(b.elapsed_time(e) / 1e3 for b, e in taken)) for name, taken in events.items()}
