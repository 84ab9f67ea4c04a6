"""Checks of what the solvers are given, before any work."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatedops import scalars
from gatedops.arrays import as_tensor
from gatedops.operators.base import KernelOperator
from gatedops.operators.memory import available
from gatedops.ops.checks import require_float64
from gatedops.solve.row_tiles import powers_of_two

# Residuals below this cannot be told from the rounding of float64 sums.
SMALLEST_TOL = 1e-13
NOT_FINITE = "K: has entries that are not finite: if the kernel overflows, use scale='width' or float64"
# This many columns, spread evenly, stand for all of a kernel where its norm, its symmetry or its identity is asked for.
SAMPLED = 64
LARGER_RIDGE = "use a larger ridge, or a float64 kernel if K is float32"
LARGER_TOL = "use a larger tol, or a float64 kernel if K is float32"
INDEFINITE = f"K: is not positive definite with this ridge: {LARGER_RIDGE}"


def require_symmetric(operator: KernelOperator) -> None:
    """Raises ValueError unless the operator is a square kernel of inputs with themselves."""
    n, m = operator.shape
    if n != m or n == 0:
        raise ValueError(f"K: has shape ({n}, {m}), needs (n, n) with n > 0")
    if not operator.symmetric:
        raise ValueError(
            "K: is not symmetric, needs the kernel of one set of inputs with itself: use (K + K.T) / 2 if only "
            "rounding makes it differ from its transpose"
        )
    require_float64(operator.device, "K")


def checked_diagonal(operator: KernelOperator) -> Tensor:
    """Returns the diagonal in float64 ``(n,)``.

    Raises:
        ValueError: the operator is not symmetric, or its diagonal is not finite, has a negative entry or is all zeros.
    """
    require_symmetric(operator)
    diagonal = operator.diag().to(torch.float64)
    if not bool(torch.isfinite(diagonal).all()):
        raise ValueError("K: its diagonal is not finite: if the kernel overflows, use scale='width' or float64")
    if bool((diagonal < 0).any()):
        place = int(diagonal.argmin())
        raise ValueError(f"K: is not positive definite: its diagonal entry {place} is {float(diagonal[place]):g}")
    if not bool((diagonal > 0).any()):
        raise ValueError("K: its diagonal is all zeros: every input is zero or has no gate on")
    return diagonal


def sampled_columns(operator: KernelOperator) -> Tensor:
    """Returns at most 64 columns that are spread evenly, float64 ``(n, k)``.

    Raises:
        ValueError: they are not finite, or their rows disagree with them.
    """
    n = operator.shape[0]
    places = torch.linspace(0, n - 1, min(n, SAMPLED), dtype=torch.float64, device="cpu")
    index = places.round().long().to(operator.device)
    columns = operator.columns(index).to(torch.float64)
    if not bool(torch.isfinite(columns).all()):
        raise ValueError(NOT_FINITE)
    square = columns[index]
    if bool(((square - square.T).abs() > 1e-4 * square.abs().max()).any()):
        raise ValueError("K: is not symmetric: some of its entries differ from those across the diagonal")
    return columns


def smallest_ridge(operator: KernelOperator, sample: Tensor, trace: float) -> float:
    """Returns the ridge below which the kernel, with entries rounded to its dtype, can be indefinite.

    It is 3 u sqrt(n) ||K||_F / trace K, with the norm from sampled columns (docs/math.md section 15).
    """
    n = operator.shape[0]
    # The squares of scaled entries stay in range.
    scale = powers_of_two(sample.reshape(-1, 1))
    norm = float((sample / scale).square().sum() * (n / sample.shape[1])) ** 0.5
    return 3 * torch.finfo(operator.dtype).eps / 2 * n**0.5 * norm / (trace / float(scale))


def tensor_of(given: Any, name: str) -> Tensor:
    """Returns a tensor, an array or a list of numbers as a tensor. TypeError, naming the argument, if it is another
    thing."""
    if isinstance(given, (list, tuple)):
        try:
            given = np.asarray(given)
        except ValueError:
            raise TypeError(f"{name}: got a list of other things, needs a list of numbers") from None
    return as_tensor(given, name)


def targets_of(given: Any, operator: KernelOperator) -> Tensor:
    """Returns targets as float64 ``(n, c)`` on the device of the operator.

    Raises:
        TypeError: they are whole numbers ``(n,)``, which could be labels, or no numbers.
        ValueError: their shape does not fit, or they are not finite.
    """
    targets, n = tensor_of(given, "targets"), operator.shape[0]
    if targets.ndim not in (1, 2) or len(targets) != n or targets.numel() == 0:
        raise ValueError(
            f"targets: got shape {tuple(targets.shape)}, needs ({n},) or ({n}, c), a row for each row of K"
        )
    if targets.dtype.is_complex:
        raise TypeError(f"targets: got {targets.dtype}, needs real numbers")
    if targets.ndim == 1 and not targets.dtype.is_floating_point:
        raise TypeError(
            f"targets: got {targets.dtype} ({n},), which could be labels: use path_kernels.regression.one_hot(labels, "
            "classes) for labels, or .double() to fit the numbers themselves"
        )
    targets = targets.detach().to(operator.device, torch.float64).reshape(n, -1)
    if not bool(torch.isfinite(targets).all()):
        raise ValueError("targets: has numbers that are not finite: leave out their rows, in K too")
    if not bool(torch.isfinite(targets.abs().sum(0)).all()):
        raise ValueError("targets: their sum is not finite: divide them by a number")
    return targets


def centred(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns targets minus their means, and the means ``(c,)``. A constant column becomes exactly 0, because
    the rounding of its mean must not be solved for."""
    mean = torch.where((targets == targets[0]).all(0), targets[0], targets.mean(0))
    return targets - mean, mean


