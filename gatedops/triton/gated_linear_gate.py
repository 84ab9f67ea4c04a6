"""gate_relu and gate_select on a GPU: one pass over activations (n, positions, channels) of any strides.

Memory bounds both: for a gate they read and write one number, and write or read 1/8 byte.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gatedops.layout import layer_words, words_used
from gatedops.ops.gated_linear_gate import empty_activations
from gatedops.triton.gated_linear_tiles import relu
from gatedops.triton.gates import WORDS, aligned, at_places, places_of_words

# Triton does not specialize kernels on these arguments. The constexpr ALIGNED says all that the compiler needs.
PLAIN = [
    "channels", "per_position", "used", "total", "q_row", "q_position", "q_channel", "z_row", "z_position",
    "z_channel", "words_row",
]  # fmt: skip


@triton.jit(do_not_specialize=PLAIN, do_not_specialize_on_alignment=["q", "z"])
def relu_kernel(
    q, z, words, channels, per_position, used, total,
    q_row: tl.int64, q_position, q_channel,
    z_row: tl.int64, z_position, z_channel, words_row: tl.int64, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Computes z = relu(q) and the words of its gates, with one program for each row and block of words."""
    row = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    position, channel, inside = places_of_words(word, channels, per_position, used, ALIGNED)
    source = at_places(q, row, position, channel, q_row, q_position, q_channel, ALIGNED)
    to = at_places(z, row, position, channel, z_row, z_position, z_channel, ALIGNED)
    values = tl.load(source, mask=inside, other=0.0)
    packed = tl.sum((values > 0).to(tl.int32) << tl.arange(0, 32)[None, :], axis=1)
    tl.store(words + row * words_row + word, packed, mask=word < total)
    tl.store(to, relu(values), mask=inside)


@triton.jit(do_not_specialize=PLAIN, do_not_specialize_on_alignment=["q", "z"])
def select_kernel(
    q, z, words, channels, per_position, used,
    q_row: tl.int64, q_position, q_channel,
    z_row: tl.int64, z_position, z_channel, words_row: tl.int64, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sets z to q if its gate is on, else to 0, with one program for each row and block of words."""
    row = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    position, channel, inside = places_of_words(word, channels, per_position, used, ALIGNED)
    source = at_places(q, row, position, channel, q_row, q_position, q_channel, ALIGNED)
    to = at_places(z, row, position, channel, z_row, z_position, z_channel, ALIGNED)
    values = tl.load(source, mask=inside, other=0.0)
    packed = tl.load(words + row * words_row + word, mask=word < used, other=0)
    on = (packed[:, None] >> tl.arange(0, 32)[None, :]) & 1
    tl.store(to, tl.where(on != 0, values, 0.0), mask=inside)


def gate_relu(q: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ``relu(q)`` and the words of its gates. Takes the arguments of the op."""
    n, positions, channels = q.shape
    z = empty_activations(q)
    words = q.new_empty((n, layer_words(positions, channels)), dtype=torch.int32)
    used = words_used(positions, channels)
    if n > 0:
        relu_kernel[(n, triton.cdiv(words.shape[1], WORDS))](
            q, z, words, channels, used // positions, used, words.shape[1],
            *q.stride(), *z.stride(), words.stride(0), ALIGNED=aligned(q, z), BLOCK=WORDS,
        )  # fmt: skip
    return z, words


def gate_select(q: Tensor, words: Tensor, first: int) -> Tensor:
    """Returns q with zeros for the gates that are off. Takes the arguments of the op."""
    n, positions, channels = q.shape
    z = empty_activations(q)
    used = words_used(positions, channels)
    if n > 0:
        select_kernel[(n, triton.cdiv(used, WORDS))](
            q, z, words[:, first:], channels, used // positions, used,
            *q.stride(), *z.stride(), words.stride(0), ALIGNED=aligned(q, z), BLOCK=WORDS,
        )  # fmt: skip
    return z


def relu_rows(q: Tensor) -> tuple[Tensor, Tensor]:
    """Applies :func:`gate_relu` to a layer's rows (..., width)."""
    z, words = gate_relu(as_positions(q))
    return z.view(q.shape), words


def select_rows(q: Tensor, words: Tensor, first: int) -> Tensor:
    """Applies :func:`gate_select` to a layer's rows (..., width)."""
    return gate_select(as_positions(q), words, first).view(q.shape)


def as_positions(q: Tensor) -> Tensor:
    """Returns (..., width) as (n, 1, width)."""
    return q.reshape(q.shape[:-1].numel(), 1, q.shape[-1])
