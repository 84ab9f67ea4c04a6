"""Time per pair of the convolutional path kernel, beside its plain form and neural-tangents' convolutional NTK."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from _common.timing import interleaved_medians
from torch import Tensor, nn

import gatedops
from gatedops.nn import conv_spec
from gatedops.path_kernels.compile_steps import compile_steps
from gatedops.path_kernels.network import steps_of, weighted_layers
from gatedops.reference import conv_gram as reference_conv

HEADER = ("problem", "by", "us a pair", "pairs", "runs", "ratio")
CHANNELS, LAYERS = 64, 4
PLAIN, PEER = "gatedops.reference.conv_gram", "neural-tangents, NTK"
LARGEST_ERROR = 1e-4  # relative to the largest entry: far above the rounding of float32


@dataclass(frozen=True)
class Problem:
    """A Gram of n random images (C, s, s): 4 convolutions of 64 channels, zero padding, global average pooling.

    n is gatedops'; the plain form and neural-tangents do n_plain and n_peer.
    """

    channels: int
    size: int
    n: int
    n_plain: int
    n_peer: int

    @property
    def name(self) -> str:
        return f"{self.size}x{self.size}"

    def images(self, n: int, seed: int) -> Tensor:
        shape = (n, self.channels, self.size, self.size)
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed))

    def net(self, seed: int) -> nn.Sequential:
        spec = conv_spec((self.channels, self.size, self.size), [CHANNELS] * LAYERS, [], 10, "gap")
        return spec.relu_net(seed).eval()


PROBLEMS = (Problem(1, 8, 512, 16, 8), Problem(3, 32, 32, 1, 1))
QUICK_PROBLEMS = (Problem(1, 8, 96, 4, 4), Problem(3, 32, 3, 1, 1))


@dataclass(frozen=True)
class Entry:
    """One contestant on one problem: pairs are those computed, unordered ones where symmetry is used.

    ratio is the time per pair over gatedops'.
    """

    problem: str
    by: str
    pairs: int
    median_s: float
    samples_s: tuple[float, ...]
    ratio: float

    @property
    def us_per_pair(self) -> float:
        return 1e6 * self.median_s / self.pairs

    def row(self) -> tuple[str, ...]:
        """The cells under HEADER."""
        runs = str(len(self.samples_s))
        return self.problem, self.by, f"{self.us_per_pair:,.2f}", f"{self.pairs:,}", runs, f"{self.ratio:,.1f}x"

    def to_json(self) -> dict[str, object]:
        return asdict(self) | {"us_per_pair": self.us_per_pair}


def time_problem(problem: Problem, seed: int, repeats: int, *, peers: bool) -> list[Entry]:
    """gatedops (all of npk: gates, masks, kernel) and, with `peers`, neural-tangents in turns, the plain form once.

    Raises RuntimeError where gatedops is not what the plain form is: no speed is given for a wrong result.
    """
    net, x = problem.net(seed), problem.images(problem.n, seed)
    plain_s = _seconds_of_plain_form(net, problem.images(problem.n_plain, seed))
    contestants: dict[str, Callable[[], object]] = {"gatedops": lambda: gatedops.npk(net, x, progress=False)}
    kernel = neural_tangents_kernel() if peers else None
    if kernel is not None:
        images = problem.images(problem.n_peer, seed).permute(0, 2, 3, 1).numpy()
        contestants[PEER] = lambda: kernel(images)
    times = interleaved_medians(contestants, repeats, least=3, seconds=6, label=problem.name)
    samples = {by: taken.samples for by, taken in times.items()} | ({PLAIN: (plain_s,)} if peers else {})
    return entries_of(problem, samples)


def entries_of(problem: Problem, samples: dict[str, tuple[float, ...]]) -> list[Entry]:
    """From seconds by contestant. neural-tangents computes every entry, the others each unordered pair once."""
    pairs = {"gatedops": _unordered(problem.n), PEER: problem.n_peer**2, PLAIN: _unordered(problem.n_plain)}
    ours = statistics.median(samples["gatedops"]) / pairs["gatedops"]
    return [
        Entry(problem.name, by, pairs[by], median, taken, median / pairs[by] / ours)
        for by, taken in samples.items()
        for median in [statistics.median(taken)]
    ]


def plain_form(net: nn.Sequential, x: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    """The same Gram by plain torch, gates recorded and masks made beforehand."""
    steps = steps_of(net, x)
    program, per_input = compile_steps(steps, [1.0] * len(weighted_layers(steps)), tangent=False, biases=False)
    columns, words = per_input.rows(x, gatedops.record_gates(net, x), dtype, len(x))
    return lambda: reference_conv.conv_gram(columns, words, None, None, program.encoded, program.scalars, dtype)


def neural_tangents_kernel() -> Callable[[Any], Any] | None:
    """The NTK of the same architecture at infinite width for images (n, H, W, C); None where it is not installed."""
    try:
        jax, stax = importlib.import_module("jax"), importlib.import_module("neural_tangents").stax
    except ImportError:
        return None
    layers = [layer for _ in range(LAYERS) for layer in (stax.Conv(CHANNELS, (3, 3), padding="SAME"), stax.Relu())]
    _, _, kernel = stax.serial(*layers, stax.GlobalAvgPool(), stax.Dense(10))
    compiled = jax.jit(lambda images: kernel(images, None, "ntk"))
    return lambda images: compiled(images).block_until_ready()


def neural_tangents_versions() -> dict[str, str] | None:
    """Of neural-tangents and JAX; None where they are not installed."""
    if neural_tangents_kernel() is None:
        return None
    return {name: importlib.import_module(name).__version__ for name in ("neural_tangents", "jax")}


def require_agreement(net: nn.Sequential, x: Tensor, expected: Tensor) -> None:
    """RuntimeError unless gatedops.npk gives what its plain form does."""
    error = float((gatedops.npk(net, x, progress=False) - expected).abs().max() / expected.abs().max())
    if not error < LARGEST_ERROR:
        raise RuntimeError(f"gatedops.npk is wrong: it differs from its plain form by {error:.1e}")


def _seconds_of_plain_form(net: nn.Sequential, x: Tensor) -> float:
    """Of one run in float32, whose result gatedops has to agree with."""
    plain = plain_form(net, x, torch.float32)
    start = time.perf_counter()
    expected = plain()
    seconds = time.perf_counter() - start
    require_agreement(net, x, expected)
    return seconds


def _unordered(n: int) -> int:
    return n * (n + 1) // 2
