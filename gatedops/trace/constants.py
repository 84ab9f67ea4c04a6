"""Finds the tensors of a forward pass that come from parameters, buffers and fresh tensors alone: no input changes
them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# These functions make a tensor of values that Python holds, and these values may come from an input.
_FROM_OUTSIDE = frozenset(
    [torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, torch.frombuffer, torch.load]
)
_DUNDERS = ["__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__iand__", "__ior__"]
# These functions change their first argument.
_WRITERS = frozenset(
    getattr(home, name)
    for home in (torch, F, Tensor)
    for name in dir(home)
    if name in _DUNDERS or (name.endswith("_") and not name.startswith("_"))
)
# Tensors are looked for in lists and tuples nested up to this depth.
_DEEPEST = 3


class Constants:
    """Follows the calls of a pass and knows which tensors do not depend on its inputs.

    A tensor does not depend on the inputs if it is a parameter or buffer, or the result of a call whose tensor
    arguments do not depend on them either; a call that makes a new tensor (torch.zeros) has no such argument. A tensor
    that an input is written into depends on it from then on, and so do its views.

    Args:
        model: the model that is called.
        fresh: whether a new tensor that is made of numbers alone (torch.full) counts as constant. Its numbers may come
            from an input by way of Python.
    """

    def __init__(self, model: nn.Module, fresh: bool = True) -> None:
        # Maps id(tensor) to the tensor. Holding the tensor keeps its id from being given to another one.
        self._held: dict[int, Tensor] = {}
        self._fresh = fresh
        # Maps a piece of memory to the ids of the computed tensors that lie in it.
        self._by_memory: dict[int, list[int]] = {}
        self._hold_all(model)
        self._model_is_indexed = False

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._held

    def see(self, func: Any, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        """Takes note of a call that was made."""
        held = self._held
        constant = len(args) == 0 or not isinstance(args[0], Tensor) or id(args[0]) in held
        if constant:
            given = _tensors(args) + _tensors(kwargs.values())
            if all(id(tensor) in held for tensor in given):
                if func not in _FROM_OUTSIDE and (self._fresh or len(given) > 0):
                    for tensor in _tensors((result,)):
                        self._hold(tensor)
                return
            if len(args) > 0 and isinstance(args[0], Tensor) and func in _WRITERS:
                self._drop(args[0])
        if "out" in kwargs:
            for tensor in _tensors((kwargs["out"],)):
                self._drop(tensor)

    def _hold_all(self, module: nn.Module) -> None:
        """Holds the parameters and buffers of a module and of its parts. This is several times as fast as
        parameters()."""
        for table in (module._parameters, module._buffers):
            for tensor in table.values():
                if tensor is not None:
                    self._held[id(tensor)] = tensor
        for child in module._modules.values():
            if child is not None:
                self._hold_all(child)

    def _hold(self, tensor: Tensor) -> None:
        """Holds a tensor that was computed from held ones."""
        if id(tensor) not in self._held:
            self._held[id(tensor)] = tensor
            memory = _memory(tensor)
            if memory is not None:
                self._by_memory.setdefault(memory, []).append(id(tensor))

    def _drop(self, written: Tensor) -> None:
        """Forgets a tensor that an input was written into, and the tensors that share its memory."""
        self._held.pop(id(written), None)
        memory = _memory(written)
        if memory is None:
            return
        if not self._model_is_indexed:
            self._model_is_indexed = True
            for tensor in list(self._held.values()):
                of_tensor = _memory(tensor)
                if of_tensor is not None:
                    self._by_memory.setdefault(of_tensor, []).append(id(tensor))
        for other in self._by_memory.pop(memory, []):
            self._held.pop(other, None)


def _tensors(values: Any, depth: int = 0) -> list[Tensor]:
    """The tensors among values, and in lists and tuples among them."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)) and depth < _DEEPEST:
            found += _tensors(value, depth + 1)
    return found


def _memory(tensor: Tensor) -> int | None:
    """Returns a number that is the same for tensors that share memory, or None if it cannot be had."""
    if torch.compiler.is_compiling():
        return None
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):  # tensors have no storage inside transformations of functions
        return None
