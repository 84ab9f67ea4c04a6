"""GateCache: the frozen gates of a data set, computed once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gatedops.atomic_file import file_at
from gatedops.gate_args import require_gate_bits
from gatedops.gatebits import GateBits
from gatedops.nn.dgn import DGN
from gatedops.progress import with_bar
from gatedops.tables import ShownAsTable, Table
from gatedops.trace.batches import batches_of, require_count
from gatedops.trace.checks import devices_of, require_device
from gatedops.trace.record import record_gates
from gatedops.trace.rows import Rows, RowsInFile, RowsInMemory
from gatedops.trace.twin import GatedTwin
from gatedops.trace.wrappers import unwrapped


class GateCache(ShownAsTable):
    """The hard gates of a data set, one bit each, for training without running the frozen feature network:

        cache = GateCache.build(model, inputs)
        loss = cross_entropy(model(inputs[rows], gates=cache[rows]), labels[rows])

    A cache knows its layers, but not the feature network that they come from. So it cannot refuse the gates of another
    network of the same architecture.

    Args:
        bits: the gates of every row, as ``model.gates`` gives them.

    Raises:
        TypeError: bits is not a GateBits.
    """

    def __init__(self, bits: GateBits) -> None:
        require_gate_bits(bits, "bits")
        self.bits = bits

    @staticmethod
    def build(
        model: DGN | GatedTwin,
        data: Tensor | Iterable[Any],
        batch_size: int = 32,
        path: str | os.PathLike[str] | None = None,
        *,
        progress: bool | None = None,
    ) -> GateCache:
        """Runs the feature network once over the data and keeps its gates.

        torch rounds a matrix product differently for another number of rows, and that rounding may change a gate whose
        pre-activation is almost 0. So every batch of a tensor has the same number of rows. If you then train with
        batches of `batch_size` rows, the losses are those without a cache, bit for bit.

        Args:
            model: a DGN, a DLGN or a twin (:func:`gatedops.gated_twin`) with hard gates. If a twin has pool="feature",
                the choices of its 2-d max-pools are cached as well.
            data: inputs ``(n, ...)``, cut into batches; or an iterable of batches in the order of the rows, each the
                inputs or a tuple that starts with them.
            batch_size: rows at a time, if data is a tensor.
            path: a file to write to, batch by batch, in the format of :meth:`GateBits.save`. The file appears when all
                is written, and the gates are memory-mapped from it.
            progress: show a bar (tqdm) over the batches. None: on a terminal, once it has taken a second.

        Raises:
            TypeError, ValueError: an argument does not fit, and the error names it; the gates of the model are soft;
                the data have no rows; a twin has batch_norm="feature", or pool="feature" and a max-pool that is not
                2-d, which the error names.
        """
        model = _gated(model)
        if isinstance(model, DGN) and model.gate != "hard":
            raise ValueError("model: its gates are soft, which cannot be stored as bits; only hard gates are cached")
        batch_size = require_count(batch_size)
        total = len(data) if isinstance(data, Tensor) and data.dim() else None
        batches = _batches(data, batch_size)
        count = 0 if total is None else -(-total // batch_size)
        devices = devices_of(model)
        rows: Rows = RowsInMemory(total) if path is None else RowsInFile(file_at(path, "path"))
        filled = False
        with rows:
            for inputs, new in with_bar(batches, "caching gates", "batch", count, progress):
                require_device(devices, inputs, "data")
                gates = model.gates(inputs)
                if not filled and isinstance(model, GatedTwin):
                    _require_rows(model, inputs, gates)
                rows.add(gates[-new:])
                filled = True
            if not filled:
                raise ValueError("data: has no batches, needs at least one row")
            return GateCache(rows.finish())

    @staticmethod
    def load(path: str | os.PathLike[str]) -> GateCache:
        """Makes a cache of a file that :meth:`build` or :meth:`GateBits.save` wrote, memory-mapped.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or holds something else.
        """
        return GateCache(GateBits.load(path, mmap=True))

    def require_fits(self, model: DGN) -> None:
        """Raises ValueError if the layers of these gates are not those of the model. Raises TypeError for a twin: its
        layers are known only when it is called, and that call refuses gates that do not fit."""
        if not isinstance(model, DGN):
            raise TypeError(f"model: got {type(model).__name__}, needs a DGN or DLGN; a twin checks gates in its call")
        model.require_layers(self.bits)

    def __getitem__(self, rows: Any) -> GateBits:
        """The gates of these rows: an int (kept as one row), slice, index tensor or bool mask."""
        return self.bits[rows]

    def __len__(self) -> int:
        """The number of rows."""
        return self.bits.n

    def to(self, *args: Any, **kwargs: Any) -> GateCache:
        """A cache of the same gates on another device; arguments and errors are those of :meth:`GateBits.to`."""
        return GateCache(self.bits.to(*args, **kwargs))

    def cpu(self) -> GateCache:
        """A cache of the same gates in the memory of the CPU."""
        return GateCache(self.bits.cpu())

    def cuda(self, device: torch.device | str | int | None = None, non_blocking: bool = False) -> GateCache:
        """A cache of the same gates on a GPU, the current one by default; ValueError if torch sees no GPU."""
        return GateCache(self.bits.cuda(device, non_blocking))

    def table(self) -> Table:
        """The layers of the gates that it holds."""
        shown = self.bits.table()
        return Table(f"GateCache: {shown.title}", shown.head, shown.rows)


torch.serialization.add_safe_globals([GateCache])


def _gated(model: Any) -> DGN | GatedTwin:
    """The model without wrappers, such as the one of torch.compile."""
    inner = unwrapped(model) if isinstance(model, nn.Module) else model
    if not isinstance(inner, (DGN, GatedTwin)):
        raise TypeError(f"model: got {type(inner).__name__}, needs a DGN, a DLGN or a twin: gated_twin(model)")
    return inner


def _require_rows(twin: GatedTwin, inputs: Tensor, gates: GateBits) -> None:
    """Raises ValueError if one batch shows that the rows of the gates are not those of the inputs."""
    if inputs.is_meta:
        return
    found = record_gates(twin.feature, inputs, len(inputs), progress=False)
    ours = gates.select_layers([index for index, layer in enumerate(gates.layers) if layer.kind == "gate"]).compact()
    shapes = [[layer.shape for layer in bits.layers] for bits in (found, ours)]
    if shapes[0] != shapes[1] or not torch.equal(found.words, ours.words):
        raise ValueError(
            "model: the inputs are not the first axis of the tensors that its ReLUs work on, so a row of a cache would"
            " not belong to one input; put the inputs first in the model, or call the twin without gates="
        )


def _batches(data: Any, batch_size: int) -> Iterator[tuple[Tensor, int]]:
    """Batches, each with the number of new rows at its end: a tensor's last batch repeats earlier rows to be full."""
    batches = batches_of(data, batch_size)
    if not isinstance(data, Tensor):
        return ((inputs, len(inputs)) for inputs in batches)
    return (
        (data[max(0, min(start, len(data) - batch_size)) : start + batch_size], min(batch_size, len(data) - start))
        for start in range(0, len(data), batch_size)
    )
