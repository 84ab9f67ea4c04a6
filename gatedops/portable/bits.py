"""Between gates as one byte each and gates as bits of words, by operations on whole tensors.

Eight bytes that are 0 or 1, seen as one int64, become eight bits by a multiplication, and back by two. The
bytes of a word come in the order of its bits on every device of torch, all of which are little-endian.
"""

from __future__ import annotations

import torch
from torch import Tensor

_COLLECT = 0x0102040810204080  # moves bit 0 of byte k to bit 56 + k
_HALVES, _HALF = 0x10000001, 0x0000000F0000000F  # four bits of a byte to each half of eight bytes
_STEPS, _LOWEST = 0x00204081, 0x0101010101010101  # bit k of a half to bit 8 k, beside others


def collect(gates: Tensor) -> Tensor:
    """Words int32 ``(n, W)`` of gates bool ``(n, 32 W)``, contiguous."""
    eights = gates.view(torch.int64) * _COLLECT
    return eights.view(torch.uint8)[:, 7::8].clone(memory_format=torch.contiguous_format).view(torch.int32)


def spread(words: Tensor) -> Tensor:
    """Gates bool ``(n, 32 W)`` of words int32 ``(n, W)``, the words of a row contiguous."""
    if words.stride(1) != 1:  # a single word
        words = words.contiguous()
    eights = words.view(torch.uint8).to(torch.int64)
    eights.mul_(_HALVES).bitwise_and_(_HALF).mul_(_STEPS).bitwise_and_(_LOWEST)
    return eights.view(torch.bool)


def popcount(words: Tensor) -> Tensor:
    """The bits that are set in each word, int32 of the same shape."""
    pairs = words - ((words >> 1) & 0x55555555)
    fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    eights = (fours + (fours >> 4)) & 0x0F0F0F0F
    return (eights * 0x01010101) >> 24
