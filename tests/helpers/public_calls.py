"""Calls of every public function of tensors, on any device, and the gradients of their results."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from strategies import masks, random_bits, rows_of
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gatedops import (
    GateBits,
    gate_agreement,
    gate_hamming,
    gate_neighbors,
    gate_overlap,
    gate_stats,
    gated_linear,
    gated_linear_pair,
    npk_diag,
    npk_gram,
    npk_matvec,
    pack_gates,
    soft_npk_gram,
    unpack_gates,
)
from gatedops.nn import Gate, GatedConv2d, GatedLinear, SoftReLU
from gatedops.ops.gate_counts import gate_counts
from gatedops.stats import gate_change

FLOAT32, FLOAT64 = torch.float32, torch.float64
SPECS: Any = [((40,), "gate"), ((70,), "gate"), ((3, 2, 2), "gate"), ((4, 5, 1, 2), "select")]
BITS, Y_BITS = random_bits(9, SPECS), random_bits(6, SPECS, seed=1)


def on(device: str, value: Any) -> Any:
    """Copies all tensors in nested lists, tuples, dictionaries and GateBits to a device. A copy needs a gradient if its
    original does."""
    return pytree.tree_map_only(Tensor, lambda t: t.detach().to(device).requires_grad_(t.requires_grad), value)


def fields(value: Any) -> Any:
    """Turns results into dictionaries of their fields."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: fields(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return [fields(v) for v in value] if isinstance(value, (list, tuple)) else value


