"""GateBits: the hard gates of a network on many inputs, one bit per gate (docs/math.md, section 6)."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.utils.data._utils.collate import default_collate_fn_map

from gatedops.arrays import as_tensor
from gatedops.atomic_file import file_at, written_whole
from gatedops.gate_args import no_such_layer, require_gate_bits, rows_at
from gatedops.gatefile import FILE_FORMAT, read_words
from gatedops.layout import GateLayer, layer_words
from gatedops.ops.checks import require_device, require_dtype, require_tensor
from gatedops.ops.gates import SOURCES, pack_layer, unpack_layer
from gatedops.scalars import whole_number
from gatedops.tables import ShownAsTable, Table, counted


@dataclass(frozen=True, eq=False, repr=False)
class GateBits(ShownAsTable):
    """Hard gates of ``n`` inputs, layer after layer, one bit each. Bit j of a layer is bit ``j % 32`` of its word
    ``j // 32``; it is 1 if the pre-activation is greater than 0.

    A GateBits behaves like a list of its inputs: ``len(bits)`` is n, ``bits[3]``, ``bits[:10]`` and ``bits[mask]`` are
    rows, a loop visits one input after another, and a GateBits without inputs is false. ``bits["fc1"]`` is one layer.
    ``torch.utils.data.DataLoader`` takes a GateBits as a data set, alone or beside labels in a ``TensorDataset`` or
    ``StackDataset``, and joins rows into batches.

    Args:
        words: int32 ``(n, W)``, the words of a row contiguous.
        layers: one record per layer.

    Raises:
        TypeError, ValueError: words or layers have another form, or a layer lies outside the row.
    """

    words: Tensor
    layers: tuple[GateLayer, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.words, Tensor):
            raise TypeError(f"words: got {type(self.words).__name__}, needs an int32 tensor (n, W)")
        if self.words.dtype != torch.int32 or self.words.dim() != 2:
            raise ValueError(f"words: got {self.words.dtype} {tuple(self.words.shape)}, needs an int32 tensor (n, W)")
        if len(self.layers) == 0:
            raise ValueError("layers: got none, needs at least one layer")
        for layer in self.layers:
            if layer.first_word + layer.words > self.words.shape[1]:
                raise ValueError(f"layers: {layer.name!r} ends past the {self.words.shape[1]} words of a row")

    @staticmethod
    def pack(
        gates: Sequence[Tensor], names: Sequence[str] | None = None, kinds: Sequence[str] | None = None
    ) -> GateBits:
        """Packs pre-activations (float: a gate is on if q > 0; NaN is off) or masks (bool: as they are).

        Args:
            gates: one tensor or numpy array per layer, ``(n, *shape)`` with the shapes of :class:`GateLayer`, any
                strides.
            names: one per layer; default "0", "1", ...
            kinds: one per layer; default "select" for 5-d tensors, else "gate".
        """
        return _pack(_list_of_tensors(gates), names, kinds, "gates[{}]")

    def unpack(self) -> list[Tensor]:
        """Returns the gates as bool tensors ``(n, *shape)``, one per layer."""
        return [unpack_layer(self.words, layer) for layer in self.layers]

    @property
    def n(self) -> int:
        """Number of inputs (rows)."""
        return self.words.shape[0]

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of gates in each layer."""
        return tuple(layer.width for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Number of bytes in the words of all rows."""
        return self.words.numel() * self.words.element_size()

    @property
    def device(self) -> torch.device:
        return self.words.device

    def __len__(self) -> int:
        """Number of inputs, n."""
        return self.n

    def size(self, dim: int | None = None) -> int | torch.Size:
        """The size of a tensor whose only axis is the inputs: ``size(0)`` is n. TensorDataset of torch asks for it."""
        shape = torch.Size((self.n,))
        return shape if dim is None else shape[dim]

    def __iter__(self) -> Iterator[GateBits]:
        """Yields one input after another, each as a GateBits of one row."""
        return (self[row] for row in range(self.n))

    def __contains__(self, name: object) -> bool:
        """Whether a layer has this name."""
        if not isinstance(name, str):
            raise TypeError(f"in: got {type(name).__name__}, needs the name of a layer")
        return any(layer.name == name for layer in self.layers)

    def __getitem__(self, rows: Any) -> GateBits:
        """Returns the given rows (an int, which gives one row, a slice, a list, or a tensor or numpy array of ints or
        bools), or, for a string, all rows of the layer of this name, which share the words without a copy.

        Raises:
            IndexError: a row past the end, or a mask of another length. KeyError (a ValueError as well): no layer, or
            more than one, has this name. TypeError: not such an index.
        """
        if isinstance(rows, str):
            return replace(self, layers=(self._layer(rows, "layer"),))
        if isinstance(rows, tuple):
            raise TypeError("rows: GateBits has one axis to index, its inputs; use select_layers to select layers")
        return replace(self, words=self.words[rows_at(rows, self.n, self.device)])

    def select_layers(self, selection: Sequence[str | int]) -> GateBits:
        """Returns the layers of these names or indices, in the order given; they share the words without a copy."""
        if isinstance(selection, str) or not isinstance(selection, Iterable) or whole_number(selection) is not None:
            raise TypeError(f"selection: got {selection!r}, needs a list of layer names or indices")
        selection = list(selection)
        if not selection:
            raise ValueError("selection: got none, needs at least one layer")
        return replace(self, layers=tuple(self._layer(key, "selection") for key in selection))

    def layers_of(self, selection: Sequence[str | int]) -> GateBits:
        """The old name of :meth:`select_layers`, kept for one release; a call warns."""
        warnings.warn(
            "GateBits.layers_of is now select_layers; the next release removes the old name: call the new one",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.select_layers(selection)

    def _layer(self, key: str | int, argument: str) -> GateLayer:
        names = [layer.name for layer in self.layers]
        if isinstance(key, str):
            if names.count(key) != 1:
                raise no_such_layer(key, names, argument)
            return self.layers[names.index(key)]
        if whole_number(key) is None:
            raise TypeError(f"{argument}: got {key!r}, needs names or indices of layers")
        if not -len(names) <= key < len(names):
            raise IndexError(f"{argument}: layer {key} is out of range for {len(names)} layers")
        return self.layers[key]

    def to(
        self,
        device: torch.device | str | int | Tensor | GateBits | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
        copy: bool = False,
    ) -> GateBits:
        """Returns the same gates on another device; the arguments are those of ``Tensor.to``.

        Args:
            device: a device, the number of a GPU, or a tensor or GateBits, whose device is taken.
            dtype: None or torch.int32, the dtype of the words, because gates are bits.
            non_blocking, copy: as in ``Tensor.to``.

        Raises:
            TypeError: another dtype. ValueError: torch cannot use the device here.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        if dtype not in (None, torch.int32):
            raise TypeError(
                f"dtype: got {dtype}, but gates are bits in int32 words; unpack() gives bool tensors, "
                f"which .to({dtype}) converts"
            )
        if device is None:
            device = self.device
        elif isinstance(device, (Tensor, GateBits)):
            device = device.device
        elif isinstance(device, int):
            accelerator = torch.accelerator.current_accelerator()
            device = f"{accelerator.type if accelerator else 'cuda'}:{device}"
        require_device(device, "device")
        return replace(self, words=self.words.to(device, non_blocking=non_blocking, copy=copy))

    def cpu(self) -> GateBits:
        """Returns the same gates in the memory of the CPU."""
        return self.to("cpu")

    def cuda(self, device: torch.device | str | int | None = None, non_blocking: bool = False) -> GateBits:
        """Returns the same gates on a GPU, by default the current one; ValueError if torch sees no GPU."""
        return self.to("cuda" if device is None else device, non_blocking=non_blocking)

    def pin_memory(self) -> GateBits:
        """Returns a copy in pinned memory, from which GPUs copy asynchronously; ValueError if torch sees no GPU."""
        if not torch.accelerator.is_available():
            raise ValueError("pin_memory: torch sees no GPU here, and pinned memory is only for GPUs; leave it out")
        return replace(self, words=self.words.pin_memory())

    def clone(self) -> GateBits:
        """Returns a copy of the gates, in memory of its own."""
        return replace(self, words=self.words.clone(memory_format=torch.contiguous_format))

    def __copy__(self) -> GateBits:
        return replace(self)

    def __getstate__(self) -> dict[str, Any]:
        """Returns what is pickled: only the words of these rows and layers, even if they are a view of more."""
        own = self.compact()
        stored = own.words.untyped_storage().nbytes()
        return {"words": own.words if stored == own.nbytes else own.words.clone(), "layers": own.layers}

    def compact(self) -> GateBits:
        """Returns the same gates with the layers one right after another and nothing else in a row."""
        layers, first, spans = [], 0, []
        for layer in self.layers:
            size = layer_words(layer.positions, layer.channels)
            spans.append(self.words[:, layer.first_word : layer.first_word + size])
            layers.append(replace(layer, first_word=first))
            first += size
        if tuple(layers) == self.layers and first == self.words.shape[1]:
            return replace(self, words=self.words.contiguous())
        return GateBits(torch.cat(spans, dim=1), tuple(layers))

    @staticmethod
    def cat(parts: Sequence[GateBits]) -> GateBits:
        """Joins the rows of several GateBits of the same layers, one after another."""
        parts = list(parts)
        if not parts:
            raise ValueError("parts: got none, needs at least one GateBits")
        for index, part in enumerate(parts):
            require_gate_bits(part, f"parts[{index}]")
            require_same_layers(part, parts[0], f"parts[{index}]", "parts[0]")
        compact = [part.compact() for part in parts]
        return replace(compact[0], words=torch.cat([part.words for part in compact]))

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same layers (names, shapes, kinds) and the same gates."""
        if not isinstance(other, GateBits):
            return NotImplemented
        a, b = self.compact(), other.compact()
        return a.layers == b.layers and a.device == b.device and torch.equal(a.words, b.words)

    # A GateBits holds a tensor, which can change.
    __hash__ = None  # type: ignore[assignment]

    def table(self) -> Table:
        """Lists the layers: the name, the shape of the gates of one input, and their number."""
        select = any(layer.kind == "select" for layer in self.layers)
        rows = [
            (layer.name, "x".join(map(str, layer.shape)), f"{layer.width:,}", *([layer.kind] if select else []))
            for layer in self.layers
        ]
        title = f"GateBits of {counted(self.n, 'input')}: {counted(len(self.layers), 'layer')}"
        head = ("layer", "shape", "gates", *(["kind"] if select else []))
        return Table(f"{title}, {counted(sum(self.widths), 'gate')}, on {self.device}", head, tuple(rows))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file, whole or not at all.

        Raises:
            TypeError, ValueError: path is not a path, is a folder, or lies in a folder that does not exist.
        """
        from safetensors.torch import save_file

        path = file_at(path, "path")
        compact = self.compact()
        layers = [[layer.name, list(layer.shape), layer.kind] for layer in self.layers]
        metadata = {"format": FILE_FORMAT, "layers": json.dumps(layers)}
        with written_whole(path) as part:
            save_file({"words": compact.words.cpu()}, part, metadata=metadata)

    @staticmethod
    def load(path: str | os.PathLike[str], mmap: bool = False) -> GateBits:
        """Reads what :meth:`save` wrote.

        Args:
            mmap: leave the words in the file and map them into memory, where they are read on demand; writes to them do
                not reach the file.

        Raises:
            FileNotFoundError: the file does not exist. ValueError: the file is damaged or holds something else.
        """
        words, metadata = read_words(Path(path), mmap)
        if metadata.get("format") != FILE_FORMAT:
            raise ValueError(f"{path}: holds no GateBits; write it with GateBits.save")
        try:
            layers, first = [], 0
            for name, shape, kind in json.loads(metadata["layers"]):
                layers.append(GateLayer(name, tuple(shape), kind, first))
                first += layer_words(layers[-1].positions, layers[-1].channels)
            return GateBits(words, tuple(layers))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: the record of its layers is damaged ({error})") from None


def pack_gates(q: Tensor) -> GateBits:
    """Packs the pre-activations of one layer, one bit per gate.

    Args:
        q: a tensor or numpy array ``(n, w)``, ``(n, T, C)``, ``(n, C, H, W)`` or select
            ``(n, K, C, H, W)``; float32, float64, bfloat16 or float16 (a gate is on if q > 0 strictly; NaN is off) or
            bool (as it is). Any strides.

    Returns:
        GateBits with one layer, named "0".

    Raises:
        TypeError, ValueError: q does not have such a shape and dtype, or has no gates.
    """
    return _pack([as_tensor(q, "q")], None, None, "q")


def unpack_gates(bits: GateBits) -> list[Tensor]:
    """Returns the gates of each layer as a bool tensor ``(n, *shape)``; the inverse of packing."""
    require_gate_bits(bits, "bits")
    return bits.unpack()


def _pack(gates: list[Tensor], names: Sequence[str] | None, kinds: Sequence[str] | None, argument: str) -> GateBits:
    """Packs one tensor per layer; errors call a tensor `argument`, with the tensor's index filled in."""
    for index, q in enumerate(gates):
        _require_packable(q, gates[0], argument.format(index), argument.format(0))
    names = _one_per_layer(names, "names", gates, [str(i) for i in range(len(gates))])
    kinds = _one_per_layer(kinds, "kinds", gates, ["select" if q.dim() == 5 else "gate" for q in gates])
    layers, first, words = [], 0, []
    for q, name, kind in zip(gates, names, kinds, strict=True):
        layers.append(GateLayer(name, tuple(q.shape[1:]), kind, first))
        words.append(pack_layer(q, kind))
        first += words[-1].shape[1]
    return GateBits(words[0] if len(words) == 1 else torch.cat(words, dim=1), tuple(layers))


def _require_packable(q: Tensor, first: Tensor, name: str, first_name: str) -> None:
    require_tensor(q, name)
    if not (q.is_floating_point() or q.is_complex() or q.dtype == torch.bool):
        raise TypeError(f"{name}: got {q.dtype}, needs pre-activations (a float dtype) or masks: .bool() makes masks")
    require_dtype(q.dtype, name, SOURCES)
    if q.dim() < 2 or q.dim() > 5 or 0 in q.shape[1:]:
        raise ValueError(f"{name}: got shape {tuple(q.shape)}, needs (n, *shape of the layer) with at least one gate")
    if q.shape[0] != first.shape[0]:
        raise ValueError(f"{name}: got {q.shape[0]} rows, {first_name} has {first.shape[0]}")
    if q.device != first.device:
        raise ValueError(f"{name}: is on {q.device}, {first_name} is on {first.device}")


def require_same_layers(a: GateBits, b: GateBits, a_name: str, b_name: str) -> None:
    """Raises ValueError unless a and b have layers of the same shapes and kinds, in the same order."""
    if len(a.layers) != len(b.layers):
        counts = f"{a_name}: has {counted(len(a.layers), 'layer')}, {b_name} has {len(b.layers)}"
        raise ValueError(f"{counts}; both need the same shapes and kinds: the gates of one architecture")
    for index, (one, other) in enumerate(zip(a.layers, b.layers, strict=True)):
        if (one.shape, one.kind) != (other.shape, other.kind):
            raise ValueError(
                f"{a_name}: layer {index} ({one.name!r}) has shape {one.shape} and kind {one.kind!r}, that of {b_name}"
                f" {other.shape} and {other.kind!r}; both need the same shapes and kinds: the gates of one architecture"
            )
    if a.device != b.device:
        raise ValueError(f"{a_name}: is on {a.device}, {b_name} is on {b.device}")


def _list_of_tensors(gates: Sequence[Tensor]) -> list[Tensor]:
    if isinstance(gates, Tensor):
        raise TypeError("gates: got a tensor, needs a list with one tensor per layer: pack([gates])")
    if isinstance(gates, Mapping):
        raise TypeError(
            f"gates: got {type(gates).__name__}, needs a list with one tensor per layer: pack(list(gates.values()), "
            "names=list(gates))"
        )
    gates = [as_tensor(q, f"gates[{index}]") for index, q in enumerate(gates)]
    if not gates:
        raise ValueError("gates: got an empty list, needs at least one layer")
    return gates


def _one_per_layer(given: Sequence[str] | None, name: str, gates: list[Tensor], default: list[str]) -> list[str]:
    if given is None:
        return default
    if isinstance(given, str) or len(given) != len(gates):
        raise ValueError(f"{name}: got {given!r}, needs a list of {len(gates)} strings, one per layer")
    return [str(value) for value in given]


def _flatten(bits: GateBits) -> tuple[list[Tensor], tuple[GateLayer, ...]]:
    return [bits.words], bits.layers


def _unflatten(values: Any, layers: Any) -> GateBits:
    # Transformations replace tensors by placeholders, which the checks of __init__ would refuse.
    bits = object.__new__(GateBits)
    object.__setattr__(bits, "words", next(iter(values)))
    object.__setattr__(bits, "layers", layers)
    return bits


def _dump_layers(layers: tuple[GateLayer, ...]) -> list[list[Any]]:
    return [[layer.name, list(layer.shape), layer.kind, layer.first_word] for layer in layers]


def _load_layers(dumped: list[list[Any]]) -> tuple[GateLayer, ...]:
    return tuple(GateLayer(name, tuple(shape), kind, first) for name, shape, kind, first in dumped)


pytree.register_pytree_node(
    GateBits,
    _flatten,
    _unflatten,
    serialized_type_name="gatedops.GateBits",
    to_dumpable_context=_dump_layers,
    from_dumpable_context=_load_layers,
    flatten_with_keys_fn=lambda bits: ([(pytree.GetAttrKey("words"), bits.words)], bits.layers),
)
torch.serialization.add_safe_globals([GateBits, GateLayer])


def _collate(parts: Sequence[GateBits], *, collate_fn_map: Any = None) -> GateBits:
    """Joins rows into a batch, for torch's DataLoader."""
    return GateBits.cat(parts)


default_collate_fn_map[GateBits] = _collate
