"""Batches of a data set, and the file that what is made of them goes to: arguments and their checks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset


def batches_of(data: Any, batch_size: int) -> Iterator[Tensor]:
    """The inputs of each batch; what can be checked at once is."""
    if isinstance(data, Tensor):
        if data.dim() == 0 or data.shape[0] == 0:
            raise ValueError(f"data: got shape {tuple(data.shape)}, needs at least one row")
        return iter(data.split(batch_size))
    if isinstance(data, Dataset):
        raise TypeError(f"data: got {type(data).__name__}, which gives single inputs; put a DataLoader around it")
    if isinstance(data, (str, bytes, dict)) or not isinstance(data, Iterable):
        raise TypeError(f"data: got {type(data).__name__}, needs a tensor, a DataLoader or an iterable of batches")
    return (_inputs_of(batch, index) for index, batch in enumerate(data))


def _inputs_of(batch: Any, index: int) -> Tensor:
    inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(inputs, Tensor):
        raise TypeError(f"data: batch {index} is {type(batch).__name__}, needs a tensor or a tuple that begins with it")
    if inputs.dim() == 0 or inputs.shape[0] == 0:
        raise ValueError(f"data: batch {index} has shape {tuple(inputs.shape)}, needs at least one row")
    return inputs


def require_count(batch_size: Any) -> None:
    """Raises ValueError unless this is a number of rows."""
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size!r}, needs a whole number of at least 1")


def file_at(given: Any, name: str) -> Path:
    """The path of a file that can be written; errors name it `name`."""
    if not isinstance(given, (str, os.PathLike)):
        raise TypeError(f"{name}: got {type(given).__name__}, needs the path of a file")
    path = Path(given)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"{name}: {path} {'is a folder' if path.is_dir() else 'lies in no existing folder'}")
    return path
