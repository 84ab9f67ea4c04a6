"""Searches for the rows of the inputs inside a model.

Most models need one pass over a few rows in another order: the pass over the first batch must have the same values
for the same inputs (Comparison). In other models, the values of an input depend on the other inputs or on random
numbers. Such models need two passes over the whole batch, in two orders (row_plan).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from gatedops.trace.batches import reordered, row_count, tensors_of
from gatedops.trace.passes import Observed, Probe
from gatedops.trace.row_plan import FIRST, Arrangement, arrangement_of, is_close
from gatedops.trace.state import preserved

# The first pass takes this many rows from all over the batch, so that a model that sorts its inputs moves one of them.
_FEW = 5


@dataclass(frozen=True)
class RowPlan:
    """Where the rows lie in the tensor that each call works on, in call order.

    Args:
        arrangements: one for each call; None for a call that no input changes.
        missed: rectifiers that ran where no handler saw them.
        mixed: the first call in which the inputs of a batch change each other's values; "" if there is none.
    """

    arrangements: tuple[Arrangement | None, ...] = ()
    missed: tuple[str, ...] = ()
    mixed: str = ""

    def of(self, index: int, constant: bool) -> Arrangement | None:
        """The arrangement of the call with this index. If the passes did not get that far, rows come first."""
        if index < len(self.arrangements):
            return self.arrangements[index]
        return None if constant else FIRST


class UnprovenError(Exception):
    """Raised if one pass does not show where the rows lie."""


class NotFoundError(Exception):
    """Raised if the rows of the inputs are not found."""


class Comparison:
    """Compares the values of a pass over the whole batch with those of a pass over a few of its rows.

    Args:
        observed: the tensors that the calls of the pass over a few rows worked on.
        missed: rectifiers that ran in that pass where no handler saw them.
        order: the rows of that pass.
        rows: the number of rows of the batch.
    """

    def __init__(self, observed: list[Observed], missed: tuple[str, ...], order: Tensor, rows: int) -> None:
        self._observed, self._missed, self._rows, self._few = observed, missed, rows, len(order)
        self._pairs = [(row, place) for place, row in enumerate(order.tolist())]
        self._found: list[Arrangement | None] = []

    def arrangement(self, values: Tensor, constant: bool) -> Arrangement | None:
        """The arrangement of the next call, from its values for the whole batch; None if no input changes them.

        Raises:
            UnprovenError: the values of an input are not the same in both passes.
        """
        if len(self._found) == len(self._observed):
            raise UnprovenError
        few = self._observed[len(self._found)].values
        is_same = is_close(values, few)
        # A constant may have been made for the number of rows of its pass.
        if constant and values.dim() and few.dim():
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
        """The arrangements that the comparison found.

        Raises:
            UnprovenError: the pass over the whole batch made fewer calls.
        """
        if len(self._found) < len(self._observed):
            raise UnprovenError
        return RowPlan(tuple(self._found), self._missed)


def comparison(model: nn.Module, probe: Probe, batch: Any) -> Comparison | None:
    """Runs a pass over a few rows of the batch. None if the model fails in it, or if its tensors have no values."""
    if any(tensor.is_meta for tensor in tensors_of(batch)):
        return None
    order = _few_rows(batch)
    try:
        with preserved(model):
            return Comparison(*probe.values_of(reordered(batch, order), watched=True), order, row_count(batch) or 1)
    except Exception:  # an error of the model appears again in the pass over the batch itself
        return None


def row_plan(model: nn.Module, probe: Probe, batch: Any, is_whole: bool) -> RowPlan:
    """Calls the model on a batch, and on the same batch with its rows in reverse order: the rows of the tensors that
    its calls work on must then be reversed too. A model that fails in these passes has the empty plan.

    Args:
        is_whole: the model takes no other number of rows. Its inputs may then belong together, such as the nodes of a
            graph. If a tensor's rows do not follow the order, we assume that rows come first.

    Raises:
        ValueError: the rows of the inputs are not found in the pre-activations of a rectifier, which the error names.
    """
    # Without values we assume that rows come first.
    if any(tensor.is_meta for tensor in tensors_of(batch)):
        return RowPlan()
    try:
        return _Search(model, probe, batch, is_whole).plan()
    except NotFoundError as error:
        raise ValueError(str(error)) from None
    except Exception:  # an error of the model appears again in the pass over the batch itself
        return RowPlan()


def _few_rows(batch: Any) -> Tensor:
    """Rows from all over the batch in another order. Their number always differs from that of the batch, so that an
    axis that stays as long as the batch cannot be the axis of the rows."""
    rows = row_count(batch) or 1
    # A small batch gives all its rows, and one of them twice.
    if rows <= _FEW:
        return torch.tensor([*reversed(range(rows)), 0], device="cpu")
    return torch.linspace(rows - 1, 0, _FEW, device="cpu").round().long()


class _Search:
    """Runs two passes of a model over a batch, and finds the rows from them."""

    def __init__(self, model: nn.Module, probe: Probe, batch: Any, is_whole: bool) -> None:
        self._model, self._probe, self._batch, self._is_whole = model, probe, batch, is_whole
        self._rows = row_count(batch) or 1
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

    def _values(self, order: Tensor, watched: bool = False) -> tuple[list[Observed], tuple[str, ...]]:
        with preserved(self._model), _without_dropout(self._model):
            return self._probe.values_of(reordered(self._batch, order), watched)

    def _of_another(self, index: int, one: Observed) -> Arrangement:
        """The arrangement of values that do not follow the order of the rows."""
        comes_first = FIRST.fits(tuple(one.values.shape), self._rows)
        if comes_first and (self._is_whole or (not self._probe.reorders and self._is_random(index, one))):
            return FIRST
        raise NotFoundError(_not_found(one, self._rows))

    def _is_random(self, index: int, one: Observed) -> bool:
        """Whether the values change from pass to pass with the random numbers that are drawn."""
        with preserved(self._model), _without_dropout(self._model):
            torch.manual_seed(int(torch.randint(2**31, (), device="cpu")))
            again, _ = self._probe.values_of(self._batch)
        return index < len(again) and not is_close(one.values, again[index].values)


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Sets dropout layers to evaluation mode: their random numbers belong to places, so they would hide where a row
    went."""
    layers = [module for module in model.modules() if isinstance(module, _DropoutNd) and module.training]
    try:
        for layer in layers:
            layer.training = False
        yield
    finally:
        for layer in layers:
            layer.training = True


def _not_found(one: Observed, rows: int) -> str:
    shape = tuple(one.values.shape)
    given = f"model: {one.name} works on {shape} for a batch of {rows} inputs"
    if FIRST.fits(shape, rows):
        return (
            f"{given}, and its rows do not follow the inputs when these change places, because the model sorts,"
            " shuffles or mixes its inputs; record only the part of the model that treats every input by itself:"
            " record_gates(part, its inputs)"
        )
    return (
        f"{given}, in which the rows of the inputs are not found; the inputs need to be the first axis (in a"
        " transformer: batch_first=True); record a part that sees only some of them, such as an expert, by itself:"
        " record_gates(part, its inputs)"
    )
