"""The search for the rows of the inputs inside a model: two passes over a few rows, in two orders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gatedops.trace.batches import rows_of, taken
from gatedops.trace.passes import Probe, Taken
from gatedops.trace.row_plan import FIRST, Arrangement, arrangement_of, is_close
from gatedops.trace.state import preserved

_FEW, _OTHER_FEW = 3, 4  # rows, never as many as the batch has: an axis of the batch's size is none of the rows' then


@dataclass(frozen=True)
class RowPlan:
    """Where the rows lie in what each call works on, in call order.

    Args:
        arrangements: None for a call that no input changes.
        missed: rectifiers that ran where no handler saw them.
    """

    arrangements: tuple[Arrangement | None, ...] = ()
    missed: tuple[str, ...] = ()

    def of(self, index: int, constant: bool) -> Arrangement | None:
        """Of the call of this index; where the passes did not get as far, rows are taken to come first."""
        if index < len(self.arrangements):
            return self.arrangements[index]
        return None if constant else FIRST


def row_plan(model: nn.Module, probe: Probe, batch: Any) -> RowPlan:
    """Calls the model on a few rows of a batch, on the same rows in another order, and compares.

    A model that cannot be called so (of a fixed number of rows) is called on all of them; one that fails then, too,
    has the empty plan.

    Raises:
        ValueError: naming a rectifier in whose pre-activations the rows of the inputs are not found.
    """
    rows = rows_of(batch) or 1
    few = _FEW if rows != _FEW else _OTHER_FEW
    for order in (torch.arange(few) % rows, torch.arange(rows)):
        try:
            return _compared(model, probe, batch, order)
        except NotFoundError as error:
            raise ValueError(str(error)) from None
        except Exception:  # the model's own: the pass over the batch itself shows it
            continue
    return RowPlan()


class NotFoundError(Exception):
    """The rows of the inputs are not found."""


def _compared(model: nn.Module, probe: Probe, batch: Any, order: torch.Tensor) -> RowPlan:
    turn = 2 if len(order) > 2 else 1  # of three rows, two of which are one input, this changes all places
    with preserved(model):
        before, missed = probe.values_of(taken(batch, order), watched=True)
    with preserved(model):
        after, _ = probe.values_of(taken(batch, order.roll(turn)))
    places = torch.arange(len(order)).roll(turn)
    found: list[Arrangement | None] = []
    for index, (one, other) in enumerate(zip(before, after, strict=False)):
        if one.constant and is_close(one.values, other.values):
            found.append(None)
            continue
        arrangement = arrangement_of(one.values, other.values, places)
        if arrangement is None:
            arrangement = _of_random(model, probe, taken(batch, order), before, index)
        found.append(arrangement)
    return RowPlan(tuple(found), missed)


def _of_random(model: nn.Module, probe: Probe, batch: Any, before: Sequence[Taken], index: int) -> Arrangement:
    """The arrangement of values that are drawn at random, which no order of the rows shows: rows come first."""
    one, rows = before[index], rows_of(batch) or 1
    with preserved(model):
        torch.manual_seed(int(torch.randint(2**31, ())))
        again, _ = probe.values_of(batch)
    is_random = index < len(again) and not is_close(one.values, again[index].values)
    if is_random and FIRST.fits(tuple(one.values.shape), rows):
        return FIRST
    raise NotFoundError(_not_found(one, rows))


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
