"""How fast this machine writes and copies memory: the limit of what is not bound by instructions."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

from _common.machine import torch_threads
from _common.timing import best_seconds

RUNS = 16


@cache
def write_bandwidth(size: int, threads: int) -> float:
    """Bytes per second of writing `size` bytes, the best of many: a buffer that fits a cache is written faster.

    memset writes large buffers past the caches, torch's fill with ordinary stores; the faster one counts, on one
    thread or on all of them.
    """
    buffer = torch.zeros(size, dtype=torch.uint8)
    fastest = float("inf")
    for used in {1, threads}:
        with torch_threads(used):
            for write in (lambda used=used: memset(buffer, used), lambda: buffer.fill_(1)):
                fastest = min(fastest, best_seconds(write, RUNS))
    return size / fastest


def memset(buffer: Tensor, threads: int) -> None:
    """The C library's memset, each thread on its part of a contiguous buffer."""
    _in_parts(lambda at, size: ctypes.memset(buffer.data_ptr() + at, 1, size), buffer.nbytes, threads)


def memcpy(to: Tensor, source: Tensor, threads: int) -> None:
    """The C library's memmove, which is memcpy where nothing overlaps, each thread on its part."""
    _in_parts(lambda at, size: ctypes.memmove(to.data_ptr() + at, source.data_ptr() + at, size), to.nbytes, threads)


def _in_parts(work: Callable[[int, int], object], size: int, threads: int) -> None:
    part = -(-size // threads)
    list(_pool(threads).map(lambda at: work(at, min(part, size - at)), range(0, size, part)))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)
