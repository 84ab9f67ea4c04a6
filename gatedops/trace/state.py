"""Leaves a model as it was, after calls that only watch it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gatedops.trace.checks import devices_of

_TABLES = ("_parameters", "_buffers", "_modules")


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """While entered, a model may be called. Afterwards its attributes, its buffers and their values, its modes and the
    state of the random number generators of torch, numpy and Python are restored. Parameters are not restored, and
    neither are the contents of lists and other objects that the model holds."""
    attributes = {module: dict(vars(module)) for module in model.modules()}
    tables = [(table, dict(table)) for module in attributes for table in map(vars(module).__getitem__, _TABLES)]
    values: list[tuple[Tensor, Tensor]] = [(buffer, buffer.clone()) for buffer in model.buffers()]
    drawn, drawn_by_numpy = random.getstate(), np.random.get_state()
    gpus = [device for device in devices_of(model) if device.type == "cuda"]
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        random.setstate(drawn)
        np.random.set_state(drawn_by_numpy)
        for module, before in attributes.items():
            _restore(vars(module), before)
        for table, before in tables:
            _restore(table, before)
        with torch.no_grad():
            for buffer, value in values:
                same = buffer.is_meta or (buffer.layout == torch.strided and torch.equal(buffer, value))
                # Writing without need would spoil the backward of a pass that is under way.
                if not same:
                    buffer.copy_(value)


def _restore(found: dict[str, Any], before: dict[str, Any]) -> None:
    """Gives a dict its earlier contents, with the keys in their earlier order."""
    if list(found) != list(before):
        found.clear()
    found.update(before)
