"""soft_npk_gram against plain torch: one matmul per layer, and autograd through it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from _common.peers import MatmulPerLayer
from _common.timing import Timing, interleaved_medians, readable_seconds
from torch import Tensor

import gatedops
from _gram.entry import Cell, Entry, entry_of
from _gram.sweep import Budget
from gatedops import reference

HEADER = ("what", "by", "median", "runs", "torch / ours")
FORWARD, BOTH = "soft Gram", "soft Gram and gradient"


def soft_gram(cell: Cell, budget: Budget, seed: int) -> list[Entry]:
    """Forward, plain torch into reused buffers; forward and backward, plain torch by autograd."""
    generator = torch.Generator().manual_seed(seed)
    gates = [torch.rand(cell.n, cell.width, generator=generator) for _ in range(cell.layers)]
    learned = [gate.clone().requires_grad_() for gate in gates]
    cotangent = torch.rand(cell.n, cell.n, generator=generator)

    def gradient(gram: Callable[..., Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(gram(None, learned), learned, cotangent))

    functions: dict[tuple[str, str], Callable[[], object]] = {
        (FORWARD, "gatedops"): lambda: gatedops.soft_npk_gram(None, gates),
        (FORWARD, "torch"): MatmulPerLayer(gates, [1 / cell.width] * cell.layers, torch.float32),
        (BOTH, "gatedops"): lambda: gradient(gatedops.soft_npk_gram),
        (BOTH, "torch"): lambda: gradient(reference.soft_npk_gram),
    }
    _require_close(gradient(gatedops.soft_npk_gram), gradient(reference.soft_npk_gram))
    named = {f"{what} by {by}": call for (what, by), call in functions.items()}
    times = interleaved_medians(named, budget.repeats, seconds=budget.seconds, label=f"soft gates, {cell}")
    return [_entry(cell, *key, timing) for key, timing in zip(functions, times.values(), strict=True)]


def _entry(cell: Cell, what: str, by: str, timing: Timing) -> Entry:
    return entry_of(what, by, cell, torch.get_num_threads(), None, timing)


def _require_close(ours: list[Tensor], truth: list[Tensor]) -> None:
    for found, expected in zip(ours, truth, strict=True):
        if (found - expected).abs().max() > 1e-4 * expected.abs().max():
            raise RuntimeError("gatedops is wrong on the gradient of soft gates")


def soft_rows(entries: list[Entry]) -> list[tuple[str, ...]]:
    ours = {entry.what: entry.median_s for entry in entries if entry.by == "gatedops"}
    return [
        (e.what, e.by, readable_seconds(e.median_s), str(e.runs), f"{e.median_s / ours[e.what]:.2f}x") for e in entries
    ]
