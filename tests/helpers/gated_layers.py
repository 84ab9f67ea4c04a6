"""Makes random arguments of gated_linear and gated_linear_pair, of every dtype, shape, gate and layout in memory."""

from __future__ import annotations

import torch
from strategies import generator
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
GATES = ["own", "hard", "soft"]
LEADING: list[tuple[int, ...]] = [(), (1,), (33,), (130,), (3, 5), (2, 0), (2, 3, 4)]
# The options of gated_linear_pair, and a name for each.
KINDS = [{"gate": gate, "feature": feature} for gate in ("hard", "soft") for feature in ("relu", "linear")]
IDS = ["-".join(kind.values()) for kind in KINDS]


def problem(
    leading: tuple[int, ...] = (33,),
    inputs: int = 20,
    width: int = 70,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> list[Tensor]:
    """Makes x (*leading, inputs), weight (width, inputs) and bias (width,)."""
    made = generator(seed)
    shapes = ((*leading, inputs), (width, inputs), (width,))
    return [torch.randn(shape, generator=made, dtype=torch.float64).to(dtype) for shape in shapes]


def pair_problem(
    leading: tuple[int, ...] = (33,),
    inputs: tuple[int, int] = (20, 12),
    width: int = 70,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> list[Tensor]:
    """Makes h, w_f, b_f, z, w_v and b_v, with pre-activations of about one, where sigmoids bend."""
    made = generator(seed)
    arguments = []
    for size in inputs:
        for shape in ((*leading, size), (width, size), (width,)):
            scale = max(1, size) ** -0.5 if len(shape) == 2 and shape == (width, size) else 1.0
            arguments.append((torch.randn(shape, generator=made, dtype=torch.float64) * scale).to(dtype))
    return arguments


def gate_of(
    kind: str,
    leading: tuple[int, ...] = (33,),
    width: int = 70,
    dtype: torch.dtype = torch.float32,
    seed: int = 7,
) -> Tensor | None:
    made = generator(seed)
    if kind == "own":
        return None
    values = torch.rand((*leading, width), generator=made, dtype=torch.float64)
    return values < 0.5 if kind == "hard" else values.to(dtype)


def _transposed(t: Tensor) -> Tensor:
    return t.movedim(0, -1).contiguous().movedim(-1, 0)


def _every_other(t: Tensor) -> Tensor:
    return torch.stack([t, -t], -1)[..., 0]


def _part_of_rows(t: Tensor) -> Tensor:
    return torch.cat([t, -t], -1)[..., : t.shape[-1]]


MEMORY = {
    "contiguous": lambda t: t,
    "transposed": _transposed,
    "every other": _every_other,
    "part of rows": _part_of_rows,
}
