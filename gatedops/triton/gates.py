"""Packs gates (n, P, C) with any strides into words on a GPU, and unpacks them.

A program takes a block of words of a row. Memory bounds both kernels: packing reads a number and writes 1/8 byte for a
gate, unpacking reads 1/8 byte and writes 1 byte.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gatedops.layout import layer_words, words_used

WORDS = 32  # A program writes this many words: 32 x 32 gates.


@triton.jit
def places_of_words(word, channels, per_position, used, ALIGNED: tl.constexpr):
    """Returns position (B, 1) and channel (B, 32), int64, of each of the 32 gates of words (B,), and whether the gate
    exists."""
    if ALIGNED:
        channels = channels // 16 * 16  # tells the compiler that it is a multiple
    position = word // per_position
    channel = (word % per_position)[:, None] * 32 + tl.arange(0, 32)[None, :]
    inside = (word < used)[:, None] & (channel < channels)
    return position[:, None].to(tl.int64), channel.to(tl.int64), inside


@triton.jit
def at_places(of, row, position, channel, of_row, of_position, of_channel, ALIGNED: tl.constexpr):
    """Returns pointers to the numbers of a row of activations `of` at these positions and channels."""
    if ALIGNED:
        pointers = tl.multiple_of(of + (row * of_row + position * of_position + channel), (1, 16))  # bytes
    else:
        pointers = of + (row * of_row + position * of_position + channel * of_channel)
    return pointers


def aligned(*activations: Tensor) -> bool:
    """Tells whether all of these activations (n, positions, channels) can be read 16 bytes at a time. Their channels
    are then contiguous and a multiple of 16.

    The kernels learn this instead of each stride: Triton compiles a kernel of its own for each set of arguments that
    are 1 or multiples of 16."""
    n, positions, channels = activations[0].shape
    return channels % 16 == 0 and all(
        t.stride(2) == 1
        and t.data_ptr() % 16 == 0
        and (n == 1 or t.stride(0) * t.itemsize % 16 == 0)
        and (positions == 1 or t.stride(1) * t.itemsize % 16 == 0)
        for t in activations
    )


@triton.jit(
    do_not_specialize=["channels", "per_position", "used", "total", "q_row", "q_position", "q_channel", "words_row"],
    do_not_specialize_on_alignment=["q"],
)
def pack_kernel(
    q, words, channels,
    per_position,  # This many words lie from one position to the next.
    used,  # This many words hold gates; the words behind them are padding.
    total, q_row: tl.int64, q_position, q_channel, words_row: tl.int64, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    position, channel, inside = places_of_words(word, channels, per_position, used, ALIGNED)
    source = at_places(q, row, position, channel, q_row, q_position, q_channel, ALIGNED)
    on = tl.load(source, mask=inside, other=0.0) > 0
    packed = tl.sum(on.to(tl.int32) << tl.arange(0, 32)[None, :], axis=1)
    tl.store(words + row * words_row + word, packed, mask=word < total)


@triton.jit(do_not_specialize=["channels", "per_position", "gates", "words_row"])
def unpack_kernel(words, out, channels, per_position, gates, words_row: tl.int64, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    gate = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = gate < gates
    channel = gate % channels
    word = gate // channels * per_position + channel // 32
    packed = tl.load(words + row * words_row + word, mask=inside, other=0)
    tl.store(out + row * gates + gate, ((packed >> (channel % 32)) & 1).to(tl.int8), mask=inside)


def pack_gates_out(q: Tensor, *, out: Tensor) -> None:
    """Launches :func:`pack_kernel`. Takes the arguments of the op."""
    n, positions, channels = q.shape
    source = q.view(torch.uint8) if q.dtype == torch.bool else q
    used = words_used(positions, channels)
    if n == 0:
        return
    pack_kernel[(n, triton.cdiv(out.shape[1], WORDS))](
        source, out, channels, used // positions, used, out.shape[1], *q.stride(), out.stride(0),
        ALIGNED=aligned(source), BLOCK=WORDS,
    )  # fmt: skip


def pack_gates(q: Tensor) -> Tensor:
    """Returns the words ``(n, W)`` of gates ``(n, positions, channels)``."""
    out = q.new_empty((q.shape[0], layer_words(q.shape[1], q.shape[2])), dtype=torch.int32)
    pack_gates_out(q, out=out)
    return out


def unpack_gates(words: Tensor, positions: int, channels: int) -> Tensor:
    """Returns the gates, bool ``(n, positions, channels)``."""
    n, gates = words.shape[0], positions * channels
    out = words.new_empty((n, positions, channels), dtype=torch.int8)
    if n > 0:
        unpack_kernel[(n, triton.cdiv(gates, 1024))](
            words,
            out,
            channels,
            words_used(positions, channels) // positions,
            gates,
            words.stride(0),
            BLOCK=1024,
        )
    return out.view(torch.bool)
