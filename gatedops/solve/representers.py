"""Which training points make a prediction, with which share, and through which layers' gates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatedops.operators.base import KernelOperator
from gatedops.operators.npk_operator import NPKOperator
from gatedops.operators.sums import add_product, widened
from gatedops.progress import with_bar
from gatedops.scalars import whole_number
from gatedops.solve import checks
from gatedops.solve.nystrom import NystromSolution
from gatedops.solve.solution import Solution
from gatedops.tables import ShownAsTable, Table, counted, percent

# This many contributions are computed at a time: 32 MiB in float64.
_ENTRIES = 1 << 22
# Stands in `index` where fewer points contribute with the asked sign.
_NONE = -1


@dataclass(frozen=True, eq=False, repr=False)
class Representers(ShownAsTable):
    """The training points that contribute most to the scores of m test points. For each test point t

        score[t] = mean[t] + contribution[t].sum() + rest[t]

    Attributes:
        column: int64 ``(m,)``, whose score is explained: the column of the targets.
        score: float64 ``(m,)``.
        mean: float64 ``(m,)``, the mean of the targets of that column: the score without any training point.
        index: int64 ``(m, k)``, the training points. With `split` it is ``(m, 2 k)``, and -1 where fewer than k points
            contribute with that sign; everything else is 0 there.
        contribution: float64 ``(m, k)``, K(x_t, x_i) alpha_i of these points. Helpers, which raise the score, have a
            positive one, opponents a negative one.
        kernel: float64 ``(m, k)``, K(x_t, x_i).
        share: float64 ``(m, k)``, |contribution| / total, where `total` sums over all training points, those that are
            not listed too; 0 if that is 0. No share is negative, and those of all training points add up to 1.
        total: float64 ``(m,)``, the sum of |K(x_t, x_i) alpha_i| over all training points.
        rest: float64 ``(m,)``, the sum of the contributions of all training points that are not listed.
        points: the number of all training points, or of centres.
        layers: the names of the layers; empty if K_test is not an NPKOperator.
        widths: how many gates each layer has.
        overlap: int32 ``(m, k, layers)``, how many gates of each layer are on in the test point and in the training
            point. Without a slope, and if the kernel is not normalized, K(x_t, x_i) is their product times the scales
            of the layers and Sigma. None if K_test is not an NPKOperator.
        sigma: float64 ``(m, k)``, the inner products of the inputs; None if the kernel does not have them.
    """

    column: Tensor
    score: Tensor
    mean: Tensor
    index: Tensor
    contribution: Tensor
    kernel: Tensor
    share: Tensor
    total: Tensor
    rest: Tensor
    points: int
    layers: tuple[str, ...] = ()
    widths: tuple[int, ...] = ()
    overlap: Tensor | None = None
    sigma: Tensor | None = None

    @property
    def overlap_share(self) -> Tensor | None:
        """The share of the gates of each layer that are on in both points, float64 ``(m, k, layers)``."""
        if self.overlap is None:
            return None
        return self.overlap / torch.tensor(self.widths, dtype=torch.float64, device=self.overlap.device)

    def table(self) -> Table:
        """For each test point its training points, and then what makes their sum the score."""
        m, k = self.index.shape
        title = f"Representers of {counted(m, 'test point')}: {k} of {counted(self.points, 'training point')} each"
        head = ("test point", "column", "training point", "contribution", "share %", "kernel")
        rows = tuple(row for place in range(m) for row in self._rows(place))
        return Table(title, (*head, *(f"{name}: both on %" for name in self.layers)), rows)

    def _rows(self, place: int) -> list[tuple[str, ...]]:
        name, column = str(place), str(int(self.column[place]))
        shares = self.overlap_share
        rows = []
        for index, contribution, share, kernel, both in zip(
            self.index[place].tolist(),
            self.contribution[place].tolist(),
            self.share[place].tolist(),
            self.kernel[place].tolist(),
            [()] * self.index.shape[1] if shares is None else shares[place].tolist(),
            strict=True,
        ):
            if index != _NONE:
                numbers = (f"{contribution:.4g}", percent(share), f"{kernel:.4g}")
                rows.append((name, column, str(index), *numbers, *map(percent, both)))
        blank = ("",) * len(self.layers)
        others = percent(1 - float(self.share[place].sum()) if float(self.total[place]) else 0.0)
        rows.append((name, column, "all others", f"{float(self.rest[place]):.4g}", others, "", *blank))
        rows.append((name, column, "mean", f"{float(self.mean[place]):.4g}", "", "", *blank))
        return [*rows, (name, column, "score", f"{float(self.score[place]):.4g}", "", "", *blank)]


def representers(
    solution: Solution,
    K_test: Any,
    k: int = 10,
    *,
    column: Any = None,
    split: bool = False,
    progress: bool | None = None,
) -> Representers:
    """Returns which training points make the predictions of m test points.

        f(x) = mean + sum_i K(x, x_i) alpha_i

    Each training point adds K(x, x_i) alpha_i to a score, which is exact. Of two points with equal contributions the
    one with the smaller index comes first. The kernel is computed once, some rows at a time, and is not stored: the
    memory is that of 2^22 entries, or of one row.

    Args:
        solution: of any function of gatedops.solve. Of a NystromSolution the centres alone contribute, and
            K_test has a column for each of them.
        K_test: ``(m, n)``, as `solution.predict` takes it. Only an NPKOperator tells layers.
        k: how many training points, from 1 to n.
        column: the column of the targets whose scores are explained, for instance a class: one for all test points, or
            one for each, ``(m,)``. None: for each test point the one with the largest score.
        split: False: the k points with the largest |contribution|, the largest first. True: the k points that raise the
            score most, and then the k points that lower it most.
        progress: whether to show a bar. None: on a terminal, if tqdm is installed.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a shape or a number does not fit, or K_test has entries that are not finite.

    Source: docs/math.md section 15.
    """
    if not isinstance(solution, Solution):
        several = ": choose one of them" if isinstance(solution, (list, tuple)) else ""
        raise TypeError(f"solution: got {type(solution).__name__}, needs what kernel_ridge returns{several}")
    operator = solution.kernel_of(K_test)
    (m, n), columns = operator.shape, solution.alpha.shape[1]
    count = checks.whole_number(k, "k", 1, n)
    wanted = _columns_of(column, m, columns)
    wanted = None if wanted is None else wanted.to(operator.device)
    tiles = _Tiles(operator, solution, wanted, count, split)
    step = max(1, _ENTRIES // n)
    starts = range(0, m, step) if m else range(1)
    parts = [
        tiles.of(slice(start, min(start + step, m)))
        for start in with_bar(starts, "representers", "tile", len(starts), progress)
    ]
    found: dict[str, Any] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if isinstance(solution, NystromSolution):
        index = found["index"]
        found["index"] = torch.where(index == _NONE, _NONE, solution.centres[index])
    if not isinstance(operator, NPKOperator):
        return Representers(**found, points=n)
    names, widths = zip(*((layer.name, layer.width) for layer in operator.layers), strict=True)
    return Representers(**found, points=n, layers=names, widths=widths)


@dataclass(frozen=True, eq=False)
class _Tiles:
    """Computes the contributions to some test points at a time; the arguments are those of `representers`."""

    operator: KernelOperator
    solution: Solution
    column: Tensor | None
    count: int
    split: bool

    def of(self, rows: slice) -> dict[str, Tensor]:
        """Returns the fields of Representers for some test points.

        Raises:
            ValueError: the kernel is not finite.
        """
        alpha, means = self.solution.alpha, self.solution.mean
        # Operators that are only known by products give columns, but not rows, without computing the others.
        kernel = self.operator.T.block(slice(None), rows).mT.to(torch.float64).contiguous()
        if not bool(torch.isfinite(kernel).all()):
            raise ValueError(checks.NOT_FINITE.replace("K:", "K_test:"))
        values = widened(alpha)
        sums = values.new_zeros(len(kernel), values.shape[1])
        add_product(kernel, (values, sums))
        scores = sums[:, : alpha.shape[1]] + means
        column = scores.argmax(1) if self.column is None else self.column[rows]
        score, mean = scores.gather(1, column[:, None])[:, 0], means[column]
        contributions = kernel * alpha.T[column]
        total = contributions.abs().sum(1)
        index = _listed(contributions, self.count, self.split)
        place, known = index.clamp_min(0), index != _NONE
        listed = contributions.gather(1, place) * known
        return {
            "column": column,
            "score": score,
            "mean": mean,
            "index": index,
            "contribution": listed,
            "kernel": kernel.gather(1, place) * known,
            "share": listed.abs() / torch.where(total > 0, total, 1.0)[:, None],
            "total": total,
            "rest": score - mean - listed.sum(1),
            **self._shared_gates(rows, place, known),
        }

    def _shared_gates(self, rows: slice, place: Tensor, known: Tensor) -> dict[str, Tensor]:
        """Returns what the operator tells of the listed pairs."""
        if not isinstance(self.operator, NPKOperator):
            return {}
        tests = torch.arange(rows.start, rows.stop, device=place.device)[:, None].expand_as(place)
        overlap, sigma = self.operator.shared_gates(tests.flatten(), place.flatten())
        found = {"overlap": overlap.view(*place.shape, -1) * known[..., None]}
        return found if sigma is None else found | {"sigma": sigma.view(place.shape) * known}


def _listed(contributions: Tensor, count: int, split: bool) -> Tensor:
    """Returns the training points that are listed for each row, int64 ``(rows, count)``, or ``(rows, 2 count)``."""
    if not split:
        return _largest(contributions.abs(), count)
    sides = []
    for values in (contributions, -contributions):
        index = _largest(values, count)
        sides.append(torch.where(values.gather(1, index) > 0, index, _NONE))
    return torch.cat(sides, 1)


def _largest(values: Tensor, count: int) -> Tensor:
    """Returns the places of the largest values of each row, int64 ``(rows, count)``, the largest first, and equal ones
    in their order."""
    least = values.topk(count, 1).values[:, -1:]
    enough = values >= least
    rows, index = enough.nonzero(as_tuple=True)
    # Sorted by row, and within a row by value.
    order = values[rows, index].argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]
    counts = enough.sum(1)
    places = (counts.cumsum(0) - counts)[:, None] + torch.arange(count, device=values.device)
    return index[order][places]


def _columns_of(given: Any, m: int, columns: int) -> Tensor | None:
    """Returns the column for each test point, int64 ``(m,)``, or None.

    Raises:
        TypeError, ValueError: they are not whole numbers, do not exist, or are of another number.
    """
    if given is None:
        return None
    if whole_number(given) is not None:
        return torch.full((m,), checks.whole_number(given, "column", 0, columns - 1))
    if not isinstance(given, (Tensor, np.ndarray, list, tuple)):
        needs = f"needs None, a whole number from 0 to {columns - 1}, or one for each test point"
        raise TypeError(f"column: got {given!r}, {needs}")
    found = checks.tensor_of(given, "column")
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise TypeError(f"column: got {found.dtype}, needs whole numbers")
    if tuple(found.shape) != (m,):
        raise ValueError(f"column: got shape {tuple(found.shape)}, needs one number, or ({m},), one per test point")
    found = found.long()
    if bool(((found < 0) | (found >= columns)).any()):
        raise ValueError(f"column: has numbers from {int(found.min())} to {int(found.max())}, needs 0 to {columns - 1}")
    return found
