"""Chooses one of the tensors that a model returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

# The index, key or name of one tensor of a tuple, list, dict or dataclass.
Output = int | str


def require_choice(result: Any, output: Output | None) -> None:
    """Raises ValueError if `output` does not choose a tensor of what the model returns, or if there is none to
    choose."""
    if isinstance(result, Tensor):
        if output is not None:
            raise ValueError(f"output: got {output!r}, but the model returns one tensor; leave output out")
        return
    choices = list(_tensors_of(result))
    listed = ", ".join(map(repr, choices))
    if not choices:
        raise ValueError(
            f"model: returns {type(result).__name__}, needs to return one tensor that depends on its input; wrap it in"
            " a module that returns only that tensor"
        )
    if output is None:
        raise ValueError(
            f"model: returns {type(result).__name__}, needs to return one tensor that depends on its input; choose one"
            f" by output=, which may be {listed}"
        )
    if output not in choices or isinstance(output, bool):
        raise ValueError(f"output: got {output!r}, needs one of {listed}, which the model returns")


def chosen(result: Any, output: Output | None) -> Tensor:
    """The tensor that `output` chooses of what the model returns."""
    return result if output is None else _tensors_of(result)[output]


@contextmanager
def returning(model: nn.Module, output: Output | None) -> Iterator[None]:
    """While entered, the model returns a list of its tensors that starts with the one chosen."""

    if output is None:
        yield
        return
    chosen_one = output

    def choose(module: nn.Module, args: Any, result: Any) -> list[Tensor]:
        tensors = _tensors_of(result)
        return [tensors.pop(chosen_one), *tensors.values()]

    hook = model.register_forward_hook(choose)
    try:
        yield
    finally:
        hook.remove()


def _tensors_of(result: Any) -> dict[Output, Tensor]:
    """The tensors that a tuple, list, dict or dataclass holds, by index, key or name."""
    if isinstance(result, Mapping):
        entries = dict(result)
    elif isinstance(result, (tuple, list)):
        entries = dict(enumerate(result))
    elif is_dataclass(result):
        entries = {field.name: getattr(result, field.name) for field in fields(result)}
    else:
        entries = {}
    return {key: value for key, value in entries.items() if isinstance(value, Tensor)}
