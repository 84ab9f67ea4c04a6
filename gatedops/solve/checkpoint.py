"""The file from which a killed solve goes on bit for bit."""

from __future__ import annotations

import hashlib
import io
import pickle
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gatedops.atomic_file import written_whole
from gatedops.solve.block_cg import State

_FORMAT = "gatedops solve 1"


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds.

    Attributes:
        state: of the conjugate gradients.
        true: the norms of the true residuals if the solve has ended, else None.
        seconds: how long the solve took so far.
    """

    state: State
    true: Tensor | None
    seconds: float


class Checkpoint:
    """A file that is replaced whole from time to time. It stays after the solve, for a second call to read.

    Args:
        path: of the file; its folder exists.
        every: the least number of seconds from one writing to the next.
        identity: what the problem is, by the names that an error shows.

    Raises:
        ValueError: the folder cannot be written to.
    """

    def __init__(self, path: Path, every: float, identity: dict[str, str]) -> None:
        try:
            tempfile.TemporaryFile(dir=path.parent).close()
        except OSError as error:
            raise ValueError(f"checkpoint: {path.parent} cannot be written to ({error}): use another folder") from None
        self._path, self._every, self._identity = path, every, identity
        self._written = time.monotonic()

    def load(self, device: torch.device) -> Saved | None:
        """Returns what the file holds, or None if it does not exist.

        Raises:
            ValueError: the file is not a checkpoint, or it is one of another problem.
        """
        if not self._path.exists():
            return None
        # For a file that was cut, torch.load raises OSError if it reads the file itself. Bytes in memory avoid that.
        content = io.BytesIO(self._path.read_bytes())
        try:
            held = torch.load(content, map_location=device, weights_only=True)
            if not isinstance(held, dict) or held["format"] != _FORMAT:
                raise ValueError("another format")
            identity: dict[str, str] = held["identity"]
            saved = Saved(State(**held["state"]), held["true"], held["seconds"])
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError):
            raise ValueError(f"checkpoint: {self._path} is not a checkpoint of a solve: name another file") from None
        other = [name for name, value in self._identity.items() if identity.get(name) != value]
        if other:
            raise ValueError(
                f"checkpoint: {self._path} is of another problem, which differs in {', '.join(other)}: name another "
                "file, or remove this one"
            )
        return saved

    def save(self, state: State, seconds: float) -> None:
        """Writes the state, if the last writing is long enough ago."""
        if time.monotonic() - self._written >= self._every:
            self._write(Saved(state, None, seconds))

    def finish(self, state: State, true: Tensor, seconds: float) -> None:
        """Writes the last state, with the norms of the true residuals."""
        self._write(Saved(state, true, seconds))

    def _write(self, saved: Saved) -> None:
        held = {
            "format": _FORMAT,
            "identity": self._identity,
            "state": {name: getattr(saved.state, name) for name in State.__dataclass_fields__},
            "true": saved.true,
            "seconds": saved.seconds,
        }
        with written_whole(self._path) as part:
            torch.save(held, part)
        self._written = time.monotonic()


def digest(*tensors: Tensor) -> str:
    """Returns a name of the bytes of some tensors."""
    made = hashlib.sha256()
    for tensor in tensors:
        made.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        made.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return made.hexdigest()