class Things:
    """Arguments in one dtype; all their numbers need a gradient."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.bits, self.y_bits = BITS, Y_BITS
        self.x, self.y, self.v, self.h, self.z = (
            self._numbers(n, d) for n, d in ((9, 5), (6, 5), (6, 3), (9, 4), (9, 6))
        )
        self.w_f, self.w_v, self.b, self.soft = (self._numbers(*s) for s in ((40, 4), (40, 6), (40,), (9, 40)))
        self.images, self.kernel = self._numbers(9, 2, 4, 5), self._numbers(3, 2, 3, 3)
        self.hard, self.masks = self.soft.detach() > 0, masks(9, SPECS)
        self.bytes = rows_of(9, 300, dtype=torch.uint8)
        self.out = torch.zeros(9, 9, dtype=dtype)
        self.gates_out = torch.zeros(9, 8, dtype=torch.int32)

    def _numbers(self, *shape: int) -> Tensor:
        made = torch.Generator().manual_seed(math.prod(shape))
        return torch.randn(shape, generator=made, dtype=FLOAT64).to(self.dtype).requires_grad_()

    def on(self, device: str) -> Things:
        """Copies the arguments to another device."""
        there = object.__new__(Things)
        there.__dict__.update(on(device, self.__dict__))
        return there

    def numbers(self) -> list[Tensor]:
        return [t for t in pytree.tree_leaves(self.__dict__) if isinstance(t, Tensor) and t.requires_grad]


def through(module: nn.Module, tensors: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """Calls a module with other parameters."""
    return torch.func.functional_call(module, tensors, args, kwargs)


LINEAR, CONV = GatedLinear(4, 40, bias=False), GatedConv2d(2, 3, 3, bias=False, padding=1)
CALLS: dict[str, Callable[[Things], Any]] = {
    "pack": lambda t: GateBits.pack(t.masks),
    "pack_gates": lambda t: [pack_gates(q) for q in (t.x, t.images, t.hard)],
    "unpack": lambda t: [t.bits.unpack(), unpack_gates(t.y_bits)],
    "cat": lambda t: GateBits.cat([t.bits, t.y_bits.compact(), t.bits[2:4]]),
    "indexing": lambda t: [t.bits[3], t.bits[-2:], t.bits[::2], t.bits.select_layers([2, 0]).compact()],
    "indexing by a tensor": lambda t: t.bits[torch.arange(9, device=t.x.device).flip(0)],
    "to": lambda t: t.bits.to(t.bits.device),
    "gate_counts": lambda t: gate_counts(t.bits),
    "gate_overlap": lambda t: [gate_overlap(t.bits), gate_overlap(t.bits, t.y_bits)],
    "gate_agreement": lambda t: [gate_agreement(t.bits), gate_agreement(t.bits, t.y_bits)],
    "gate_hamming": lambda t: [gate_hamming(t.bits), gate_hamming(t.bits, t.y_bits)],
    "gate_neighbors": lambda t: [gate_neighbors(t.bits, 3, y, dtype=t.dtype) for y in (None, t.y_bits)],
    "gate_stats": lambda t: gate_stats(t.bits),
    "gate_change": lambda t: gate_change(t.bits, t.bits[torch.arange(9, device=t.x.device).roll(1)]),
    "npk_gram": lambda t: npk_gram(t.x, t.bits, scale=[0.1, 0.1, 0.5, 0.5], dtype=t.dtype),
    "npk_gram of two sides": lambda t: npk_gram(t.x, t.bits, t.y, t.y_bits, dtype=t.dtype),
    "npk_gram with slopes": lambda t: npk_gram(t.x, t.bits, t.y, t.y_bits, slope=[0.01, 0, -1, 0], dtype=t.dtype),
    "npk_gram, normalized": lambda t: npk_gram(t.x, t.bits, normalize=True, dtype=t.dtype),
    "npk_gram of two sides, normalized": lambda t: npk_gram(t.x, t.bits, t.y, t.y_bits, normalize=True, dtype=t.dtype),
    "npk_gram of bytes": lambda t: npk_gram(t.bytes, t.bits, normalize=True, dtype=t.dtype),
    "npk_gram of bfloat16": lambda t: npk_gram(t.x.bfloat16(), t.bits, dtype=t.dtype),
    "npk_gram of gates": lambda t: npk_gram(None, t.bits, y_bits=t.y_bits, dtype=t.dtype),
    "npk_gram into out": lambda t: npk_gram(t.x.detach(), t.bits, dtype=t.dtype, out=t.out),
    "npk_diag": lambda t: [npk_diag(x, t.bits, dtype=t.dtype) for x in (t.x, None, t.bytes)],
    "npk_diag of numbers": lambda t: npk_diag(t.x.detach(), t.bits, dtype=t.dtype),
    "npk_matvec": lambda t: npk_matvec(t.x, t.bits, t.x[:, :2], dtype=t.dtype),
    "npk_matvec with slopes": lambda t: npk_matvec(t.x, t.bits, t.x, slope=[0.01, 0, -1, 0], dtype=t.dtype),
    "npk_matvec of two sides": lambda t: npk_matvec(t.x, t.bits, t.v, t.y, t.y_bits, dtype=t.dtype),
    "npk_matvec of a vector": lambda t: npk_matvec(None, t.bits, t.v[:, 0], None, t.y_bits, dtype=t.dtype),
    "soft_npk_gram": lambda t: soft_npk_gram(t.x, [t.soft, t.images], dtype=t.dtype),
    "soft_npk_gram of two sides": lambda t: soft_npk_gram(t.x, [t.x], t.y, [t.y], normalize=True, dtype=t.dtype),
    "gated_linear": lambda t: gated_linear(t.h, t.w_f, t.b, return_gates=True),
    "gated_linear, hard": lambda t: gated_linear(t.h, t.w_f, t.b, t.hard, return_gates=True),
    "gated_linear, bits": lambda t: gated_linear(t.h, t.w_f, None, t.bits.select_layers([0])),
    "gated_linear, soft": lambda t: gated_linear(t.h, t.w_f, t.b, t.soft),
    "gated_linear_pair": lambda t: gated_linear_pair(t.h, t.w_f, t.b, t.z, t.w_v, None),
    "gated_linear_pair, linear": lambda t: gated_linear_pair(t.h, t.w_f, None, t.z, t.w_v, t.b, feature="linear"),
    "gated_linear_pair, soft": lambda t: gated_linear_pair(t.h, t.w_f, t.b, t.z, t.w_v, None, gate="soft"),
    "gated_linear_pair, gates out": lambda t: no_grad(
        lambda: gated_linear_pair(t.h, t.w_f, t.b, t.z, t.w_v, None, gates_out=t.gates_out)
    ),
    "GatedLinear": lambda t: through(LINEAR, {"weight": t.w_f}, t.h, return_gates=True),
    "GatedLinear, hard": lambda t: through(LINEAR, {"weight": t.w_f}, t.h, t.hard),
    "GatedConv2d": lambda t: through(CONV, {"weight": t.kernel}, t.images, return_gates=True),
    "GatedConv2d of one image": lambda t: through(CONV, {"weight": t.kernel}, t.images[0], return_gates=True),
    "GatedConv2d, hard": lambda t: through(
        CONV, {"weight": t.kernel}, t.images, t.images.repeat(1, 2, 1, 1)[:, :3] > 0
    ),
    "Gate": lambda t: recorded(t.images),
    "Gate, given": lambda t: Gate()(t.soft, t.bits.select_layers([0])),
    "Gate, soft": lambda t: Gate()(t.soft, t.soft + 1),
    "SoftReLU": lambda t: SoftReLU(2.0, 0.5)(t.x),
}


def no_grad(call: Callable[[], Any]) -> Any:
    with torch.no_grad():
        return call()


def recorded(q: Tensor) -> Any:
    gate = Gate(record=True)
    return gate(q), gate.gates


def gradients(results: Any, numbers: list[Tensor]) -> list[Tensor | None]:
    """Returns the gradients of all numbers, for the sum of the sines of all results."""
    leaves = [t for t in pytree.tree_leaves(results) if isinstance(t, Tensor) and t.requires_grad]
    if not leaves:
        return []
    # The weights are not all 1, so that all places count differently.
    loss = sum(
        (leaf.sin() * torch.arange(1.0, leaf.numel() + 1, device=leaf.device, dtype=leaf.dtype).view_as(leaf)).sum()
        for leaf in leaves
    )
    return list(torch.autograd.grad(loss, numbers, allow_unused=True))
