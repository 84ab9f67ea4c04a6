"""hypothesis strategies for gates, GateBits and tensor layouts.

A draw fixes shapes, a density and a seed, and the gates come from a torch generator. So failures shrink in the numbers
that matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from gatedops import GateBits, reference

# A Spec has the shape and the kind of a layer.
Spec = tuple[tuple[int, ...], str]

# These sizes lie around word (32), vector (64) and tile (16 .. 256) boundaries.
ROWS = [0, 1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 258]
WIDTHS = [1, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 257]

rows = st.sampled_from(ROWS)
widths = st.sampled_from(WIDTHS)
seeds = st.integers(0, 2**31 - 1)
densities = st.sampled_from([0.5, 0.0, 1.0, 0.03, 0.9])
dense_layers = st.tuples(st.tuples(widths), st.just("gate"))
layer_specs = st.one_of(
    dense_layers,
    st.tuples(st.tuples(st.sampled_from([1, 2, 3]), widths), st.just("gate")),
    st.tuples(st.tuples(widths, st.integers(1, 2), st.integers(1, 3)), st.just("gate")),
    st.tuples(
        st.tuples(
            st.sampled_from([1, 4]),
            st.sampled_from([1, 3, 33, 64, 65]),
            st.integers(1, 3),
            st.integers(1, 3),
        ),
        st.just("select"),
    ),
)
nets = st.lists(layer_specs, min_size=1, max_size=5)
dense_nets = st.lists(dense_layers, min_size=1, max_size=5)


def examples(count: int) -> settings:
    """Returns settings of a property test with `count` examples. Its fixtures hold for all examples of a test."""
    return settings(
        max_examples=count,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def masks(n: int, specs: list[Spec], seed: int = 0, density: float = 0.5) -> list[Tensor]:
    """Makes random bool gates (n, *shape), one tensor per layer."""
    made = generator(seed)
    return [torch.rand(n, *shape, generator=made) < density for shape, _ in specs]


def bits_of(gates: list[Tensor], specs: list[Spec]) -> GateBits:
    """Makes GateBits packed by the reference, not by the op under test."""
    return GateBits(*reference.words_from_bool(gates, [kind for _, kind in specs]))


def random_bits(n: int, specs: list[Spec], seed: int = 0, density: float = 0.5) -> GateBits:
    return bits_of(masks(n, specs, seed, density), specs)


def dense(*layer_widths: int) -> list[Spec]:
    """Returns the specs of a fully connected net."""
    return [((width,), "gate") for width in layer_widths]


def rows_of(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Makes random inputs x (n, d); uint8 from 0 to 255."""
    if dtype == torch.uint8:
        return torch.randint(0, 256, (n, d), generator=generator(seed), dtype=dtype)
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64).to(dtype)


def special_values(dtype: torch.dtype) -> Tensor:
    """Returns what q > 0 must get right: zeros, NaNs, infinities and the least number, each with both signs."""
    info = torch.finfo(dtype)
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    least = torch.tensor([1], dtype=integer).view(dtype)
    nan = torch.tensor([math.nan], dtype=dtype)
    plain = torch.tensor(
        [0.0, -0.0, math.inf, -math.inf, 1.0, -1.0, info.max, info.min, info.tiny, -info.tiny], dtype=dtype
    )
    return torch.cat([plain, least, -least, nan, -nan])


def pre_activations(n: int, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Makes pre-activations (n, *shape), one in four a special value; for bool it makes random gates."""
    made = generator(seed)
    if dtype == torch.bool:
        return torch.rand(n, *shape, generator=made) < 0.5
    q = torch.randn(n, *shape, generator=made).to(dtype)
    special = special_values(dtype)
    chosen = special[torch.randint(len(special), q.shape, generator=made)]
    return torch.where(torch.rand(q.shape, generator=made) < 0.25, chosen, q)


def _transposed(q: Tensor) -> Tensor:
    return q.movedim(0, -1).contiguous().movedim(-1, 0)


def _channels_last(q: Tensor) -> Tensor:
    return q.movedim(1, -1).contiguous().movedim(-1, 1)


def _expanded_rows(q: Tensor) -> Tensor:
    return q[:1].expand(q.shape)


def _expanded_gates(q: Tensor) -> Tensor:
    return q[..., :1].expand(q.shape)


def _every_other_gate(q: Tensor) -> Tensor:
    return torch.stack([q, ~q if q.dtype == torch.bool else -q], -1)[..., 0]


def _sliced_rows(q: Tensor) -> Tensor:
    return torch.stack([q, q.logical_not().to(q.dtype)], 1)[:, 0]


def _offset(q: Tensor) -> Tensor:
    """Gives a storage offset of one element, so that rows are not aligned."""
    return torch.cat([q.new_zeros(1), q.flatten()])[1:].view(q.shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda q: q,
    "transposed": _transposed,
    "channels last": _channels_last,
    "expanded rows": _expanded_rows,
    "expanded gates": _expanded_gates,
    "every other gate": _every_other_gate,
    "sliced rows": _sliced_rows,
    "offset": _offset,
}
layouts = st.sampled_from(sorted(LAYOUTS))
