"""Checks arguments that hold gates or select rows of them; each error says what to do."""

from __future__ import annotations

import difflib
import operator
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gatedops.arrays import as_tensor
from gatedops.tables import listed

_INDICES = (torch.int64, torch.int32, torch.int16, torch.int8)


def require_gate_bits(value: Any, name: str) -> None:
    """Raises TypeError unless the value is a GateBits; the message says how to make a GateBits of it."""
    from gatedops.gatebits import GateBits

    if not isinstance(value, GateBits):
        hint = _how_to_make(value, GateBits)
        raise TypeError(f"{name}: got {type(value).__name__}, needs a GateBits{'; ' if hint else ''}{hint}")


def _how_to_make(value: Any, gate_bits: type) -> str:
    if isinstance(value, nn.Module):
        return "record_gates(net, x) makes one"
    if isinstance(value, Tensor) and value.dtype == torch.int32:
        return "GateBits(words, layers) makes one of packed words, record_gates(net, x) of a net"
    if isinstance(value, (Tensor, np.ndarray)):
        return (
            "GateBits.pack([...]) makes one of the gates (bool) or pre-activations (float) of each layer, "
            "record_gates(net, x) of a net"
        )
    if isinstance(value, (str, os.PathLike)):
        return "GateBits.load(path) reads one"
    if isinstance(value, Sequence) and len(value) > 0:
        if all(isinstance(one, gate_bits) for one in value):
            return "GateBits.cat(list) joins the rows of several"
        if all(isinstance(one, (Tensor, np.ndarray)) for one in value):
            return "GateBits.pack(list) makes one of a list with one tensor per layer"
    return "record_gates(net, x) makes one" if value is None else ""


class NoSuchLayer(KeyError, ValueError):
    """The error for a name that no layer, or more than one, has. It is a KeyError because names index a GateBits, and a
    ValueError because they are arguments too."""

    def __str__(self) -> str:
        # KeyError.__str__ would put quotes around the text.
        return ValueError.__str__(self)


def no_such_layer(name: str, names: Sequence[str], argument: str) -> NoSuchLayer:
    """Makes the error for a name that no layer, or more than one, has."""
    if names.count(name) > 1:
        places = [index for index, other in enumerate(names) if other == name]
        return NoSuchLayer(
            f"{argument}: {name!r} names {len(places)} of the layers {listed(names)}: "
            f"use their places, select_layers([{places[0]}])"
        )
    close = difflib.get_close_matches(name, names, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return NoSuchLayer(f"{argument}: {name!r} names 0 of the layers {listed(names)}{hint}")


def rows_at(
    rows: Any,
    n: int,
    device: torch.device,
    name: str = "rows",
    *,
    holder: str = "the gates are",
    hint: str = "; bits[name] and select_layers select layers",
) -> slice | Tensor:
    """Returns the rows that an index of GateBits selects: an int (as a slice of one row), a slice, a list, an array or
    a tensor of integers or of bools.

    Args:
        name: what errors call the index.
        holder: what errors say is on the device.
        hint: the end of the error about something that is not an index.

    Raises:
        IndexError: a row past the n rows, or a mask of another length. TypeError, ValueError: not such an index.
    """
    if _is_number(rows):
        row = operator.index(rows)
        if not -n <= row < n:
            raise IndexError(f"{name}: index {row} is out of range for {n} inputs")
        return slice(row % n, row % n + 1)
    if isinstance(rows, slice):
        if rows.step is None or operator.index(rows.step) > 0:
            return rows
        return torch.tensor(range(*rows.indices(n)), dtype=torch.int64, device=device)
    if rows is Ellipsis:
        return slice(None)
    if isinstance(rows, (list, range)):
        rows = _listed_rows(rows, name, hint)
    if isinstance(rows, np.ndarray):
        rows = as_tensor(rows, name)
    if not isinstance(rows, Tensor):
        raise TypeError(
            f"{name}: got {type(rows).__name__}, needs an int, a slice, a list or a tensor of ints or bools{hint}"
        )
    _require_index(rows, n, device, name, holder)
    return rows if rows.dtype == torch.bool else rows.long()


def _is_number(rows: Any) -> bool:
    """Whether rows is one number: an int, a numpy integer or an integer tensor without dimensions."""
    if isinstance(rows, Tensor):
        return rows.dim() == 0 and not rows.is_floating_point() and rows.dtype != torch.bool
    return isinstance(rows, (int, np.integer)) and not isinstance(rows, bool)


def _listed_rows(rows: Any, name: str, hint: str) -> Tensor:
    try:
        return torch.tensor(rows, dtype=None if len(rows) else torch.int64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}: got {rows!r}, needs ints or bools{hint}") from None


def _require_index(rows: Tensor, n: int, device: torch.device, name: str, holder: str) -> None:
    if rows.device not in (device, torch.device("cpu")):
        raise ValueError(f"{name}: is on {rows.device}, {holder} on {device}; move it with .to({str(device)!r})")
    if rows.dtype not in (*_INDICES, torch.bool):
        raise TypeError(
            f"{name}: got {rows.dtype}, needs int64 indices or a bool mask: convert it with .long() or .bool()"
        )
    if rows.dim() != 1:
        raise ValueError(f"{name}: got shape {tuple(rows.shape)}, needs one dimension")
    if rows.dtype == torch.bool and len(rows) != n:
        raise IndexError(f"{name}: got a mask of {len(rows)}, needs one bool for each of {n} inputs")