def start_of(given: Any, like: Tensor) -> Tensor | None:
    """Returns x0 as float64 of the shape of the targets, or None."""
    if given is None:
        return None
    start = as_tensor(given, "x0")
    shapes = [tuple(like.shape)] + ([(len(like),)] if like.shape[1] == 1 else [])
    if tuple(start.shape) not in shapes:
        raise ValueError(f"x0: got shape {tuple(start.shape)}, needs {shapes[0]}, like alpha")
    start = start.detach().to(like.device, torch.float64).reshape(like.shape)
    if not bool(torch.isfinite(start).all()):
        raise ValueError("x0: has numbers that are not finite")
    return start


def ridge_of(given: Any) -> float:
    """Returns a ridge as a float.

    Raises:
        TypeError: it is not a number.
        ValueError: it is negative or not finite.
    """
    ridge = _number(given, "ridge")
    if not 0 <= ridge < float("inf"):
        raise ValueError(f"ridge: got {ridge:g}, needs a finite number of at least 0, in units of mean(diag K)")
    return ridge


def ridges_of(given: Any) -> list[float]:
    """Returns several ridges as floats.

    Raises:
        TypeError: they are not a sequence of numbers.
        ValueError: there are none, or one is negative or not finite.
    """
    try:
        ridges = list(given)
    except TypeError:
        raise TypeError(f"ridges: got {given!r}, needs a sequence of numbers") from None
    if not ridges:
        raise ValueError("ridges: is empty, needs at least one ridge")
    return [ridge_of(ridge) for ridge in ridges]


def tol_of(given: Any) -> float:
    """Returns a tolerance as a float.

    Raises:
        TypeError: it is not a number.
        ValueError: it is not below 1, or it is below what float64 sums can give.
    """
    tol = _number(given, "tol")
    if not SMALLEST_TOL <= tol < 1:
        raise ValueError(f"tol: got {tol:g}, needs a number from {SMALLEST_TOL:g}, what float64 sums can give, to 1")
    return tol


def seconds_of(given: Any) -> float:
    """Returns the time between two writings of a checkpoint.

    Raises:
        TypeError: it is not a number.
        ValueError: it is negative.
    """
    seconds = _number(given, "checkpoint_every")
    if not seconds >= 0:
        raise ValueError(f"checkpoint_every: got {seconds:g}, needs a number of seconds, at least 0")
    return seconds


def rank_of(given: Any, n: int) -> int:
    """Returns a rank; None: n / 4, at most 1000, or 2000 from 30,000 points on."""
    if given is None:
        return max(1, min(n // 4, 1000 if n < 30_000 else 2000))
    return whole_number(given, "rank", 1, n)


def seed_of(given: Any) -> int:
    """Returns a seed. TypeError or ValueError if it is not a whole number from 0 to 2^63 - 1."""
    return whole_number(given, "seed", 0, 2**63 - 1)


def require_callback(given: Any) -> None:
    """Raises TypeError unless a callback is None or can be called."""
    if given is not None and not callable(given):
        raise TypeError(f"callback: got {type(given).__name__}, needs a function of the steps and the residuals")


def whole_number(given: Any, name: str, least: int, most: int | None = None) -> int:
    """Returns a whole number within bounds. TypeError or ValueError, naming the argument, if it is another one."""
    number = scalars.whole_number(given)
    if number is None:
        raise TypeError(f"{name}: got {given!r}, needs a whole number")
    if number < least or (most is not None and number > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name}: got {number}, needs a whole number {bounds}")
    return number


def require_memory(needed: int, device: torch.device, what: str, remedy: str) -> None:
    """Raises ValueError if less memory is free on the device than is needed, in bytes."""
    free = available(device)
    if free is not None and needed > free:
        raise ValueError(f"{what} needs {needed / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB are free: {remedy}")


def _number(given: Any, name: str) -> float:
    number = scalars.real_number(given)
    if number is None:
        raise TypeError(f"{name}: got {given!r}, needs a number")
    return number
