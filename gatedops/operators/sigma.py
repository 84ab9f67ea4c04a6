"""Chooses how the inner products of inputs, Sigma, are computed: they cost most of a product with few columns.

docs/math.md, section 15, gives the bounds of the errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gatedops.devices import can_be_read

# This many numbers are divided at a time. torch does that on one thread, and the numbers stay in the cache.
_DIVIDED = 1 << 15
# This many numbers are multiplied by a basis at a time.
_MULTIPLIED = 1 << 20
# This many numbers are looked at first.
_SAMPLED = 4096
# So often all numbers are read, at most, to find what they are multiples of.
_TRIES = 6
# Rows of fewer columns are multiplied as they are: a factor would save nothing.
_FEWEST_COLUMNS = 16
# This many more rows than columns that the factor may have are looked at first.
_SPARE = 8


@dataclass(frozen=True)
class Sigma:
    """The rows of both sides whose inner products are computed, ``Sigma = scale^2 * <x_i, y_j>``.

    Attributes:
        x, y: ``(n, d)`` and ``(m, d)``; y is None if there is one side, and both are if Sigma is left out.
        kind: "none" (Sigma is left out), "bytes" (x is uint8), "multiples" (x is a multiple of bytes), "factor" (x has
            low rank, and the rows are its coordinates in an orthonormal basis), "floats" (x as it is).
        scale: what bytes are multiplied by.
        digits: whether the products may be computed from digits of 8 bits.
        text: says the same to a reader.
    """

    x: Tensor | None
    y: Tensor | None
    kind: str
    text: str
    scale: float = 1.0
    digits: bool = False


def sigma_of(x: Tensor | None, y: Tensor | None, dtype: torch.dtype, fits: Callable[[float], bool]) -> Sigma:
    """Chooses a form whose error is at most about that of products in `dtype`.

    Args:
        x, y: the inputs of both sides; y is None if there is one side.
        dtype: of the kernel's entries.
        fits: whether the kernel of bytes stays in the range of `dtype` if its entries are multiplied by a number.

    Raises:
        ValueError: inputs are infinite or NaN.
    """
    if x is None:
        return Sigma(None, None, "none", "left out, the kernel is Lambda")
    if x.dtype == torch.uint8:
        return Sigma(x, y, "bytes", "exact, from bytes")
    single = dtype == torch.float32
    way = "from floats, or digits of 8 bits" if single else "from floats"
    sides = [side for side in (x, y) if side is not None]
    if any(side.requires_grad for side in sides) or not all(map(can_be_read, sides)):
        return Sigma(x, y, "floats", f"{way}; x may change", digits=single)
    found = _bytes_of(sides, torch.finfo(dtype).eps)
    if found is not None and fits(found[0] * found[0]):
        scale, made = found
        return Sigma(made[0], made[1] if y is not None else None, "multiples", f"exact, {_in_words(scale)}", scale)
    factor = _factor_of(sides) if single else None
    if factor is not None:
        text = f"{way}, of a factor with {factor[0].shape[1]:,} instead of {x.shape[1]:,} columns"
        return Sigma(factor[0], factor[1] if y is not None else None, "factor", text, digits=True)
    if single:
        # Digits are those of float32, and the op would convert other dtypes in each product anew.
        x, y = x.to(dtype), None if y is None else y.to(dtype)
    return Sigma(x, y, "floats", way, digits=single)


def _in_words(scale: float) -> str:
    if scale == 1:
        return "x holds whole numbers that are stored as bytes"
    inverse = round(1 / scale)
    return f"from bytes times {f'1/{inverse}' if inverse > 1 and scale == 1 / inverse else f'{scale:.9g}'}"


def _chunks(sides: Sequence[Tensor], size: int) -> Iterator[tuple[int, slice, Tensor]]:
    """Yields rows of about this many numbers at a time, in float64: the index of their side, where they lie, and the
    rows."""
    for index, side in enumerate(sides):
        rows = max(1, size // max(1, side.shape[1]))
        for start in range(0, len(side), rows):
            some = slice(start, start + rows)
            yield index, some, side[some].to(torch.float64)


# --- multiples of bytes ---------------------------------------------------------------------------------------------


def _bytes_of(sides: Sequence[Tensor], eps: float) -> tuple[float, list[Tensor]] | None:
    """Returns a number and bytes such that each input is their product, up to a relative error of `eps`, which is twice
    the error of rounding once. Returns None if no number does this.

    The largest input is then k times the number for some k from 1 to 255. Each k is tried on a few inputs first.
    """
    ends = torch.tensor(
        [[float(end) for end in side.aminmax()] for side in sides if side.numel()] or [[0.0, 0.0]],
        dtype=torch.float64,
        device="cpu",
    )
    smallest, largest = float(ends[:, 0].min()), float(ends[:, 1].max())
    _require_finite(sides, smallest, largest)
    if smallest < 0:
        return None
    if largest == 0:
        return 1.0, [side.to(torch.uint8) for side in sides]
    counts = torch.arange(1, 256, dtype=torch.float64, device=sides[0].device)
    values = torch.cat([side.reshape(-1)[:: 1 + side.numel() // _SAMPLED] for side in sides]).to(torch.float64)
    for _ in range(_TRIES):
        quotients = values[:, None] * (counts / largest)
        off = (quotients - quotients.round()).abs()
        # The quotient has the errors of two inputs.
        counts = counts[(off <= 3 * eps * quotients).all(0)]
        if not len(counts):
            return None
        found = _converted(sides, largest / float(counts[0]), eps)
        if not isinstance(found, Tensor):
            return found
        values = found
    return None


def _converted(sides: Sequence[Tensor], guess: float, eps: float) -> tuple[float, list[Tensor]] | Tensor | None:
    """Returns the number and the bytes; some of the inputs that are not multiples of the guess; or None if no number
    near the guess is near enough for all inputs."""
    made = [torch.empty(side.shape, dtype=torch.uint8, device=side.device) for side in sides]
    low, high = 0.0, float("inf")
    for index, some, values in _chunks(sides, _DIVIDED):
        # This rounds. torch's round would start threads for so few numbers.
        counts = (values * (1 / guess)).add_(0.5).to(torch.uint8)
        # Each input that is not 0 says in which interval the number lies; 0 / 0 says nothing.
        ratios = (values / counts).nan_to_num_(nan=guess)
        least, most = (float(end) for end in ratios.aminmax()) if ratios.numel() else (guess, guess)
        if not (1 - 3 * eps) * guess <= least <= most <= (1 + 3 * eps) * guess:
            return values[(ratios - guess).abs() > 3 * eps * guess][:_SAMPLED]
        made[index][some] = counts
        low, high = max(low, most * (1 - eps)), min(high, least * (1 + eps))
    if low > high:
        return None
    middle = (low + high) / 2
    # A reader would rather see 1/255 than a number beside it.
    simple = (1 / round(1 / middle)) if middle < 1 else float(round(middle))
    return (simple if low <= simple <= high else middle), made


def _require_finite(sides: Sequence[Tensor], smallest: float, largest: float) -> None:
    if abs(smallest) < float("inf") and abs(largest) < float("inf"):
        return
    for side, name in zip(sides, ("x", "y"), strict=False):
        if not bool(torch.isfinite(side).all()):
            raise ValueError(f"{name}: has infinite values or NaN, needs finite numbers")


# --- low rank -------------------------------------------------------------------------------------------------------


def _factor_of(sides: Sequence[Tensor]) -> list[Tensor] | None:
    """Returns the coordinates of the rows in an orthonormal basis of at most half as many vectors as x has columns, in
    float32. None if they do not have such a basis up to an error of the rounding of float32.

    What a row lacks is orthogonal to the basis. So if a row lacks t times its length, the product of two rows changes
    by at most t^2 times their lengths.
    """
    columns, count = sides[0].shape[1], sum(map(len, sides))
    most = columns // 2
    # The search takes a small share of the time of one product then.
    if columns < _FEWEST_COLUMNS or count < 2 * columns:
        return None
    lacking = torch.finfo(torch.float32).eps / 8
    basis = _basis_of(_some_rows(sides, most + _SPARE), most, lacking)
    if basis is None:
        return None
    made = [side.new_empty((len(side), basis.shape[1]), dtype=torch.float32) for side in sides]
    for index, some, rows in _chunks(sides, _MULTIPLIED):
        coordinates = rows @ basis
        rest = rows - coordinates @ basis.T
        if bool((rest.square().sum(1) > lacking * rows.square().sum(1)).any()):
            return None
        made[index][some] = coordinates
    return made


def _some_rows(sides: Sequence[Tensor], count: int) -> Tensor:
    """Returns rows from all over both sides, of length 1 or 0, in float64."""
    total = sum(map(len, sides))
    places = torch.arange(count, device=sides[0].device) * total // count
    parts, before = [], 0
    for side in sides:
        here = places[(places >= before) & (places < before + len(side))] - before
        parts.append(side[here].to(torch.float64))
        before += len(side)
    return torch.nn.functional.normalize(torch.cat(parts))


def _basis_of(rows: Tensor, most: int, lacking: float) -> Tensor | None:
    """Returns an orthonormal basis ``(d, r)`` with r at most `most`, in which the squares that all rows together lack
    are at most `lacking`. Returns None if no basis of that size does this."""
    gram = rows @ rows.T
    factor, failed = torch.linalg.cholesky_ex(gram)
    # The square of a pivot is the square of what a row adds to the rows before it.
    if int(failed) == 0 and int((factor.diagonal().square() <= lacking).sum()) < len(rows) - most:
        return None
    values, vectors = torch.linalg.eigh(gram)
    rank = max(1, int((values.clamp_min(0).cumsum(0) > lacking).sum()))
    if rank > most:
        return None
    return torch.linalg.qr(rows.T @ vectors[:, -rank:]).Q
