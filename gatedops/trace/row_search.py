"""The search for the rows of the inputs inside a model.

Most models need one pass over a few rows in another order: the pass over the first batch must have the same values
for the same inputs (Comparison). The others, in which inputs change each other's values or chance does, need two passes
over the whole batch in two orders (row_plan).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from gatedops.trace.batches import rows_of, taken, tensors_of
from gatedops.trace.passes import Probe, Taken
from gatedops.trace.row_plan import FIRST, Arrangement, arrangement_of, is_close
from gatedops.trace.state import preserved

_FEW = 5  # rows of the first pass, from all over the batch: a model that sorts its inputs moves one of them


@dataclass(frozen=True)
class RowPlan:
    """Where the rows lie in what each call works on, in call order.

    Args:
        arrangements: None for a call that no input changes.
        missed: rectifiers that ran where no handler saw them.
        mixed: the first call in which the inputs of a batch change each other's values; "" where they do not.
    """

    arrangements: tuple[Arrangement | None, ...] = ()
    missed: tuple[str, ...] = ()
    mixed: str = ""

    def of(self, index: int, constant: bool) -> Arrangement | None:
        """The arrangement of the call of this index; where the passes did not get as far, rows come first."""
        if index < len(self.arrangements):
            return self.arrangements[index]
        return None if constant else FIRST


class UnprovenError(Exception):
    """One pass does not show where the rows lie."""


class NotFoundError(Exception):
    """The rows of the inputs are not found."""


class Comparison:
    """The values of a pass over a few rows of a batch, which those of the pass over the whole batch are compared with.

    Args:
        taken: what the calls of that pass work on.
        missed: rectifiers that ran where no handler saw them.
        order: the rows of that pass.
        rows: of the batch.
    """

    def __init__(self, taken: list[Taken], missed: tuple[str, ...], order: Tensor, rows: int) -> None:
        self._taken, self._missed, self._rows, self._few = taken, missed, rows, len(order)
        self._pairs = [(row, place) for place, row in enumerate(order.tolist())]
        self._found: list[Arrangement | None] = []

    def arrangement(self, values: Tensor, constant: bool) -> Arrangement | None:
        """The arrangement of the next call, from its values for the whole batch; None if no input changes them.

        Raises:
            UnprovenError: the values of an input are not the same in both passes.
        """
        if len(self._found) == len(self._taken):
            raise UnprovenError
        few = self._taken[len(self._found)].values
        is_same = is_close(values, few)
        if constant and values.dim() and few.dim():  # made for that many rows
            common = min(len(values), len(few))
            is_same = is_close(values[:common], few[:common])
        arrangement = None
        if not is_same:
            arrangement = arrangement_of(values, few, (self._rows, self._few), self._pairs)
            if arrangement is None:
                raise UnprovenError
        self._found.append(arrangement)
        return arrangement

    def plan(self) -> RowPlan:
        """What the comparison showed.

        Raises:
            UnprovenError: the pass over the whole batch called less.
        """
        if len(self._found) < len(self._taken):
            raise UnprovenError
        return RowPlan(tuple(self._found), self._missed)


def comparison(model: nn.Module, probe: Probe, batch: Any) -> Comparison | None:
    """A pass over a few rows of the batch; None where the model fails in it, or where values are not to be had."""
    if any(tensor.is_meta for tensor in tensors_of(batch)):
        return None
    order = _few_rows(batch)
    try:
        with preserved(model):
            return Comparison(*probe.values_of(taken(batch, order), watched=True), order, rows_of(batch) or 1)
    except Exception:  # the model's own: the pass over the batch itself shows it
        return None


def row_plan(model: nn.Module, probe: Probe, batch: Any, is_whole: bool) -> RowPlan:
    """Calls the model on a batch, and on the same batch with its rows in reverse order: so must be what its calls work
    on. A model that fails in these passes has the empty plan.

    Args:
        is_whole: the model takes no other number of rows. Its inputs may then be a whole, such as the nodes of a graph:
            if they do not follow the order, rows are taken to come first.

    Raises:
        ValueError: naming a rectifier in whose pre-activations the rows of the inputs are not found.
    """
    if any(tensor.is_meta for tensor in tensors_of(batch)):  # without values rows are taken to come first
        return RowPlan()
    try:
        return _Search(model, probe, batch, is_whole).plan()
    except NotFoundError as error:
        raise ValueError(str(error)) from None
    except Exception:  # the model's own: the pass over the batch itself shows it
        return RowPlan()


def _few_rows(batch: Any) -> Tensor:
    """Rows from all over the batch, in an order that is not theirs; never as many as the batch has, because an axis
    that is as long as the batch is not that of the rows then."""
    rows = rows_of(batch) or 1
    if rows <= _FEW:  # one row twice
        return torch.tensor([*reversed(range(rows)), 0], device="cpu")
    return torch.linspace(rows - 1, 0, _FEW, device="cpu").round().long()


class _Search:
    """Two passes of a model over a batch, and what they show."""

    def __init__(self, model: nn.Module, probe: Probe, batch: Any, is_whole: bool) -> None:
        self._model, self._probe, self._batch, self._is_whole = model, probe, batch, is_whole
        self._rows = rows_of(batch) or 1
        self._mixed = ""

    def plan(self) -> RowPlan:
        order = torch.arange(self._rows, device="cpu")
        before, missed = self._values(order, watched=True)
        after, _ = self._values(order.flip(0))
        pairs = [(place, self._rows - 1 - place) for place in range(self._rows)]
        found: list[Arrangement | None] = []
        for index, (one, other) in enumerate(zip(before, after, strict=False)):
            if one.constant and is_close(one.values, other.values):
                found.append(None)
                continue
            arrangement = arrangement_of(one.values, other.values, (self._rows, self._rows), pairs)
            if arrangement is None:
                arrangement = self._of_another(index, one)
            elif not self._mixed and not self._is_whole:
                self._mixed = one.name
            found.append(arrangement)
        return RowPlan(tuple(found), missed, self._mixed)

    def _values(self, order: Tensor, watched: bool = False) -> tuple[list[Taken], tuple[str, ...]]:
        with preserved(self._model), _without_dropout(self._model):
            return self._probe.values_of(taken(self._batch, order), watched)

    def _of_another(self, index: int, one: Taken) -> Arrangement:
        """The arrangement of values that do not follow the order of the rows."""
        comes_first = FIRST.fits(tuple(one.values.shape), self._rows)
        if comes_first and (self._is_whole or (not self._probe.reorders and self._is_random(index, one))):
            return FIRST
        raise NotFoundError(_not_found(one, self._rows))

    def _is_random(self, index: int, one: Taken) -> bool:
        """Whether the values change from pass to pass with the random numbers drawn."""
        with preserved(self._model), _without_dropout(self._model):
            torch.manual_seed(int(torch.randint(2**31, (), device="cpu")))
            again, _ = self._probe.values_of(self._batch)
        return index < len(again) and not is_close(one.values, again[index].values)


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Dropout layers in evaluation mode: what they draw for one place would hide where a row went."""
    layers = [module for module in model.modules() if isinstance(module, _DropoutNd) and module.training]
    try:
        for layer in layers:
            layer.training = False
        yield
    finally:
        for layer in layers:
            layer.training = True


def _not_found(one: Taken, rows: int) -> str:
    shape = tuple(one.values.shape)
    given = f"model: {one.name} works on {shape} for a batch of {rows} inputs"
    if FIRST.fits(shape, rows):
        return (
            f"{given}, and its rows do not follow the inputs when these change places, because the model sorts,"
            " shuffles or mixes its inputs; record the part of the model that treats every input by itself:"
            " record_gates(part, its inputs)"
        )
    return (
        f"{given}, in which the rows of the inputs are not found; the inputs need to be the first axis (in a"
        " transformer: batch_first=True), and a part that sees only some of them, such as an expert, is recorded by"
        " itself: record_gates(part, its inputs)"
    )
