"""GateRecorder: records gate statistics of a fixed set of inputs while a net trains."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gatedops.arrays import as_tensor
from gatedops.atomic_file import write_text
from gatedops.devices import has_float64
from gatedops.gatebits import GateBits
from gatedops.scalars import whole_number
from gatedops.stats.activity import gate_stats
from gatedops.stats.alignment import npk_alignments
from gatedops.stats.change import gate_change
from gatedops.stats.checks import labels_of, require_same_inputs
from gatedops.stats.classes import class_overlap
from gatedops.stats.regions import count_regions
from gatedops.tables import ShownAsTable, Table, counted, decimal, percent, whole
from gatedops.trace import record_gates
from gatedops.trace.checks import devices_of, require_device, require_model

FORMAT = "gatedops.GateRecorder/1"
_HISTORY = "history.json"


class GateRecorder(ShownAsTable):
    """Records gate statistics of a fixed probe set in any training loop. Call ``recorder(model, x, step)`` whenever you
    like, or ``recorder.record(step)`` if model and x were given at the start.

    Every record has, for each layer and for the whole net, ``share_on``, ``dead``, ``always_on``, ``entropy``
    (:func:`gatedops.gate_stats`), ``regions`` (:func:`gatedops.count_regions`), ``change_from_first`` and
    ``change_from_previous`` (share of gates, :func:`gate_change`), ``alignment_to_first`` and ``alignment_to_previous``
    (CKA of the kernels, :func:`npk_alignment`), and with labels ``overlap_within`` and ``overlap_across``
    (:func:`class_overlap`). Layers with positions have ``dead_channels`` and ``always_on_channels`` too. A number that
    is not defined (a change from the previous record in the first one, the alignment of a constant kernel) is None. The
    cost grows with the square of the number of inputs, so a probe set of a few hundred to a few thousand is good.

    ``history`` holds the records as plain dicts, lists and numbers, ready for json. Only the gates of the first and the
    last record are kept, on the model's device, or on the CPU if that device has no float64.

    Args:
        model, x: the model and the inputs that :meth:`record` records; give both or neither.
        labels: one integer for each input of the probe set; without them no overlaps are recorded.
        batch_size: rows of x that go through the model at a time.

    Raises:
        TypeError, ValueError: labels are not integers, or have fewer than two classes; only one of model and x is
            given.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        x: Tensor | None = None,
        labels: Tensor | Sequence[int] | None = None,
        *,
        batch_size: int = 256,
    ) -> None:
        if (model is None) != (x is None):
            raise ValueError(f"{'model' if model is None else 'x'}: is missing; record(step) needs both model and x")
        x = None if x is None else as_tensor(x, "x")
        if labels is not None:
            labels = labels_of(labels, None if x is None else len(x))
        self._model, self._x, self._labels, self._batch_size = model, x, labels, batch_size
        self._first: GateBits | None = None
        self._last: GateBits | None = None
        self.history: dict[str, Any] = {"format": FORMAT, "inputs": None, "digest": None, "records": []}

    def record(self, step: int) -> dict[str, Any]:
        """Records the model on the inputs given at the start; see :meth:`__call__`."""
        if self._model is None or self._x is None:
            raise ValueError("record: has no model and x; give them to GateRecorder, or call recorder(model, x, step)")
        return self(self._model, self._x, step)

    def __call__(self, model: nn.Module, x: Tensor, step: int) -> dict[str, Any]:
        """Records the gates of a model, which is left as it was.

        Args:
            model: as :func:`gatedops.record_gates` takes it.
            x: the probe set ``(n, ...)``, the same in every call.
            step: a number that grows from call to call.

        Returns:
            The new record, the last of ``history["records"]``.

        Raises:
            TypeError, ValueError: inputs, layers or labels differ from those before, or the step does not grow. Then
                nothing is recorded.
        """
        x = as_tensor(x, "x")
        require_model(model)
        require_device(devices_of(model), x, "x")
        step = self._checked(step)
        digest = _digest(x)
        if self.history["digest"] not in (None, digest):
            raise ValueError("x: holds other inputs than the first record, needs the same inputs in every call")
        bits = record_gates(model, x, self._batch_size, progress=False)
        # Kernels are compared in float64.
        if not has_float64(bits.device):
            bits = bits.to("cpu")
        if self._first is not None and self._last is not None:
            # Gates that were read from a file are on the CPU.
            self._first, self._last = self._first.to(bits.device), self._last.to(bits.device)
            require_same_inputs(bits, self._first, "model", "the first record")
        record = {"step": step, **self._statistics(bits)}
        self.history.update(inputs=bits.n, digest=digest)
        self.history["records"].append(record)
        self._first = bits if self._first is None else self._first
        self._last = bits
        return record

    def table(self) -> Table:
        """The statistics of the net, with a row for each step."""
        records, inputs = self.history["records"], self.history["inputs"]
        rows = tuple(
            (
                str(record["step"]),
                percent(net["share_on"]),
                whole(net["dead"]),
                whole(net["always_on"]),
                decimal(net["entropy"]),
                whole(net["regions"]),
                percent(net["change_from_first"]),
                decimal(net["alignment_to_first"]),
            )
            for record in records
            for net in [record["net"]]
        )
        head = ("step", "on %", "dead", "always on", "entropy", "regions", "changed %", "alignment to first")
        of = f" of {counted(inputs, 'input')}" if records else ""
        return Table(f"GateRecorder: {counted(len(records), 'record')}{of}", head, rows)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the history (``history.json``) and the gates that the next record is compared with into a folder.

        The folder always holds a state to go on from: new gates are written first, then the history, and then the old
        gates are removed.

        Raises:
            ValueError: nothing is recorded yet.
        """
        if self._first is None or self._last is None:
            raise ValueError("save: nothing is recorded yet; call recorder(model, x, step) first")
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        files = {path / name: bits for name, bits in zip(self._files(), (self._first, self._last), strict=True)}
        for file, bits in files.items():
            bits.save(file)
        labels = None if self._labels is None else self._labels.tolist()
        write_text(path / _HISTORY, json.dumps({**self.history, "labels": labels}, allow_nan=False))
        for old in set(path.glob("gates-*.safetensors")) - set(files):
            old.unlink()

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        model: nn.Module | None = None,
        x: Tensor | None = None,
        *,
        batch_size: int = 256,
    ) -> GateRecorder:
        """Reads a recorder that :meth:`save` wrote, to look at it or to go on.

        Args:
            folder: the folder that :meth:`save` wrote into.
            model, x, batch_size: as in the constructor.

        Raises:
            FileNotFoundError: the folder or a file in it is missing.
            ValueError: a file is damaged, or x has another number of inputs than there are labels.
        """
        history, labels = _read_history(Path(folder) / _HISTORY)
        recorder = cls(model, x, labels, batch_size=batch_size)
        recorder.history = history
        recorder._first, recorder._last = (GateBits.load(Path(folder) / name) for name in recorder._files())
        return recorder

    def _files(self) -> tuple[str, str]:
        """The files of the gates of the first and the last record."""
        records = self.history["records"]
        first, last = (f"gates-{record['step']}.safetensors" for record in (records[0], records[-1]))
        return first, last

    def _checked(self, step: Any) -> int:
        """The step as an int, which json takes."""
        number, records = whole_number(step), self.history["records"]
        if number is None:
            raise TypeError(f"step: got {type(step).__name__}, needs an int")
        if records and number <= records[-1]["step"]:
            raise ValueError(f"step: got {number} after {records[-1]['step']}, needs to grow from record to record")
        return number

    def _statistics(self, bits: GateBits) -> dict[str, Any]:
        """The statistics of the net and of each layer."""
        stats, regions = gate_stats(bits), count_regions(bits)
        found: list[dict[str, Any]] = [
            {"name": one.name, **one.summary(), "regions": count}
            for one, count in zip((stats.net, *stats.layers), (regions.net, *regions.layers), strict=True)
        ]
        others = {"first": bits if self._first is None else self._first, "previous": self._last}
        for name, other in others.items():
            for one, values in zip(found, _compared(bits, other, len(found)), strict=True):
                one[f"change_from_{name}"], one[f"alignment_to_{name}"] = values
        if self._labels is not None:
            overlap = class_overlap(bits, self._labels)
            for one, layer in zip(found, (overlap.net, *overlap.layers), strict=True):
                one["overlap_within"], one["overlap_across"] = layer.within, layer.across
        return {"net": found[0], "layers": found[1:]}


def _read_history(path: Path) -> tuple[dict[str, Any], list[int] | None]:
    """Reads the history from a file, and the labels of the inputs."""
    try:
        history = json.loads(path.read_text(encoding="utf-8"))
        labels = history.pop("labels")
        if history["format"] != FORMAT or not isinstance(history["records"][-1]["step"], int):
            raise ValueError(f"format {history['format']!r}")
        return {key: history[key] for key in ("format", "inputs", "digest", "records")}, labels
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: holds no recording of gates or is damaged ({error})") from None


def _compared(bits: GateBits, other: GateBits | None, count: int) -> list[tuple[float | None, float | None]]:
    """The share of gates that changed and the alignment: of the net, then of each layer."""
    if other is None:
        return [(None, None)] * count
    change = gate_change(other, bits)
    parts = [None, *range(len(bits.layers))]
    alignments = [_alignment(other, bits, part) for part in parts]
    return [(one.share, value) for one, value in zip((change.net, *change.layers), alignments, strict=True)]


def _alignment(a: GateBits, b: GateBits, layer: int | None) -> float | None:
    pair = [a, b] if layer is None else [a.select_layers([layer]), b.select_layers([layer])]
    value = float(npk_alignments(pair, progress=False)[0, 1])
    return None if math.isnan(value) else value


def _digest(x: Tensor) -> str:
    """A digest by which we see whether inputs are the same as before."""
    values = x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.blake2b(values.tobytes() + str((x.dtype, tuple(x.shape))).encode(), digest_size=16).hexdigest()
