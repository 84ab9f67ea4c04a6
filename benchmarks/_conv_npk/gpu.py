"""Time per pair of the convolutional path kernel on a GPU, beside its plain form there."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from _common.gpu_timing import interleaved_gpu_medians
from _gram.targets import Target

import gatedops
from _conv_npk.speed import PLAIN, Entry, Problem, entries_of, plain_form, require_agreement

PROBLEMS = (Problem(1, 8, 1024, 16, 0), Problem(3, 32, 256, 2, 0))
QUICK_PROBLEMS = (Problem(1, 8, 256, 16, 0), Problem(3, 32, 64, 2, 0))


def time_problem(problem: Problem, seed: int, repeats: int) -> list[Entry]:
    """gatedops (all of npk) and the plain form on fewer images, in turns, by CUDA events.

    Raises RuntimeError where gatedops is not what the plain form is: no speed is given for a wrong result.
    """
    net, x = problem.net(seed).cuda(), problem.images(problem.n, seed).cuda()
    few = x[: problem.n_plain]
    plain = plain_form(net, few, torch.float32)
    require_agreement(net, few, plain())
    contestants = {"gatedops": lambda: gatedops.npk(net, x, progress=False), PLAIN: plain}
    times = interleaved_gpu_medians(contestants, repeats, label=problem.name)
    return entries_of(problem, {by: taken.samples for by, taken in times.items()})


def targets(entries: list[Entry]) -> Iterator[Target]:
    """What an H200 is held to."""
    ours = {entry.problem: entry.us_per_pair for entry in entries if entry.by == "gatedops"}
    yield Target("32x32, us a pair", 10, ours["32x32"], at_least=False)
