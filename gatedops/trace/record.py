"""record_gates: the gates of any ReLU network on a data set."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from gatedops.gatebits import GateBits
from gatedops.trace.batches import batches_of, file_at, require_count
from gatedops.trace.checks import evaluating, require_model, uncompiled
from gatedops.trace.progress import with_bar
from gatedops.trace.recorder import Recorder
from gatedops.trace.rows import Rows, RowsInFile, RowsInMemory


def record_gates(
    model: nn.Module,
    data: Tensor | Iterable[Any],
    batch_size: int = 256,
    out: str | os.PathLike[str] | None = None,
    *,
    max_pool: bool = False,
    progress: bool | None = None,
) -> GateBits:
    """The gates of every ReLU that a model calls, in call order: on where the pre-activation is > 0.

    Sees nn.ReLU, F.relu, torch.relu, x.relu() and the in-place forms, in any module, torch's own transformer layers
    included, without changing the model. It runs in evaluation mode, without gradients and uncompiled; each batch is
    packed to one bit a gate as it passes. Layers are named after the module that is the ReLU ("features.1"), or else
    the one that calls it ("layer1.0.relu"); the second call of that name is "layer1.0.relu#2".

    Args:
        model: any module; ``model(inputs)`` is called with batches. Pre-activations are ``(n, w)``, ``(n, T, C)`` or
            ``(n, C, H, W)``, the inputs always the first axis; ``(n,)`` is taken as ``(n, 1)``, a Conv1d's
            ``(n, C, L)`` as ``(n, T, C)``.
        data: inputs ``(n, ...)`` on the model's device, cut into batches; or a DataLoader or another iterable of
            batches, each the inputs or a tuple that starts with them.
        batch_size: rows at a time, where data is a tensor.
        out: a file to write to, batch by batch, in the format of :meth:`GateBits.save`; for gates that do not fit into
            memory. It appears when all is written. The result is memory-mapped from it.
        max_pool: record the choices of every 2-d max-pool too, as layers of kind "select" (docs/math.md, section 9).
        progress: a bar (tqdm) over the batches. None: on a terminal, once it has taken a second.

    Returns:
        GateBits on the data's device (with `out`: on the CPU).

    Raises:
        TypeError, ValueError: an argument of another form; data on another device or without rows; a model that calls
            no ReLU, or other ones in different batches. What the model raises goes through. The model is left as it
            was in any case.
    """
    require_model(model)
    require_count(batch_size)
    total = len(data) if isinstance(data, Tensor) and data.dim() else None
    batches = batches_of(data, batch_size)
    rows: Rows = RowsInMemory(total) if out is None else RowsInFile(file_at(out, "out"))
    count = operator.length_hint(data, 0) if total is None else -(-total // batch_size)
    recorder = Recorder(model, max_pool)
    with ExitStack() as stack:
        for context in (rows, recorder, evaluating(model), uncompiled()):
            stack.enter_context(context)
        for index, inputs in enumerate(with_bar(batches, "recording gates", "batch", count, progress)):
            rows.add(recorder.gates_of(inputs, index))
        recorder.finish()
        return rows.finish()
