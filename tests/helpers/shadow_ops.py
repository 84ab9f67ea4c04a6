"""Every op works on the device "shadow" (shadow.py) as on the CPU; test_portable_device.py runs this in a process of
its own.

On shadow the portable ops run, and on the CPU those in C++ (or, with GATEDOPS_BACKEND=portable, the portable ones too).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import shadow
import torch
from conv_programs import RandomProgram, chain
from shadow_tools import assert_alike, moved, without_float64
from strategies import dense, random_bits, rows_of
from torch import Tensor
from torch.utils import _pytree as pytree

shadow.setup()

OPS = torch.ops.gatedops
FLOAT32, FLOAT64 = torch.float32, torch.float64
BITS, Y_BITS = random_bits(7, dense(40, 70)), random_bits(5, dense(40, 70), seed=1)
WORDS, Y_WORDS = BITS.words, Y_BITS.words
MEASURES = ("both", "agree", "differ")
LAYERS = ([0, 8], [0, 8], [2, 3])
SCALE = [1 / 40, 1 / 70]
SLOPES = ([0.25, -1.5], [40, 70])  # The slopes, and the numbers of gates.
PROGRAMS = [chain((4, 4), 2), *(RandomProgram(seed).program for seed in range(6))]


def numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=FLOAT64).to(dtype)


class Case:
    """The arguments of the ops in one dtype, on the CPU."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.x, self.y, self.v = (numbers(n, 6, dtype=dtype, seed=n) for n in (7, 5, 6))
        self.square, self.wide = numbers(7, 7, dtype=dtype), numbers(7, 5, dtype=dtype)
        self.factor, self.y_factor = numbers(7, dtype=FLOAT64).abs(), numbers(5, dtype=FLOAT64).abs()
        self.image = numbers(7, 4, 40, dtype=dtype).transpose(1, 2).contiguous().transpose(1, 2)
        self.weight, self.bias = numbers(70, 6, dtype=dtype), numbers(70, dtype=dtype)
        self.grad, self.gate = numbers(7, 70, dtype=dtype, seed=1), numbers(7, 70, dtype=dtype, seed=2)
        self.layer = (self.x, self.weight, self.bias)
        self.pair = (*self.layer, self.x + 1, self.weight + 1, None)
        self.soft = (self.grad + 1, self.gate, self.x, self.weight, True, self.x + 1, self.weight, False, 4.0, 0.5)

    def zeros(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.zeros(shape, dtype=dtype or self.dtype)


# A Call has the positional arguments; if the op writes into arguments, its last entry is the dictionary of these.
Call = tuple[Any, ...]
CALLS: dict[str, Callable[[Case], list[Call]]] = {
    "pack_gates": lambda c: [(c.image,), (c.image > 0,), (c.wide.unsqueeze(1).half(),)],
    "pack_gates_out": lambda c: [(c.image, {"out": c.zeros(7, 8, dtype=torch.int32)})],
    "unpack_gates": lambda c: [(WORDS[:, 8:], 1, 70), (WORDS, 4, 40)],
    "gate_counts": lambda c: [(WORDS,), (WORDS[:, 3:5],)],
    "gate_overlap": lambda c: [(WORDS, y, *LAYERS, [40, 70], measure) for y in (None, Y_WORDS) for measure in MEASURES],
    "gate_neighbors": lambda c: [
        (WORDS, y, *LAYERS, SCALE, 3, c.dtype, *slopes) for y in (None, Y_WORDS) for slopes in ((), SLOPES)
    ],
    "npk_diag": lambda c: [(WORDS, LAYERS[0], LAYERS[2], SCALE, c.dtype, *slopes) for slopes in ((), SLOPES)],
    "npk_gram": lambda c: [
        (c.x, WORDS, None, None, None, None, *LAYERS, SCALE, c.dtype),
        (c.x, WORDS, c.y, Y_WORDS, c.factor, c.y_factor, *LAYERS, SCALE, c.dtype),
        (None, WORDS, None, Y_WORDS, None, None, *LAYERS, SCALE, c.dtype),
        (rows_of(7, 300, dtype=torch.uint8), WORDS, None, None, c.factor, None, *LAYERS, SCALE, c.dtype),
        (c.x.bfloat16(), WORDS, c.y.bfloat16(), Y_WORDS, None, None, *LAYERS, SCALE, c.dtype),
        (c.x, WORDS, c.y, Y_WORDS, c.factor, c.y_factor, *LAYERS, SCALE, c.dtype, *SLOPES),
        (None, WORDS, None, None, None, None, *LAYERS, SCALE, c.dtype, [0.0, 0.5], [40, 70]),
    ],
    "npk_gram_out": lambda c: [
        (c.x, WORDS, c.y, Y_WORDS, None, None, *LAYERS, SCALE, {"out": c.zeros(7, 9)[:, 2:7]}),
        (None, WORDS, None, None, c.factor, None, *LAYERS, SCALE, {"out": c.zeros(7, 7)}),
        (None, WORDS, None, None, c.factor, None, *LAYERS, SCALE, *SLOPES, {"out": c.zeros(7, 7)}),
    ],
    "npk_gram_backward": lambda c: [
        (c.square, WORDS, c.x, None, *LAYERS, SCALE),
        (c.wide, WORDS, c.y.half(), Y_WORDS, *LAYERS, SCALE),
        (c.square, WORDS, c.x, None, *LAYERS, SCALE, *SLOPES),
    ],
    "npk_matvec": lambda c: [
        (c.x, WORDS, None, None, c.square, *LAYERS, SCALE),
        (c.x, WORDS, c.y, Y_WORDS, c.wide.mT[:, :5].contiguous(), *LAYERS, SCALE),
        (None, WORDS, None, Y_WORDS, c.y, *LAYERS, SCALE),
        (c.x, WORDS, c.y, Y_WORDS, c.y, *LAYERS, SCALE, *SLOPES),
    ],
    "npk_product": lambda c: [
        # The kernel is computed in float32. These numbers make all its sums exact, in any order.
        (c.x.round(), WORDS, None, None, c.square, *LAYERS, [0.5, 0.25], True),
        (c.x.round(), WORDS, c.y.round(), Y_WORDS, c.y, *LAYERS, [0.5, 0.25], False, [0.5, -0.25], SLOPES[1]),
    ],
    "soft_npk_gram": lambda c: [(c.x, b, [2, 4], [0.5, 2.0]) for b in (None, c.y)],
    "soft_npk_gram_backward": lambda c: [
        (c.square, c.x, None, [2, 4], [0.5, 2.0]),
        (c.wide, c.x, c.y, [2, 4], [0.5, 2.0]),
    ],
    "gated_linear": lambda c: [(*c.layer, WORDS, 8), (c.x.view(7, 1, 6), c.weight, None, WORDS, 8)],
    "gated_linear_relu": lambda c: [c.layer, (c.x, c.weight, None)],
    "gated_linear_backward": lambda c: [
        (c.grad, c.x, c.weight, WORDS, 8, True),
        (c.grad, None, c.weight, None, 0, False),
    ],
    "gated_linear_soft": lambda c: [(*c.layer, c.gate)],
    "gated_linear_soft_backward": lambda c: [
        (c.grad, c.x, c.weight, c.gate, c.gate + 1, True),
        (c.grad, c.x, None, c.gate, None, False),
    ],
    "gated_linear_pair": lambda c: [(*c.pair, linear) for linear in (False, True)],
    "gated_linear_pair_backward": lambda c: [
        (c.grad, c.gate, c.x, c.weight, True, c.x, c.weight, False, WORDS[:, 8:].contiguous(), linear)
        for linear in (False, True)
    ],
    "gated_linear_pair_soft": lambda c: [(*c.pair, 4.0, 0.5, linear) for linear in (False, True)],
    "gated_linear_pair_soft_backward": lambda c: [
        (c.grad, c.gate, *c.soft, False),
        (None, c.gate, *c.soft, True),
    ],
    "gated_linear_pair_out": lambda c: [
        (
            *c.pair,
            soft,
            4.0,
            0.5,
            False,
            {"h_next": c.zeros(7, 70), "z_next": c.zeros(7, 70), "gates_out": WORDS[:, 8:]},
        )
        for soft in (False, True)
    ],
    "gate_relu": lambda c: [(c.image,), (c.wide.unsqueeze(1),)],
    "gate_select": lambda c: [(c.wide.unsqueeze(1), WORDS, 8), (c.image[:, :1], WORDS, 0)],
    "conv_gram": lambda c: [program.arguments(5, m, dtype=c.dtype) for program in PROGRAMS for m in (None, 4)],
}
EXACT = {"pack_gates", "pack_gates_out", "unpack_gates", "gate_counts", "gate_overlap", "gate_neighbors", "npk_diag"}
EXACT |= {"gate_relu", "gate_select"}


def result(name: str, call: Call) -> Any:
    """Returns the results of an op; for an op that writes into its arguments, what it wrote."""
    *args, outs = call if isinstance(call[-1], dict) else (*call, {})
    outs = {key: torch.full_like(out, 7) for key, out in outs.items()}
    returned = getattr(OPS, name)(*args, **outs)
    return outs or returned


def test_every_op_has_calls():
    ops = {name.removeprefix("gatedops::") for name in torch._C._dispatch_get_all_op_names() if "gatedops::" in name}
    assert set(CALLS) == ops


@pytest.mark.parametrize("name", CALLS)
def test_op_gives_what_it_gives_on_the_cpu_without_waiting(name):
    for call in CALLS[name](Case(FLOAT64)):
        there = moved(call)
        with shadow.no_host_copies():
            found = result(name, there)
        assert_alike(found, result(name, call), exact=name in EXACT)


@pytest.mark.parametrize("name", CALLS)
def test_op_needs_no_float64_for_float32(name):
    """A result that is in float64 elsewhere is in float32 there."""
    for call in CALLS[name](Case(FLOAT32)):
        there = moved(in_float32(call))
        with shadow.no_host_copies(), without_float64():
            found = result(name, there)
        assert_alike(found, in_float32(result(name, call)), exact=name in EXACT)


def in_float32(values: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda t: t.float() if t.dtype == FLOAT64 else t, values)
