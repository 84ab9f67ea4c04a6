"""Kernel regression by gradient flow for a finite time, in place of a ridge."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from gatedops.operators.adapters import as_operator
from gatedops.operators.base import KernelOperator
from gatedops.ops.checks import require_option
from gatedops.progress import with_bar
from gatedops.scalars import real_number
from gatedops.solve import checks
from gatedops.solve.dense import decomposed
from gatedops.solve.iterate import scale_of
from gatedops.solve.lanczos import BlockKrylov
from gatedops.solve.row_tiles import norms, one_thread
from gatedops.solve.solution import Solution, SolvedSystem, change_of_predictions
from gatedops.tables import Table

METHODS = ("auto", "eigen", "lanczos")
# "auto" decomposes a kernel of up to this many points.
_DECOMPOSED = 2_000
# The projected matrix is decomposed anew when the basis has grown by this factor.
_GROWTH = 1.1
# At least this many copies of the targets are kept for each time.
_COPIES = 6


@dataclass(frozen=True, eq=False, repr=False)
class FlowSolution(Solution):
    """Kernel regression after gradient flow: the Solution that has no ridge (it is 0), but a time.

    Attributes:
        time: t, in units of 1 / mean(diag K).
        residuals: float64 ``(c,)``, the norms of ``Y - K alpha(t) - d alpha / dt``, relative to those of Y, for centred
            targets Y. The last term is that of the approximation.
        iterations: products with a block of vectors; 0 for "eigen".
        rank: the dimension of the Krylov space; 0 for "eigen".
        method: "eigen" or "lanczos".
    """

    time: float

    def table(self) -> Table:
        """What was solved, how, and how well."""
        made = super().table()
        rows = tuple(("time", f"{self.time:g}") if row[0] == "ridge" else row for row in made.rows)
        return replace(made, title="FlowSolution", rows=rows)


@overload
def gradient_flow(
    K: Any,
    targets: Any,
    t: float,
    *,
    method: str = "auto",
    tol: float = 1e-3,
    max_products: int = 300,
    progress: bool | None = None,
) -> FlowSolution: ...
@overload
def gradient_flow(
    K: Any,
    targets: Any,
    t: Sequence[float] | Tensor | np.ndarray,
    *,
    method: str = "auto",
    tol: float = 1e-3,
    max_products: int = 300,
    progress: bool | None = None,
) -> list[FlowSolution]: ...
def gradient_flow(
    K: Any,
    targets: Any,
    t: float | Sequence[float] | Tensor | np.ndarray,
    *,
    method: str = "auto",
    tol: float = 1e-3,
    max_products: int = 300,
    progress: bool | None = None,
) -> FlowSolution | list[FlowSolution]:
    """Returns kernel regression after gradient flow for a time t on half the sum of squared errors, from alpha = 0.

        alpha(t) = K^-1 (I - exp(-t K / unit)) (targets - mean)        unit = mean(diag K)

    At an eigenvalue of 0 the factor in front of the targets is t / unit. Flow for a time t resembles the ridge 1 / t of
    :func:`kernel_ridge`: in each eigenvector of K the fit is 1 to 1.3 times as large. A net whose kernel does not
    change, and that s steps of gradient descent with a small learning rate lr train on half the sum of squares, has
    flowed for t = s lr unit.

    Args:
        K: ``(n, n)``, symmetric and positive semidefinite: an operator, a tensor, an array, or an operator of scipy or
            linear_operator.
        targets: ``(n,)`` or ``(n, c)``; they are centred by their means.
        t: one time, or several, each at least 0, in units of 1 / mean(diag K), so a factor of K changes no prediction.
            All times share the products with K.
        method: "eigen" stores and decomposes K, 24 n^2 bytes. "lanczos" projects K on the Krylov space of the targets,
            8 n bytes for each product and column. "auto" takes "eigen" up to 2,000 points.
        tol: "lanczos" stops if alpha(t) satisfies d alpha / dt = Y - K alpha up to this part of the norm of each column
            of the centred targets Y.
        max_products: of "lanczos". The necessary number grows about as the root of t times the largest eigenvalue.
        progress: whether to show a bar. None: on a terminal, if tqdm is installed.

    Returns:
        A FlowSolution for one time, a list of them for several.

    Warns:
        RuntimeWarning: the products did not suffice, or are too inexact. The text is `Solution.reason`.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a shape or a value does not fit, K is not positive semidefinite, or the memory is too small.
    """
    begun = time.monotonic()
    require_option("method", method, METHODS, listed=True)
    operator, times = as_operator(K, "K"), _times(t)
    diagonal = checks.checked_diagonal(operator)
    targets = checks.targets_of(targets, operator)
    tol, most = checks.tol_of(tol), checks.whole_number(max_products, "max_products", 1)
    needed = 8 * _COPIES * targets.numel() * len(times)
    checks.require_memory(
        needed, operator.device, f"targets: alpha at {len(times)} times", "use fewer columns or times"
    )
    (centred, mean), unit = checks.centred(targets), float(diagonal.mean())
    scale = scale_of(centred)
    flow = _Flow(operator, centred / scale, [each / unit for each in times], _rounding(operator, diagonal))
    if method == "auto":
        method = "eigen" if len(targets) <= _DECOMPOSED else "lanczos"
    found = flow.by_eigenvalues() if method == "eigen" else flow.by_lanczos(tol, most, progress)
    true = flow.defects(found)
    solutions = [
        FlowSolution(
            alpha=found.alpha[place] * scale,
            mean=mean,
            ridge=0.0,
            iterations=found.products,
            residuals=true[place],
            recursive=true[place] if found.recursive is None else found.recursive[place],
            reason=_reason(true[place], tol, targets, found, most),
            converged=bool((true[place] <= tol).all()),
            seconds=time.monotonic() - begun,
            method=method,
            rank=found.rank,
            system=SolvedSystem(operator, 0.0, targets),
            time=each,
        )
        for place, each in enumerate(times)
    ]
    worst = max(solutions, key=lambda solution: float(solution.residuals.max()))
    if not worst.converged:
        warnings.warn(f"gradient_flow: {worst.reason}", RuntimeWarning, stacklevel=2)
    return solutions if _is_several(t) else solutions[0]


@dataclass(frozen=True, eq=False)
class _Found:
    """alpha and its derivative by time for each of T times, both float64 ``(T, n, c)``; the relative norms of the
    residuals ``(T, c)`` that follow from the Krylov space; the products and the dimension that it took."""

    alpha: Tensor
    speed: Tensor
    recursive: Tensor | None = None
    products: int = 0
    rank: int = 0


@dataclass(frozen=True, eq=False)
class _Flow:
    """d alpha / dt = y - K alpha from alpha = 0, at times in the units of 1 / K, for columns of y of norm 1 or 0.
    Eigenvalues down to -rounding are rounded zeros."""

    operator: KernelOperator
    y: Tensor
    times: list[float]
    rounding: float

    def by_eigenvalues(self) -> _Found:
        values, vectors = decomposed(self.operator, "use method='lanczos'")
        alpha, speed = self._solved(values, vectors, vectors.T @ self.y)
        return _Found(alpha, speed)

    def by_lanczos(self, tol: float, most: int, progress: bool | None) -> _Found:
        space, due = BlockKrylov(self.operator.product, self.y), 0.0
        if space.exhausted:  # The targets are constant.
            zeros = self.y.new_zeros(len(self.times), *self.y.shape)
            return _Found(zeros, zeros)
        for products in with_bar(range(1, most + 1), "gradient flow", "product", most, progress):
            space.extend()
            if space.size < due and products < most and not space.exhausted:
                continue
            due = _GROWTH * space.size
            with one_thread():
                values, vectors = torch.linalg.eigh(space.projected)
                alpha, speed = self._solved(values, vectors, vectors[: len(space.head)].T @ space.head)
                left = space.coupling @ alpha[:, -space.coupling.shape[1] :]
                recursive = torch.linalg.vector_norm(left, dim=1)
            if bool((recursive <= tol / 2).all()):
                break
        return _Found(_expanded(space, alpha), _expanded(space, speed), recursive, products, space.size)

    def defects(self, found: _Found) -> Tensor:
        """Returns the norms of y - K alpha - d alpha / dt, ``(T, c)``, from a product."""
        count = len(self.times)
        image = self.operator.product(found.alpha.permute(1, 0, 2).flatten(1))
        left = self.y.repeat(1, count) - image - found.speed.permute(1, 0, 2).flatten(1)
        return norms(left).view(count, -1)

    def _solved(self, values: Tensor, vectors: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Returns alpha and its derivative for all times, ``(T, p, c)``, from the eigenvalues ``(p,)`` and eigenvectors
        of a p x p matrix, and the targets ``(p, c)`` in the basis of these vectors.

        Raises:
            ValueError: an eigenvalue is more negative than rounding explains.
        """
        if float(values[0]) < -self.rounding:
            raise ValueError(
                f"K: is not positive semidefinite, because it has an eigenvalue of {float(values[0]):g}: look for an "
                "error in it"
            )
        values = values.clamp(min=0)
        alphas, speeds = [], []
        for each in self.times:
            grown = torch.where(values > 0, -torch.expm1(-each * values) / values, each)
            alphas.append(grown[:, None] * inside)
            speeds.append(torch.exp(-each * values)[:, None] * inside)
        both = vectors @ torch.cat(alphas + speeds, 1)
        alpha, speed = both.view(len(vectors), 2, len(self.times), -1).permute(1, 2, 0, 3)
        return alpha, speed


