"""Checkpoints of a run: each file appears whole or not at all, and belongs to one set of options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from _common.output import write_json_atomically
from gatedops.atomic_file import written_whole

# Raise this number when the meaning of what is stored changes.
FORMAT = 2


class Store:
    """The folder of a run's checkpoints.

    options  all that decides what the checkpoints mean, as JSON can hold it

    Raises ValueError if the folder holds checkpoints of other options.
    """

    def __init__(self, folder: Path, options: Mapping[str, object]):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        wanted, path = {"format": FORMAT, **options}, folder / "options.json"
        if not path.exists():
            write_json_atomically(path, wanted)
        found = self._read_json(path)
        different = [
            f"{name} {found.get(name)!r} there, {value!r} here"
            for name, value in wanted.items()
            if found.get(name) != value
        ]
        if different:
            raise ValueError(
                f"{folder} holds checkpoints of other options ({'; '.join(different)}): "
                "use those options, another --out, or remove the folder"
            )

    def save_state(self, job: str, state: dict[str, Any]) -> None:
        """Saves a state, which may hold tensors, numbers, strings, lists and dicts."""
        with written_whole(self._state(job)) as temporary:
            torch.save(state, temporary)

    def load_state(self, job: str, device: torch.device) -> dict[str, Any] | None:
        """Returns what `save_state` wrote last, or None if it never did."""
        path = self._state(job)
        if not path.exists():
            return None
        try:
            return torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # zip and pickle raise errors of many types.
            raise ValueError(f"{path} is damaged: remove it, and that part of the run starts anew") from error

    def save_figures(self, job: str, figures: object) -> None:
        write_json_atomically(self._figures(job), figures)

    def load_figures(self, job: str) -> Any:
        """Returns what `save_figures` wrote, or None if it never did."""
        path = self._figures(job)
        return self._read_json(path) if path.exists() else None

    def _state(self, job: str) -> Path:
        return self.folder / f"{job}.pt"

    def _figures(self, job: str) -> Path:
        return self.folder / f"{job}.json"

    @staticmethod
    def _read_json(path: Path) -> Any:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is damaged: remove it, and that part of the run starts anew") from error
