"""What a forward pass computes from parameters, buffers and fresh tensors alone: no input changes it."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Functions that make a tensor of what Python holds, which may come from an input.
_FROM_OUTSIDE = frozenset(
    [torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, torch.frombuffer, torch.load]
)
_DUNDERS = ["__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__iand__", "__ior__"]
# Functions that change their first argument.
_WRITERS = frozenset(
    getattr(home, name)
    for home in (torch, F, Tensor)
    for name in dir(home)
    if name in _DUNDERS or (name.endswith("_") and not name.startswith("_"))
)
_DEEPEST = 3  # lists of lists of tensors that are looked into


class Constants:
    """Follows the calls of a pass and knows which tensors do not depend on its inputs.

    A tensor does not depend on them if it is a parameter or buffer, or the result of a call all of whose tensors do
    not, one that makes a new tensor (torch.zeros) among them. Tensors are told apart by their memory: a view of a
    parameter does not depend on the inputs either, and what an input is written into does from then on.

    Args:
        model: the model that is called.
    """

    def __init__(self, model: nn.Module) -> None:
        self._held: dict[Any, Tensor] = {}  # held, lest another tensor takes the place of a dead one
        for tensor in chain(model.parameters(), model.buffers()):
            self._held[_key(tensor)] = tensor

    def __contains__(self, tensor: Any) -> bool:
        return isinstance(tensor, Tensor) and _key(tensor) in self._held

    def see(self, func: Any, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        """A call that was made."""
        if self._hold(args) and self._hold(kwargs.values()):
            if func not in _FROM_OUTSIDE:
                for tensor in _tensors((result,)):
                    self._held.setdefault(_key(tensor), tensor)
            return
        if args and args[0] in self and func in _WRITERS:
            self._held.pop(_key(args[0]), None)
        for tensor in _tensors((kwargs.get("out"),)):
            self._held.pop(_key(tensor), None)

    def _hold(self, values: Any) -> bool:
        """Whether no tensor among the values depends on the inputs."""
        for value in values:
            if isinstance(value, Tensor):
                if _key(value) not in self._held:
                    return False
            elif isinstance(value, (list, tuple)) and not all(_key(t) in self._held for t in _tensors(value)):
                return False
        return True


def _tensors(values: Any, depth: int = 0) -> list[Tensor]:
    """The tensors among values, and in lists and tuples among them."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)) and depth < _DEEPEST:
            found += _tensors(value, depth + 1)
    return found


def _key(tensor: Tensor) -> Any:
    """The same for tensors that share memory. Those of transformations of functions have no memory of their own, and a
    compiler does not look at it: they are told apart as objects."""
    if torch.compiler.is_compiling():
        return tensor
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return tensor
