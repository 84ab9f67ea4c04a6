"""record_gates: the gates of any ReLU network on a data set."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from gatedops.arrays import as_tensor
from gatedops.atomic_file import file_at
from gatedops.gatebits import GateBits
from gatedops.ops.checks import require_option
from gatedops.progress import with_bar
from gatedops.trace.batches import batches_of, require_count, row_count, whole_batches_of
from gatedops.trace.checks import devices_of, in_mode, require_device, require_model, require_sizes, uncompiled
from gatedops.trace.recorder import Recorder
from gatedops.trace.rows import Rows, RowsInFile, RowsInMemory
from gatedops.trace.state import preserved
from gatedops.trace.wrappers import unwrapped


def record_gates(
    model: nn.Module,
    data: Tensor | Iterable[Any],
    batch_size: int = 256,
    out: str | os.PathLike[str] | None = None,
    *,
    call: Callable[[nn.Module, Any], Any] | None = None,
    training: bool = False,
    max_pool: bool = False,
    activations: Literal["relu", "piecewise"] = "relu",
    progress: bool | None = None,
) -> GateBits:
    """Records the gates of every ReLU that a model calls, in call order: a gate is on if its pre-activation is > 0.

    It sees ReLUs as modules, functions and methods, in place or not, in any module, torch's own transformer and RNN
    layers included, and does not change the model. It also sees ReLUs under other names: clamp(q, min=0),
    threshold(q, 0, 0), maximum(q, 0), where(q > 0, q, 0), q * (q > 0), q.masked_fill(q <= 0, 0). A ReLU of a tensor
    that no input changes, such as a weight, has no gates. The model runs without gradients and uncompiled, and each
    batch is packed to one bit a gate as it passes. Layers are named after the module that is the ReLU ("features.1"),
    or else the one that calls it ("layer1.0.relu"); the second call of that name is "layer1.0.relu#2".

    record_gates finds where the inputs lie in a tensor inside the model, and does not guess. Before the first batch it
    calls the model on a few rows of that batch, and then it looks for their values in the whole batch. So tokens may be
    flattened, ``(n * T, C)``, and the inputs need not be the first axis, ``(T, n, C)``. If the inputs are not an axis
    of a gate, an error names its layer. If the inputs of a batch change each other's gates, a warning says so. The same
    pass also looks at the operators that torch really runs, and a warning names the layer of each rectifier that was
    missed.

    Args:
        model: any module; ``model(inputs)`` is called with batches. The pre-activations of one input are ``(w,)``,
            ``(T, C)``, ``(C, H, W)`` or ``(C, D, H, W)``; a single number is taken as ``(1,)``, a Conv1d's ``(C, L)``
            as ``(T, C)``.
        data: inputs ``(n, ...)`` on the model's device, as a tensor or numpy array, cut into batches; or a DataLoader
            or another iterable of batches, each the inputs or a tuple that starts with them. With `call` a batch may be
            anything that holds a tensor whose rows are the inputs, and data also a dict or tuple of tensors, which is
            cut into batches.
        batch_size: rows at a time, if data is cut into batches.
        out: a file to write to, batch by batch, in the format of :meth:`GateBits.save`; for gates that do not fit into
            memory. The file appears when all is written, and the result is memory-mapped from it.
        call: how the model takes a batch, such as ``lambda model, batch: model(**batch)``.
        training: run in training mode: batch norm takes the statistics of each batch, dropout drops. False: run in
            evaluation mode.
        max_pool: record the choices of every 1-d and 2-d max-pool too, as layers of kind "select" (docs/math.md,
            section 9); sequences are images of one row.
        activations: "relu": record ReLUs only. "piecewise": record, in call order with the ReLUs, every activation of
            two slopes. LeakyReLU, PReLU, RReLU in evaluation mode and abs have a gate that is on where the
            pre-activation is > 0; for them, :func:`gatedops.npk_gram` takes the slope where it is off
            (``npk_gram(..., slope=0.01)``). ReLU6, hardtanh and clamp with two finite bounds have a gate that is on
            where the pre-activation is strictly between the bounds.
        progress: show a bar (tqdm) over the batches. None: on a terminal, once it has taken a second.

    Returns:
        GateBits on the data's device (with `out`: on the CPU).

    Raises:
        TypeError, ValueError: an argument has another form; the data are on another device, have a dtype or shape that
            the model does not take, or have no rows; the model calls no activation that is recorded, calls others in
            different batches, or calls an RReLU in training mode if `activations` is "piecewise"; or the inputs are not
            found in a pre-activation. Other errors of the model go through. The model is left as it was in any case,
            its buffers and the state of random numbers included.
    """
    require_model(model)
    require_sizes(model)
    batch_size = require_count(batch_size)
    require_option("activations", activations, ("relu", "piecewise"))
    if call is not None and not callable(call):
        raise TypeError(
            f"call: got {type(call).__name__}, needs a function such as lambda model, batch: model(**batch)"
        )
    model = unwrapped(model)
    data = as_tensor(data, "data") if isinstance(data, np.ndarray) else data
    batches = _batches(model, data, batch_size) if call is None else whole_batches_of(data, batch_size)
    total = row_count(data) if isinstance(data, (Tensor, dict)) else None
    rows: Rows = RowsInMemory(total) if out is None else RowsInFile(file_at(out, "out"))
    count = operator.length_hint(data, 0) if total is None else -(-total // batch_size)
    recorder = Recorder(model, call or nn.Module.__call__, max_pool, training, activations == "piecewise")
    with ExitStack() as stack:
        for context in (rows, recorder, preserved(model), in_mode(model, training), uncompiled()):
            stack.enter_context(context)
        for index, batch in enumerate(with_bar(batches, "recording gates", "batch", count, progress)):
            rows.add(recorder.gates_of(batch, index))
        recorder.finish()
        return rows.finish()


def _batches(model: nn.Module, data: Any, batch_size: int) -> Iterator[Tensor]:
    """The inputs of each batch, on the model's device."""
    devices = devices_of(model)

    def checked(inputs: Tensor) -> Tensor:
        require_device(devices, inputs, "data")
        return inputs

    return map(checked, batches_of(data, batch_size))
