"""Keeps products over many layers inside the range of their dtype (docs/math.md, section 3).

For normalized Grams it finds passes and multipliers that stay inside the range. For other Grams that leave the range it
raises errors or warns.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gatedops.devices import can_be_read, most_precise
from gatedops.gatebits import GateBits
from gatedops.ops.differentiable import is_recorded

# This many numbers of x are converted at a time.
_COPIED = 1 << 20
# This many bits may lie between the smallest and the largest product of a pass. The rest of the exponents' range is for
# the input.
_ROOM = {torch.float32: 100, torch.float64: 960}
# Layers whose counts have at most this many bits together are multiplied in float64 without leaving its range.
_CHUNK_BITS = 1000
# This many counts are held at a time.
_COUNTED = 1 << 20


@dataclass(frozen=True)
class Pass:
    """The layers whose counts one call of the op multiplies, and their multipliers, which are powers of two."""

    layers: slice
    scale: list[float]
    # The slopes of these layers; empty if every slope is 0.
    slopes: list[float]

    def of(self, bits: GateBits) -> GateBits:
        """Returns these layers of the gates."""
        return replace(bits, layers=bits.layers[self.layers])

    def squares(self, bits: GateBits) -> Tensor:
        """Returns the product of each row's scaled counts with itself, ``(n,)``; `bits` has these layers only."""
        return _squared(bits.words, bits, slice(None), self.scale, self.slopes)


def passes_of(
    sides: Sequence[GateBits], norms: Sequence[Tensor], dtype: torch.dtype, slopes: Sequence[float] = ()
) -> list[Pass]:
    """Returns passes whose normalized Grams multiply to the normalized Gram, with every product inside the range.

    A positive multiplier of a layer cancels when a Gram is normalized, and a power of two cancels without rounding. A
    count is 0 or from 1 to the width, so layers whose widths multiply to at most 2^room fit one pass, whatever the
    gates are. In a layer with slope a, the count of a row with itself is from w min(1, a^2) to w max(1, a^2), and the
    count of two rows is at most the geometric mean of theirs. More layers fit one pass if the counts can be read and,
    up to each layer, the products of the rows with themselves are within a factor of 2^room of each other.

    Args:
        sides: the gates of one or both sides.
        norms: ``<x_i, x_i>`` of the same sides, or an empty list without inputs. Sigma belongs to the last pass.
        slopes: the slope of each layer where its gates are off; empty if every slope is 0.

    Raises:
        ValueError: Sigma of the inputs leaves the range of dtype.
    """
    room = _ROOM[dtype]
    exponents = [(width - 1).bit_length() for width in sides[0].widths]
    sizes = exponents
    if slopes:
        logs = _logs_of_counts(sides[0].widths, slopes)
        exponents = [math.ceil(largest) for _, largest in logs]
        sizes = [exponent - math.floor(least) for exponent, (least, _) in zip(exponents, logs, strict=True)]
    spread = 0
    groups = _fitting(sizes, room)
    if len(groups) > 1 and all(can_be_read(bits.words) for bits in sides):
        least, largest = _products(sides, slopes)
        if max(b - a for a, b in zip(least, largest, strict=True)) <= room:
            ends = [math.floor(value) for value in least]
            exponents = [end - before for end, before in zip(ends, [0, *ends], strict=False)]
            spread = math.ceil(largest[-1] - least[-1])
            groups = [slice(0, len(exponents))]
    exponents[-1] -= _shift(norms, room - spread, dtype)
    return [Pass(group, [2.0**-exponent for exponent in exponents[group]], list(slopes[group])) for group in groups]


def sign_of(factors: Sequence[float]) -> float:
    """Returns the sign of the product of the factors: 1, -1 or 0."""
    sign = 1.0
    for factor in factors:
        sign = 0.0 if factor == 0 else -sign if factor < 0 else sign
    return sign


def _fitting(bits: Sequence[int], room: int) -> list[slice]:
    """Cuts the layers into runs whose bits add up to at most the room; a layer with more bits is a run of its own."""
    starts, total = [0], 0
    for index, size in enumerate(bits):
        total += size
        if total > room and index > starts[-1]:
            starts.append(index)
            total = size
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], len(bits)], strict=True)]


def _logs_of_counts(widths: Sequence[int], slopes: Sequence[float]) -> list[tuple[float, float]]:
    """Returns log2 of the smallest count of a row with itself that is not 0, and of the largest, for each layer."""
    if not slopes:
        return [(0.0, math.log2(width)) for width in widths]
    found = []
    for width, slope in zip(widths, slopes, strict=True):
        all_on = math.log2(width)
        all_off = all_on + 2 * math.log2(abs(slope)) if slope else 0.0
        found.append((min(all_on, all_off), max(all_on, all_off)))
    return found


