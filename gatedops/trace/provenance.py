"""Finds what the weights of a network are made of: which parameters, and which parts of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Source:
    """A parameter, a buffer or another tensor that no input changes, or a view of a part of one.

    Args:
        tensor: the whole, or the part.
        is_parameter: whether training changes it.
    """

    tensor: Tensor
    is_parameter: bool

    @property
    def memory(self) -> int:
        """A number for the memory that it lies in. It also works on the device "meta", where all tensors have the same
        address."""
        return int(self.tensor.untyped_storage()._cdata)

    @property
    def entries(self) -> int:
        """The number of numbers that it holds; one that it shows several times (expand) counts once."""
        t = self.tensor
        return math.prod(size for size, stride in zip(t.shape, t.stride(), strict=True) if stride != 0)

    @property
    def shows_each_once(self) -> bool:
        """Whether its strides alone prove that no two of its entries are the same number in memory."""
        t, reach = self.tensor, 0
        for stride, size in sorted(zip(t.stride(), t.shape, strict=True)):
            if size > 1 and stride <= reach:
                return False
            reach += stride * (size - 1)
        return True

    def overlaps(self, other: Source) -> bool:
        """Whether the two share a number in memory."""
        a, b = self.tensor, other.tensor
        if self.memory != other.memory or a.numel() == 0 or b.numel() == 0:
            return False
        if a.element_size() != b.element_size():
            return True
        start = min(a.storage_offset(), b.storage_offset())
        if max(a.storage_offset(), b.storage_offset()) >= min(_end(a), _end(b)):
            return False
        used = torch.zeros(max(_end(a), _end(b)) - start, dtype=torch.bool, device="cpu")
        used.as_strided(a.shape, a.stride(), a.storage_offset() - start).fill_(True)
        return bool(used.as_strided(b.shape, b.stride(), b.storage_offset() - start).any())


Sources = tuple[Source, ...]
# Lists tensors, each with the sources that it is made of.
Made = list[tuple[Tensor, Sources]]


def made_by(results: Sequence[Tensor], arguments: Made) -> Made:
    """The results of an operation on these arguments, each with what it is made of. A view of a source is made of the
    part that it shows. Any other result is made of all sources of the arguments. If they have none, the result is
    itself a source."""
    return [(result, _sources_of(result, arguments)) for result in results]


def deciding(sources: Sources) -> Sources:
    """The sources that decide whether two weights are independent: the parameters, or all sources if none is one."""
    return tuple(source for source in sources if source.is_parameter) or sources


def _sources_of(result: Tensor, arguments: Made) -> Sources:
    for tensor, sources in arguments:
        if tensor is result:
            return sources
        if len(sources) == 1 and sources[0].tensor is tensor and _shares(tensor, result):
            return (replace(sources[0], tensor=result),)
    united = dict.fromkeys(source for _, sources in arguments for source in sources)
    return tuple(united) or (Source(result, False),)


def _shares(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage()._cdata == b.untyped_storage()._cdata


def _end(tensor: Tensor) -> int:
    """One more than the index of its last number in memory."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int(tensor.storage_offset()) + int(reach) + 1
