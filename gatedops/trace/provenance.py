"""What the weights of a network are made of: which parameters, and which parts of them."""

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
        """Which memory it lies in; on the device "meta" too, where all have one address."""
        return int(self.tensor.untyped_storage()._cdata)

    @property
    def entries(self) -> int:
        """How many numbers it holds; those that it shows several times (expand) count once."""
        t = self.tensor
        return math.prod(size for size, stride in zip(t.shape, t.stride(), strict=True) if stride != 0)

    @property
    def shows_each_once(self) -> bool:
        """Whether its strides alone tell that no two of its entries are one number in memory."""
        t, reach = self.tensor, 0
        for stride, size in sorted(zip(t.stride(), t.shape, strict=True)):
            if size > 1 and stride <= reach:
                return False
            reach += stride * (size - 1)
        return True

    def overlaps(self, other: Source) -> bool:
        """Whether the two share a number."""
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
Made = list[tuple[Tensor, Sources]]  # tensors, each with what it is made of


def made_by(results: Sequence[Tensor], arguments: Made) -> Made:
    """What the results of an operation on these arguments are made of: a view of a source is the part that it shows,
    anything else is made of all that the arguments are made of; without arguments it is a source itself."""
    return [(result, _sources_of(result, arguments)) for result in results]


def deciding(sources: Sources) -> Sources:
    """The sources that decide whether two weights are independent: the parameters, or all where none is one."""
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
    """One more than the last place in its memory, in numbers."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int(tensor.storage_offset()) + int(reach) + 1
