"""The search for the rows of the inputs inside a model: passes over a few rows, in other company and other order.

Most models need one such pass: the pass over the first batch must have the same values for the same input
(Comparison). The others, in which inputs change each other's values or chance does, need two or more (row_plan).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gatedops.trace.batches import rows_of, taken, tensors_of
from gatedops.trace.passes import Probe, Taken
from gatedops.trace.row_plan import FIRST, Arrangement, arrangement_of, is_close
from gatedops.trace.state import preserved


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
        if constant and is_close(values[: len(few)] if few.dim() else values, few):
            self._found.append(None)
            return None
        arrangement = arrangement_of(values, few, (self._rows, self._few), self._pairs)
        if arrangement is None:
            raise UnprovenError
        self._found.append(arrangement)
        return arrangement

    def plan(self) -> RowPlan:
        """What the comparison showed."""
        return RowPlan(tuple(self._found), self._missed)


def comparison(model: nn.Module, probe: Probe, batch: Any) -> Comparison | None:
    """A pass over two rows of the batch; None where the model fails in it, or where values are not to be had."""
    if any(tensor.is_meta for tensor in tensors_of(batch)):
        return None
    _, order = _few_rows(batch)
    try:
        with preserved(model):
            return Comparison(*probe.values_of(taken(batch, order), watched=True), order, rows_of(batch) or 1)
    except Exception:  # the model's own: the pass over the batch itself shows it
        return None


def row_plan(model: nn.Module, probe: Probe, batch: Any) -> RowPlan:
    """Calls the model on two rows of a batch, and on one of them at another place beside another row. Its values must
    then be elsewhere, and the same. Where they are not, the order alone is changed: the inputs may change each other's
    values.

    A model that takes no other number of rows is called on all of them. If they do not follow the inputs there, it is
    one in which inputs are a whole, such as the nodes of a graph: then rows are taken to come first. A model that fails
    in these passes has the empty plan.

    Raises:
        ValueError: naming a rectifier in whose pre-activations the rows of the inputs are not found.
    """
    if any(tensor.is_meta for tensor in tensors_of(batch)):  # without values rows are taken to come first
        return RowPlan()
    few, others = _few_rows(batch)
    every = torch.arange(rows_of(batch) or 1, device="cpu")
    for order, other, is_whole in ((few, others, False), (every, every.roll(1), True)):
        try:
            return _Search(model, probe, batch, order, is_whole).plan(other)
        except NotFoundError as error:
            raise ValueError(str(error)) from None
        except Exception:  # the model's own: the pass over the batch itself shows it
            continue
    return RowPlan()


class NotFoundError(Exception):
    """The rows of the inputs are not found."""


def _few_rows(batch: Any) -> tuple[Tensor, Tensor]:
    """Which rows two passes take: row 0 first, then in second place; beside it rows that differ from it.

    They are two, or three where the batch has two: an axis as long as the batch is not that of the rows then.
    """
    rows = rows_of(batch) or 1
    if rows == 2:
        return _on_cpu(0, 1, 0), _on_cpu(1, 0, 1)
    differ = torch.zeros(rows, dtype=torch.bool, device="cpu")
    for tensor in tensors_of(batch):
        if tensor.dim() and len(tensor) == rows:
            differ |= (tensor != tensor[:1]).reshape(rows, -1).any(1).cpu()
    others = [*differ.nonzero().flatten().tolist(), 0, 0]
    return _on_cpu(0, others[0]), _on_cpu(others[1] or others[0], 0)


def _on_cpu(*rows: int) -> Tensor:
    return torch.tensor(rows, device="cpu")


class _Search:
    """Passes of a model over rows of a batch, and what they show.

    Args:
        order: the rows of the first pass.
        is_whole: they are all rows, and may belong together.
    """

    def __init__(self, model: nn.Module, probe: Probe, batch: Any, order: Tensor, is_whole: bool) -> None:
        self._model, self._probe, self._batch, self._order = model, probe, batch, order
        self._is_whole = is_whole
        self._turned: list[Taken] | None = None
        self._mixed = ""

    def plan(self, other: Tensor) -> RowPlan:
        """The plan, from a pass over the rows and one over others."""
        before, missed = self._values(self._order, watched=True)
        after, _ = self._values(other)
        pairs = [
            (a, b) for b, row in enumerate(other.tolist()) for a, same in enumerate(self._order.tolist()) if same == row
        ]
        found: list[Arrangement | None] = []
        for index, (one, second) in enumerate(zip(before, after, strict=False)):
            if one.constant and is_close(one.values, second.values):
                found.append(None)
                continue
            arrangement = arrangement_of(one.values, second.values, (len(self._order), len(other)), pairs)
            found.append(arrangement or self._of_mixed(index, one))
        return RowPlan(tuple(found), missed, self._mixed)

    def _values(self, order: Tensor, watched: bool = False) -> tuple[list[Taken], tuple[str, ...]]:
        with preserved(self._model):
            return self._probe.values_of(taken(self._batch, order), watched)

    def _of_mixed(self, index: int, one: Taken) -> Arrangement:
        """The arrangement in a call whose values depend on the company of an input, or on chance."""
        if self._turned is None:
            self._turned, _ = self._values(self._order.flip(0))
        n = len(self._order)
        if index < len(self._turned):
            pairs = [(n - 1 - place, place) for place in range(n)]
            arrangement = arrangement_of(one.values, self._turned[index].values, (n, n), pairs)
            if arrangement is not None:
                self._mixed = self._mixed or one.name
                return arrangement
        comes_first = FIRST.fits(tuple(one.values.shape), n)
        if comes_first and (self._is_whole or self._is_random(index, one)):
            return FIRST
        raise NotFoundError(_not_found(one, n))

    def _is_random(self, index: int, one: Taken) -> bool:
        """Whether the values change from pass to pass with the random numbers drawn."""
        with preserved(self._model):
            torch.manual_seed(int(torch.randint(2**31, (), device="cpu")))
            again, _ = self._probe.values_of(taken(self._batch, self._order))
        return index < len(again) and not is_close(one.values, again[index].values)


def _not_found(one: Taken, rows: int) -> str:
    shape = tuple(one.values.shape)
    given = f"model: {one.name} works on {shape} for a batch of {rows} inputs"
    if FIRST.fits(shape, rows):
        return (
            f"{given}, and its rows do not follow the inputs when these change places; record the part of the model"
            " that treats every input by itself: record_gates(part, its inputs)"
        )
    return (
        f"{given}, in which the rows of the inputs are not found; the inputs need to be the first axis (in a"
        " transformer: batch_first=True), and a part that sees only some of them, such as an expert, is recorded by"
        " itself: record_gates(part, its inputs)"
    )