def _products(sides: Sequence[GateBits], slopes: Sequence[float]) -> tuple[list[float], list[float]]:
    """Returns, up to each layer, log2 of the smallest and of the largest product of a row's counts with itself. A row
    is left out from the first layer on in which it has no gate on."""
    least, largest = [], []
    for bits in sides:
        step = max(1, _COUNTED // len(bits.layers))
        for start in range(0, bits.n, step):
            words = bits.words[start : start + step]
            layers = [slice(i, i + 1) for i in range(len(bits.layers))]
            logs = torch.stack([_squared(words, bits, layer, (1.0,), slopes[layer]) for layer in layers])
            sums = logs.log2_().cumsum_(0)
            largest.append(sums.amax(1))
            least.append(sums.masked_fill_(sums == -math.inf, math.inf).amin(1))
    if not least:
        return [0.0] * len(sides[0].layers), [0.0] * len(sides[0].layers)
    lows, highs = (torch.stack([torch.stack(least).amin(0), torch.stack(largest).amax(0)])).tolist()
    for index in range(len(lows)):  # If no row is left, all products are 0 already.
        if math.isinf(lows[index]):
            lows[index] = highs[index] = lows[index - 1] if index else 0.0
    return lows, highs


def _squared(words: Tensor, bits: GateBits, layers: slice, scale: Sequence[float], slopes: Sequence[float]) -> Tensor:
    """Returns the product over these layers of each row's scaled counts with itself, in the device's most precise
    dtype. `scale` and `slopes` are those of these layers."""
    chosen = bits.layers[layers]
    first, count = [layer.first_word for layer in chosen], [layer.words for layer in chosen]
    widths = [layer.width for layer in chosen] if slopes else []
    return torch.ops.gatedops.npk_diag(
        words, first, count, list(scale), most_precise(words.device), list(slopes), widths
    )


def _shift(norms: Sequence[Tensor], room: int, dtype: torch.dtype) -> int:
    """Returns by how many bits products are shifted up (or down, if negative), so that they stay in the range when
    Sigma multiplies them."""
    if not norms or not all(can_be_read(norm) and len(norm) for norm in norms):
        return 0
    logs = torch.cat([norm.detach() for norm in norms]).to(most_precise(norms[0].device)).log2()
    largest, least = (float(v) for v in (logs.amax(), logs.masked_fill(logs == -math.inf, math.inf).amin()))
    if not math.isfinite(largest) or not math.isfinite(least):
        return 0
    limit = math.log2(torch.finfo(dtype).max)
    if not 26 - limit < largest < limit:
        raise ValueError(
            f"x: its rows have squared lengths around {_power_of_ten(largest)}, whose products leave the range of "
            f"{dtype}; divide x by a number, which does not change a normalized Gram, or use dtype=torch.float64"
        )
    return min(max(0, -math.floor(least)), room - max(0, math.ceil(largest)))


# --- Grams that are not normalized ----------------------------------------------------------------------------------


def check_range(
    sides: Sequence[GateBits | None],
    inputs: Sequence[Tensor | None],
    factors: Sequence[float],
    dtype: torch.dtype,
    remedy: str = "npk_gram(normalize=True)",
    *,
    slopes: Sequence[float] = (),
    refuse: bool = True,
) -> None:
    """Refuses a kernel of hard gates that overflows, and warns of one that underflows everywhere.

    For shallow networks the widths alone show that neither happens, and then no gates are read.

    Args:
        sides: the gates of both sides; None: the same as the other.
        inputs: those of both sides, or None.
        remedy: what to do about an underflow if float64 does not help.
        slopes: the slope of each layer where its gates are off; empty if every slope is 0.
        refuse: whether an overflow is an error.

    Raises:
        ValueError: on every side, the product of some input with itself overflows; the message names scale.
    """
    pairs = [(bits, x) for bits, x in zip(sides, inputs, strict=True) if bits is not None]
    logs = _logs_of_counts(pairs[0][0].widths, slopes)
    if 0.0 in factors or _is_safe(logs, factors, dtype):
        return
    if not all(can_be_read(bits.words) and (x is None or can_be_read(x)) for bits, x in pairs):
        return
    peaks = []
    for bits, x in pairs:
        parts = [
            _squared(bits.words, bits, span, [abs(s) for s in factors[span]], slopes[span])
            for span in _runs(logs, factors)
        ]
        peaks.append(highest(parts if x is None else [*parts, squared_norms(x.detach())]))
    judge(peaks, dtype, remedy, refuse=refuse, stacklevel=4)


def _is_safe(logs: Sequence[tuple[float, float]], factors: Sequence[float], dtype: torch.dtype) -> bool:
    """Whether no product of counts can leave the range; `logs` has those of the smallest and the largest counts."""
    least = largest = 0.0
    for (low, high), factor in zip(logs, factors, strict=True):
        least += math.log2(abs(factor)) + low
        largest += math.log2(abs(factor)) + high
        if least < math.log2(torch.finfo(dtype).tiny) or largest > math.log2(torch.finfo(dtype).max):
            return False
    return True


def _runs(logs: Sequence[tuple[float, float]], factors: Sequence[float]) -> Iterator[slice]:
    """Yields runs of layers that only enlarge products, or only make them smaller, and that float64 can multiply. So
    the extremes lie at the ends of runs."""
    start, total, before = 0, 0.0, 0
    for index, ((low, high), factor) in enumerate(zip(logs, factors, strict=True)):
        log = math.log2(abs(factor))
        kind = 1 if log + low >= 0 else -1 if log + high <= 1e-9 else 0
        size = abs(log) + max(abs(low), abs(high))
        if index > start and (kind == 0 or kind != before or total + size > _CHUNK_BITS):
            yield slice(start, index)
            start, total = index, 0.0
        total, before = total + size, kind
    yield slice(start, len(logs))


def highest(squares: Iterable[Tensor]) -> Tensor:
    """Returns, for each factor of ``K_ii``, log2 of the largest product over all rows of the factors up to it."""
    peaks, total = [], None
    for square in squares:
        logs = square.to(most_precise(square.device)).log2()
        total = logs if total is None else total + logs
        peaks.append(total.amax() if len(total) else total.new_full((), -math.inf))
    return torch.stack(peaks)


def judge(peaks: Sequence[Tensor], dtype: torch.dtype, remedy: str, *, refuse: bool = True, stacklevel: int) -> None:
    """Raises ValueError, or warns, if the largest entries of a kernel leave the range of dtype.

    Args:
        peaks: :func:`highest` of one or both sides: an entry is at most the geometric mean of the peaks of its row's
            and its column's side.
        remedy: what to do about an underflow if float64 does not help.
        refuse: whether an overflow is an error.
        stacklevel: the stack level of the warning, which should name the caller of the public function.
    """
    found = torch.stack(list(peaks))
    means, least = found.mean(0).tolist(), found.amin(0).tolist()
    if math.nan in means or any(math.isnan(value) for value in means):
        return
    if refuse and max(least) >= math.log2(torch.finfo(dtype).max):
        raise ValueError(
            f"scale: the kernel overflows {dtype}, it has values around {_power_of_ten(max(least))}; "
            f"use scale='width', smaller numbers{'' if dtype == torch.float64 else ' or dtype=torch.float64'}"
        )
    if math.isfinite(means[-1]) and min(means) < math.log2(torch.finfo(dtype).tiny):
        warnings.warn(
            f"the largest value of the kernel is around {_power_of_ten(min(means))}, below what {dtype} holds, so the "
            f"whole kernel underflows; use {remedy}{', dtype=torch.float64' if dtype == torch.float32 else ''} or "
            "larger numbers as scale",
            stacklevel=stacklevel,
        )


def squared_norms(x: Tensor) -> Tensor:
    """Returns ``<x_i, x_i>``, exact for uint8 rows; some rows at a time if no derivative is wanted."""
    dtype = torch.int64 if x.dtype == torch.uint8 else most_precise(x.device)
    if torch.compiler.is_compiling() or is_recorded(x):
        return x.to(dtype).square().sum(1)
    norms = x.new_empty(x.shape[0], dtype=dtype)
    rows = max(1, _COPIED // max(1, x.shape[1]))
    copy = x.new_empty((min(rows, x.shape[0]), x.shape[1]), dtype=dtype)
    for i in range(0, x.shape[0], rows):
        part = copy[: min(rows, x.shape[0] - i)].copy_(x[i : i + rows])
        torch.sum(part.square_(), 1, out=norms[i : i + rows])
    return norms


def _power_of_ten(log2: float) -> str:
    return "infinity" if log2 == math.inf else f"1e{round(log2 * math.log10(2)):+d}"
