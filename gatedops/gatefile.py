"""Reads the words of a GateBits file (safetensors): into memory, or mapped from the file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

FILE_FORMAT = "gatedops.GateBits/1"


def read_words(path: Path, mmap: bool) -> tuple[Tensor, dict[str, str]]:
    """Returns the tensor "words" of a safetensors file and the file's metadata.

    Raises:
        FileNotFoundError: no such file. ValueError: the file is damaged, or holds no int32 tensor "words" of two
            dimensions.
    """
    from safetensors import SafetensorError, safe_open

    # safetensors reports a file that may not be opened as one that does not exist; open() raises the right error.
    path.open("rb").close()
    try:
        with safe_open(path, "pt") as file:
            if "words" not in file.keys():  # noqa: SIM118 (the file has no `in`)
                raise _no_words(path)
            # A private mapping of the file: nothing is read yet, and writes do not reach the file.
            words, metadata = file.get_tensor("words"), file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: is not a safetensors file, is cut off or is damaged ({error})") from None
    if words.dtype != torch.int32 or words.dim() != 2:
        raise _no_words(path)
    return words if mmap else words.clone(), metadata


def _no_words(path: Path) -> ValueError:
    return ValueError(f"{path}: holds no int32 tensor 'words' (n, W); write it with GateBits.save")
