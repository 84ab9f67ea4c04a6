"""One timed function of the Gram benchmark, and the least time that the machine allows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from _common.bandwidth import write_bandwidth
from _common.machine import bit_pair_bound
from _common.timing import Timing
from torch import Tensor

from gatedops import GateBits, reference

BUFFER = 2**30  # bytes that tell how fast larger outputs are written
CHECKED_ROWS, CHECKED_COLUMNS = 64, 256


@dataclass(frozen=True)
class Cell:
    """n points, `layers` layers of `width` gates."""

    n: int
    layers: int
    width: int

    @property
    def bits_per_pair(self) -> int:
        return self.layers * self.width

    @property
    def bit_pairs(self) -> int:
        """Of the symmetric Gram: every unordered pair of points once, the diagonal with it."""
        return self.n * (self.n + 1) // 2 * self.bits_per_pair

    def __str__(self) -> str:
        return f"n={self.n}, {self.layers} x {self.width}"


@dataclass(frozen=True)
class Limit:
    """The least seconds for a Gram: looking at every bit-pair, or writing the output, whichever takes longer; on a GPU,
    where each has units of its own, also the product over layers (epilogue) and that of the inputs (Sigma)."""

    counts_s: float
    writes_s: float
    epilogue_s: float = 0.0
    sigma_s: float = 0.0

    @property
    def seconds(self) -> float:
        return max(self._parts().values())

    @property
    def by(self) -> str:
        parts = self._parts()
        return max(parts, key=lambda name: parts[name])

    def _parts(self) -> dict[str, float]:
        return {
            "counts": self.counts_s,
            "writes": self.writes_s,
            "epilogue": self.epilogue_s,
            "Sigma": self.sigma_s,
        }


@dataclass(frozen=True)
class Entry:
    """One function on one cell; limit is None where none is known, threads and instruction_set on a GPU."""

    what: str
    by: str
    cell: Cell
    threads: int | None
    instruction_set: str | None
    median_s: float
    best_s: float
    runs: int
    limit: Limit | None = None

    @property
    def share(self) -> float | None:
        """Of the limit, 0 to 1."""
        return None if self.limit is None else self.limit.seconds / self.median_s

    @property
    def bit_pairs_per_second(self) -> float:
        return self.cell.bit_pairs / self.median_s

    def to_json(self) -> dict[str, object]:
        limited_by = None if self.limit is None else self.limit.by
        derived = {"share_of_limit": self.share, "limited_by": limited_by}
        return asdict(self) | derived | {"bit_pairs_per_second": self.bit_pairs_per_second}


def entry_of(
    what: str, by: str, cell: Cell, threads: int | None, isa: str | None, timing: Timing, limit: Limit | None = None
) -> Entry:
    return Entry(what, by, cell, threads, isa, timing.median, timing.best, len(timing.samples), limit)


def gram_limit(cell: Cell, report: dict[str, object], isa: str, threads: int) -> Limit | None:
    """For Lambda alone in float32 with this instruction set on this many threads."""
    rate = bit_pair_bound(report | {"instruction_set": isa, "threads": threads}).bit_pairs_per_second
    if rate is None:
        return None
    size = cell.n**2 * torch.float32.itemsize
    return Limit(cell.bit_pairs / rate, size / write_bandwidth(min(size, BUFFER), threads))


def require_right(gram: Callable[[], Tensor], bits: GateBits, what: str, x: Tensor | None = None) -> None:
    """RuntimeError unless a sample is bit for bit that of the reference: a wrong result has no speed. x: None or uint8,
    (n, d)."""
    found, expected = _sample(gram(), bits, x)
    if not found.equal(expected):
        raise RuntimeError(f"gatedops is wrong on {what}")


def require_close(gram: Callable[[], Tensor], bits: GateBits, x: Tensor, what: str) -> None:
    """The same for float32 inputs, to float32's accuracy of a sum of x.shape[1] products of equal sign."""
    found, expected = _sample(gram(), bits, x.double())
    if not bool(((found - expected).abs() <= 1e-5 * expected.abs()).all()):
        raise RuntimeError(f"gatedops is wrong on {what}")


def require_right_product(product: Callable[[Tensor], Tensor], bits: GateBits, v: Tensor, what: str) -> None:
    """The same for Lambda times v, (n, c), of which only some rows are left: as many as a sample of a Gram needs."""
    rows, columns = _sampled(bits.n)
    few = torch.zeros_like(v)
    few[columns.to(v.device)] = v[columns.to(v.device)]
    found = product(few)[rows.to(v.device)].cpu().double()
    left, right = (bits[at.to(bits.device)].to("cpu") for at in (rows, columns))
    gram, factor = reference.npk_gram(None, left, None, right, dtype=torch.float64), few.cpu()[columns].double()
    if not bool(((found - gram @ factor).abs() <= 1e-5 * (gram @ factor.abs())).all()):
        raise RuntimeError(f"gatedops is wrong on {what}")


def _sampled(n: int) -> tuple[Tensor, Tensor]:
    """Rows and columns, each once, the first and the last among them."""
    rows = torch.linspace(0, n - 1, min(n, CHECKED_ROWS)).long()
    return rows, torch.linspace(n - 1, 0, min(n, CHECKED_COLUMNS)).long().unique()


def _sample(gram: Tensor, bits: GateBits, x: Tensor | None) -> tuple[Tensor, Tensor]:
    """Some rows and columns of a Gram, and the reference's, on the CPU; in float64 where x is."""
    rows, columns = _sampled(bits.n)
    sides = [
        (None if x is None else x[at.to(x.device)].cpu(), bits[at.to(bits.device)].to("cpu")) for at in (rows, columns)
    ]
    dtype = torch.float64 if x is not None and x.dtype == torch.float64 else torch.float32
    expected = reference.npk_gram(*sides[0], *sides[1], dtype=dtype)
    return gram[rows.to(gram.device)][:, columns.to(gram.device)].cpu(), expected
