"""Collects recorded rows of words, in memory or row after row in a file that GateBits.load reads."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol

import torch
from torch import Tensor

from gatedops.atomic_file import part_of, put_in_place
from gatedops.gatebits import GateBits
from gatedops.gatefile import FILE_FORMAT
from gatedops.layout import GateLayer

# The words of a file start at a multiple of this many bytes.
_ALIGN = 64
# The header is first written with this number of rows, so that it has room for the digits of the true one, known last.
_MOST_ROWS = 10**18


class Rows(Protocol):
    """A context in which rows are added. When it is left, only what ``finish`` returned remains."""

    def __enter__(self) -> Rows: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...

    def add(self, bits: GateBits) -> None:
        """Adds the next rows, which must have the layers of the first."""

    def finish(self) -> GateBits:
        """Returns all rows."""


class RowsInMemory:
    """Keeps the rows in memory. If their number is known beforehand, each is written into the result at once."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._filled = 0
        self._words: list[Tensor] = []
        self._layers: tuple[GateLayer, ...] = ()

    def __enter__(self) -> RowsInMemory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._words.clear()

    def add(self, bits: GateBits) -> None:
        if not self._layers:
            self._layers = bits.layers
        if self._total is None:
            self._words.append(bits.words)
            return
        if not self._words:
            self._words.append(bits.words.new_empty(self._total, bits.words.shape[1]))
        self._words[0][self._filled : self._filled + bits.n] = bits.words
        self._filled += bits.n

    def finish(self) -> GateBits:
        return GateBits(self._words[0] if len(self._words) == 1 else torch.cat(self._words), self._layers)


class RowsInFile:
    """Appends the rows to a file that becomes `path` at the end; no row stays in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = part_of(path)
        self._file: BinaryIO | None = None
        self._layers: tuple[GateLayer, ...] = ()
        self._rows, self._width = 0, 0

    def __enter__(self) -> RowsInFile:
        self._file = self._part.open("wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._opened().close()
        self._part.unlink(missing_ok=True)

    def add(self, bits: GateBits) -> None:
        file = self._opened()
        if not self._layers:
            self._layers, self._width = bits.layers, bits.words.shape[1]
            file.write(self._header(_MOST_ROWS, 0))
        bits.words.cpu().numpy().tofile(file)
        self._rows += bits.n

    def finish(self) -> GateBits:
        file = self._opened()
        file.seek(0)
        file.write(self._header(self._rows, len(self._header(_MOST_ROWS, 0))))
        file.close()
        put_in_place(self._part, self._path)
        return GateBits.load(self._path, mmap=True)

    def _opened(self) -> BinaryIO:
        if self._file is None:
            raise RuntimeError("rows are written inside a with block")
        return self._file

    def _header(self, rows: int, size: int) -> bytes:
        """Returns the header of a safetensors file: its length in 8 bytes, JSON, and spaces up to `size` bytes in all.

        The library safetensors writes only whole tensors, and these rows are never all in memory, so we write the
        header here.
        """
        layers = json.dumps([[layer.name, list(layer.shape), layer.kind] for layer in self._layers])
        words = {"dtype": "I32", "shape": [rows, self._width], "data_offsets": [0, 4 * rows * self._width]}
        text = json.dumps({"__metadata__": {"format": FILE_FORMAT, "layers": layers}, "words": words}).encode()
        text = text.ljust(max(size - 8, len(text) + -(len(text) + 8) % _ALIGN))
        return struct.pack("<Q", len(text)) + text