def _expanded(space: BlockKrylov, coefficients: Tensor) -> Tensor:
    """Returns the vectors ``(T, n, c)`` that have the coefficients ``(T, p, c)`` in the basis of a space."""
    times, _, columns = coefficients.shape
    vectors = space.combine(coefficients.permute(1, 0, 2).flatten(1))
    return vectors.view(-1, times, columns).permute(1, 0, 2)


def _rounding(operator: KernelOperator, diagonal: Tensor) -> float:
    """Returns a bound on what rounding adds to an eigenvalue: the entries of K are at most the largest of its diagonal,
    and a few of their last bits are uncertain."""
    return 4 * torch.finfo(operator.dtype).eps * len(diagonal) * float(diagonal.max())


def _is_several(t: Any) -> bool:
    return isinstance(t, (list, tuple)) or (isinstance(t, (Tensor, np.ndarray)) and t.ndim > 0)


def _times(t: Any) -> list[float]:
    """Returns the times as a list.

    Raises:
        TypeError, ValueError: they are not finite numbers of at least 0, or there are none.
    """
    given = list(t) if _is_several(t) else [t]
    if not given:
        raise ValueError("t: got no time, needs at least one")
    times = []
    for each in given:
        number = real_number(each)
        if number is None:
            raise TypeError(f"t: got {each!r}, needs a number, or a sequence of numbers")
        if not 0 <= number < math.inf:
            raise ValueError(f"t: got {number:g}, needs finite times of at least 0, in units of 1 / mean(diag K)")
        times.append(number)
    return times


def _reason(residuals: Tensor, tol: float, targets: Tensor, found: _Found, most: int) -> str:
    worst = float(residuals.max())
    if worst <= tol:
        return "converged"
    change = change_of_predictions(residuals, targets)
    begun = f"residuals are up to {worst:.1e}, above tol={tol:.1e}"
    moved = f"predictions of the training points can be wrong by about {change:.1e} (root mean square)"
    if found.products == most:
        return f"{begun} after {most} products, and {moved}: use a larger max_products or a smaller t"
    return f"{begun}, because products with K are not exact enough, and {moved}: {checks.LARGER_TOL}"
