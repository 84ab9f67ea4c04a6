"""Cuts a data set into batches, and checks the arguments for that."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from gatedops.arrays import as_tensor
from gatedops.scalars import whole_number


def batches_of(data: Any, batch_size: int) -> Iterator[Tensor]:
    """The inputs of each batch. The type of the data is checked at once, each batch when it comes."""
    data = as_tensor(data, "data") if isinstance(data, np.ndarray) else data
    if isinstance(data, Tensor):
        return _cut(data, batch_size)
    _require_batches(data)
    if isinstance(data, tuple) and len(data) > 1 and all(isinstance(value, Tensor) for value in data):
        raise TypeError(
            "data: got a tuple of tensors; if they are several inputs, or inputs and labels, say with call= what the"
            " model takes, such as call=lambda model, batch: model(batch[0]); if they are batches, give a list"
        )
    if isinstance(data, Mapping):
        raise TypeError(f"data: got {type(data).__name__}, needs a tensor or an iterable of batches; {_GIVE_CALL}")
    return (_inputs_of(batch, index) for index, batch in enumerate(data))


def whole_batches_of(data: Any, batch_size: int) -> Iterator[Any]:
    """Each batch with all that it holds, as a DataLoader gives it. A dict or tuple of tensors is cut like a tensor: the
    tensors that have as many rows as the first one are cut, and everything else goes to every batch."""
    data = _with_tensors(data)
    if isinstance(data, Tensor):
        return _cut(data, batch_size)
    _require_batches(data)
    is_one = isinstance(data, Mapping) or (isinstance(data, tuple) and all(map(_holds_tensor, data)))
    if not is_one:
        return (_with_rows(_with_tensors(batch), index) for index, batch in enumerate(data))
    rows = row_count(data)
    if not rows:
        raise ValueError(
            f"data: got a {type(data).__name__} without a tensor (n, ...), needs one with at least one row"
        )
    return (_chosen(data, slice(start, start + batch_size), rows) for start in range(0, rows, batch_size))


def row_count(batch: Any) -> int | None:
    """The number of inputs in a batch: the rows of the first tensor in it; None if it holds no tensor."""
    return next((len(leaf) for leaf in tensors_of(batch) if leaf.dim()), None)


def reordered(batch: Any, order: Tensor) -> Any:
    """The batch with these rows of every tensor that has a row for each input."""
    return _chosen(batch, order, row_count(batch))


def require_count(batch_size: Any) -> int:
    """The number of rows as an int; ValueError for anything else."""
    count = whole_number(batch_size)
    if count is None or count < 1:
        raise ValueError(f"batch_size: got {batch_size!r}, needs a whole number of at least 1")
    return count


_GIVE_CALL = "say with call= how the model takes a batch, such as call=lambda model, batch: model(**batch)"


def _cut(data: Tensor, batch_size: int) -> Iterator[Tensor]:
    data = as_tensor(data, "data")
    if data.dim() == 0 or data.shape[0] == 0:
        raise ValueError(f"data: got shape {tuple(data.shape)}, needs at least one row")
    return iter(data.split(batch_size))


def _require_batches(data: Any) -> None:
    if isinstance(data, Dataset):
        raise TypeError(f"data: got {type(data).__name__}, which gives single inputs; wrap it in a DataLoader")
    if isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
        raise TypeError(f"data: got {type(data).__name__}, needs a tensor, a DataLoader or an iterable of batches")


def _inputs_of(batch: Any, index: int) -> Tensor:
    inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    inputs = as_tensor(inputs, f"data: batch {index}") if isinstance(inputs, np.ndarray) else inputs
    if not isinstance(inputs, Tensor):
        raise TypeError(
            f"data: batch {index} is {type(batch).__name__}, needs a tensor or a tuple that begins with it; for another"
            f" form {_GIVE_CALL}"
        )
    if inputs.dim() == 0 or inputs.shape[0] == 0:
        raise ValueError(f"data: batch {index} has shape {tuple(inputs.shape)}, needs at least one row")
    return inputs


def _with_rows(batch: Any, index: int) -> Any:
    if not row_count(batch):
        raise ValueError(f"data: batch {index} is {type(batch).__name__}, needs to hold a tensor (n, ...) with a row")
    return batch


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """Every tensor in a batch."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, (Mapping, list, tuple)):
        for value in batch.values() if isinstance(batch, Mapping) else batch:
            yield from tensors_of(value)


def _chosen(batch: Any, rows: Tensor | slice, count: int | None) -> Any:
    """The batch with these rows of every tensor that has `count` rows."""

    def of(value: Any) -> Any:
        if isinstance(value, Tensor):
            if not value.dim() or len(value) != count:
                return value
            return value[rows.to(value.device) if isinstance(rows, Tensor) else rows]
        if isinstance(value, (list, tuple)):
            return _like(value, map(of, value))
        return _mapped(value, of) if isinstance(value, Mapping) else value

    return of(batch)


def _with_tensors(value: Any) -> Any:
    """The value with numpy arrays replaced by tensors, in dicts, lists and tuples too."""
    if isinstance(value, np.ndarray):
        return as_tensor(value, "data")
    if type(value) in (list, tuple) or hasattr(type(value), "_fields"):
        return _like(value, map(_with_tensors, value))
    return _mapped(value, _with_tensors) if isinstance(value, Mapping) else value


def _holds_tensor(value: Any) -> bool:
    return next(tensors_of(value), None) is not None


def _mapped(batch: Mapping[Any, Any], function: Callable[[Any], Any]) -> Mapping[Any, Any]:
    """A dict of the same kind with the function's results as values."""
    if not isinstance(batch, MutableMapping):
        return {key: function(value) for key, value in batch.items()}
    made = copy.copy(batch)
    for key in list(made):
        made[key] = function(made[key])
    return made


def _like(batch: list[Any] | tuple[Any, ...], values: Iterable[Any]) -> Any:
    """The values in a list or tuple of the same kind."""
    return type(batch)(*values) if hasattr(type(batch), "_fields") else type(batch)(values)
