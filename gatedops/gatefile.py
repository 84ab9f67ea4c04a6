"""Reading the words of a GateBits file (safetensors): into memory, or mapped from the file."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FILE_FORMAT = "gatedops.GateBits/1"
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors format


def read_words(path: Path, mmap: bool) -> tuple[Tensor, dict[str, str]]:
    """The tensor "words" of a safetensors file and the file's metadata.

    Raises:
        FileNotFoundError: no such file. ValueError: damaged, or it holds no int32 tensor "words" of two dimensions.
    """
    start, header = _read_header(path)
    entry = header.get("words", {})
    shape, span = entry.get("shape", []), entry.get("data_offsets", [0, -1])
    if entry.get("dtype") != "I32" or len(shape) != 2 or span[1] - span[0] != 4 * shape[0] * shape[1]:
        raise ValueError(f"{path}: holds no int32 tensor 'words' (n, W); write it with GateBits.save")
    if start + span[1] > path.stat().st_size:
        raise ValueError(f"{path}: the file is cut off; {start + span[1]} bytes are needed")
    offset, metadata = start + span[0], header.get("__metadata__", {})
    if shape[0] * shape[1] == 0:
        return torch.empty(shape, dtype=torch.int32, device="cpu"), metadata
    if mmap:
        return torch.from_numpy(np.memmap(path, np.int32, "c", offset, tuple(shape))), metadata
    values = np.fromfile(path, np.int32, shape[0] * shape[1], offset=offset)
    return torch.from_numpy(values).view(*shape), metadata


def _read_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Where the data of a safetensors file starts, in bytes, and its header."""
    with path.open("rb") as file:
        size_field = file.read(8)
        size = struct.unpack("<Q", size_field)[0] if len(size_field) == 8 else _MAX_HEADER + 1
        text = file.read(size) if size <= _MAX_HEADER else b""
    try:
        header = json.loads(text)
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise ValueError(f"{path}: is not a safetensors file or is damaged")
    return 8 + size, header
