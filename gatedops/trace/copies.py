"""Copies models, also those that keep tensors of a training pass; names the part of a model that cannot be copied."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from types import FunctionType, MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_Model = TypeVar("_Model", bound=nn.Module)


def copied(model: _Model, name: str = "model", instead: str = "") -> _Model:
    """Returns a deep copy of a model. Tensors that it keeps from a training pass become constants in the copy: they
    have the same values and no graph. A weak reference to a part of the model refers to that part of the copy.

    Args:
        model: any module; it stays as it is.
        name: the argument that errors name.
        instead: what else the caller can do, at the end of an error: ", or pass inplace=True".

    Raises:
        ValueError: a part cannot be copied, such as a lock or a generator, or is a function that holds a part of the
            model, so that the copy would call the original. The error names the path of the module and the attribute.
    """
    memo: dict[int, Any] = {}
    try:
        with _WithoutGraphs():
            copy = deepcopy(model, memo)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ValueError(
            f"{name}: {_uncopied(model)} cannot be copied ({error}); remove it, or set it to None, and make it again"
            f" after the call{instead}"
        ) from error
    for path, module in model.named_modules():
        _point_into_copy(path, module, memo, name, instead)
    return copy


class _WithoutGraphs(TorchFunctionMode):
    """While entered, deepcopy copies computed tensors as constants; otherwise it refuses them."""

    def __init__(self) -> None:
        super().__init__()
        # deepcopy recognises what it has copied by its address, so no address may be reused.
        self._kept: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            constant = args[0].detach()
            self._kept.append(constant)
            args = (constant, *args[1:])
        return func(*args, **(kwargs or {}))


def _uncopied(model: nn.Module) -> str:
    """Words for the attribute that cannot be copied, or for the model if each attribute alone can be copied."""
    themselves = {id(module): module for module in model.modules()}
    for path, module in reversed(list(model.named_modules())):
        parts = {**vars(module), **module._parameters, **module._buffers}
        for attribute, value in parts.items():
            if attribute in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                with _WithoutGraphs():
                    deepcopy(value, dict(themselves))
            except Exception:
                return f"{attribute!r} of {_called(path, module)}, a {type(value).__name__},"
        if type(module).__dict__.keys() & {"__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__"}:
            try:
                with _WithoutGraphs():
                    deepcopy(module, {key: value for key, value in themselves.items() if value is not module})
            except Exception:
                return f"{_called(path, module)}, by its own way of copying,"
    return "it"


def _point_into_copy(path: str, module: nn.Module, memo: dict[int, Any], name: str, instead: str) -> None:
    """Points weak references of the copy into the copy; deepcopy shares them. Raises ValueError for a function that
    deepcopy shares and that holds a part of the model."""
    copy = memo.get(id(module))
    if not isinstance(copy, nn.Module):
        return
    for attribute, value in vars(module).items():
        if vars(copy).get(attribute) is not value:
            continue
        if isinstance(value, weakref.ref) and id(value()) in memo and value() is not None:
            vars(copy)[attribute] = weakref.ref(memo[id(value())])
        if isinstance(value, FunctionType) and any(
            isinstance(held, nn.Module | Tensor) and id(held) in memo for held in _held(value)
        ):
            raise ValueError(
                f"{name}: {attribute!r} of {_called(path, module)} is a function that holds a part of the model, so"
                f" that a copy would go on calling the original; make it a method of the module{instead}"
            )


def _held(function: FunctionType) -> Iterator[Any]:
    """The objects that a function holds: variables around it and defaults of its arguments. For a method, its object
    is returned."""
    held = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # the variable has no value yet
            held.append(cell.cell_contents)
    for value in held:
        yield value.__self__ if isinstance(value, MethodType) else value


def _called(path: str, module: nn.Module) -> str:
    return f"{path or 'the model'} ({type(module).__name__})"
