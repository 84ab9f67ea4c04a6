"""Between gates as one byte each and gates as bits of words, by operations on whole tensors.

Eight bytes that are 0 or 1, seen as one int64, become eight bits by one multiplication, and back by another one. The
bytes of a word come in the order of its bits on every device of torch, all of which are little-endian.
"""

from __future__ import annotations

import torch
from torch import Tensor

_COLLECT = 0x0102040810204080  # moves bit 0 of byte k to bit 56 + k
_REPEAT = 0x0101010101010101  # copies a byte into all eight
_SELECT = 0x8040201008040201 - (1 << 64)  # bit k of byte k


def collect(gates: Tensor) -> Tensor:
    """Words int32 ``(n, W)`` of gates bool ``(n, 32 W)``, contiguous."""
    eights = gates.view(torch.int64) * _COLLECT
    return eights.view(torch.uint8)[:, 7::8].contiguous().view(torch.int32)


def spread(words: Tensor, *, off: bool = False) -> Tensor:
    """Which gates are on, or which are off, bool ``(n, 32 W)``, from words int32 ``(n, W)`` with contiguous rows."""
    if words.stride(1) != 1:  # a single word
        words = words.contiguous()
    eights = words.view(torch.uint8).to(torch.int64)
    selected = eights.mul_(_REPEAT).bitwise_and_(_SELECT).view(torch.int8)
    return selected == 0 if off else selected != 0


def popcount(words: Tensor) -> Tensor:
    """The bits that are set in each word, int32 of the same shape."""
    pairs = words - ((words >> 1) & 0x55555555)
    fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    eights = (fours + (fours >> 4)) & 0x0F0F0F0F
    return (eights * 0x01010101) >> 24
