"""The least time that a CPU allows a Gram: it counts every bit-pair in registers, and writes the result."""

from __future__ import annotations

from _common.bandwidth import write_bandwidth
from _common.contest import Limit
from _common.machine import bit_pair_rate

BUFFER = 2**30  # bytes that tell how fast larger results are written
ELEMENT = 4  # bytes of a float32


def lambda_limit(bit_pairs: int, n: int, isa: str, threads: int) -> Limit:
    """The limit of Lambda in float32, (n, n), with one instruction set; both rates are measured here."""
    size = ELEMENT * n**2
    writes = size / write_bandwidth(min(size, BUFFER), threads)
    return Limit({"counting": bit_pairs / bit_pair_rate(isa, threads), "writing": writes})
