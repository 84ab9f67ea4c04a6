"""Converts between gates of one byte each and gates as bits of words, by operations on whole tensors.

Eight bytes that are 0 or 1 form one int64. One multiplication turns it into eight bits, and two turn these back. All
devices of torch are little-endian, so the bytes of a word come in the order of its bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Multiplying by this moves bit 0 of byte k to bit 56 + k.
_COLLECT = 0x0102040810204080
# This multiplier and this mask put four bits of a byte into each half of eight bytes.
_HALVES, _HALF = 0x10000001, 0x0000000F0000000F
# This multiplier moves bit k of a half to bit 8 k, and this mask removes the other bits.
_STEPS, _LOWEST = 0x00204081, 0x0101010101010101


def collect(gates: Tensor) -> Tensor:
    """Returns the words, int32 ``(n, W)``, of contiguous gates, bool ``(n, 32 W)``."""
    eights = gates.view(torch.int64) * _COLLECT
    return eights.view(torch.uint8)[:, 7::8].clone(memory_format=torch.contiguous_format).view(torch.int32)


def spread(words: Tensor) -> Tensor:
    """Returns the gates, bool ``(n, 32 W)``, of words, int32 ``(n, W)``, the words of a row contiguous."""
    if words.stride(1) != 1:  # A row of a single word may have any stride.
        words = words.contiguous()
    eights = words.view(torch.uint8).to(torch.int64)
    eights.mul_(_HALVES).bitwise_and_(_HALF).mul_(_STEPS).bitwise_and_(_LOWEST)
    return eights.view(torch.bool)


def popcount(words: Tensor) -> Tensor:
    """Counts the bits that are set in each word, int32 of the same shape."""
    pairs = words - ((words >> 1) & 0x55555555)
    fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    eights = (fours + (fours >> 4)) & 0x0F0F0F0F
    return (eights * 0x01010101) >> 24
