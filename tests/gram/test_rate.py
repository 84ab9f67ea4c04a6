"""_C.bit_pairs_per_second: what the instructions of a set can count at most, measured on this machine."""

from __future__ import annotations

import os
import time

import pytest
import torch
from strategies import dense, random_bits

from gatedops import _C, backends, npk_gram

ROWS, GATES = 512, 8192
TRIES = 5  # another process can slow down every repeat of one measurement


def gram_rate(isa: str, calls: int = 3) -> float:
    """Bit-pairs per second of Lambda between two sets of rows, with this set forced: the best of a few calls."""
    x_bits, y_bits = (random_bits(ROWS, dense(GATES), seed=seed) for seed in (0, 1))
    best = float("inf")
    with backends.force_cpu(isa):
        for _ in range(calls):
            start = time.perf_counter()
            npk_gram(None, x_bits, None, y_bits)
            best = min(best, time.perf_counter() - start)
    return ROWS * ROWS * GATES / best


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("isa", backends.available_isas())
def test_no_kernel_exceeds_the_rate_of_its_instructions(isa: str) -> None:
    bound = gram = 0.0
    for _ in range(TRIES):
        bound = max(bound, _C.bit_pairs_per_second(isa, 1))
        gram = max(gram, gram_rate(isa))
        if gram <= 1.05 * bound:
            break
    assert 0 < gram <= 1.05 * bound


def test_more_threads_than_cores_count_no_faster() -> None:
    """And one thread counts no faster than all of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for _ in range(TRIES):
        one, all_cores, too_many = (_C.bit_pairs_per_second("serial", threads) for threads in (1, cores, 16 * cores))
        if one <= 1.05 * all_cores and too_many <= 1.5 * all_cores:
            break
    assert 0 < one <= 1.05 * all_cores
    assert too_many <= 1.5 * all_cores


def test_an_instruction_set_that_does_not_run_here_is_refused() -> None:
    with pytest.raises(ValueError, match="got 'sse9', but this machine runs only: serial"):
        _C.bit_pairs_per_second("sse9", 1)


@pytest.mark.parametrize("threads", [0, -3])
def test_no_threads_are_refused(threads: int) -> None:
    with pytest.raises(ValueError, match=f"threads: got {threads}, needs at least 1"):
        _C.bit_pairs_per_second("serial", threads)


def test_a_measurement_leaves_the_instruction_set_in_use_and_the_threads_of_torch_alone() -> None:
    before = backends.active_isa(), _C.forced_isa(), torch.get_num_threads()
    _C.bit_pairs_per_second("serial", 1)
    assert (backends.active_isa(), _C.forced_isa(), torch.get_num_threads()) == before
