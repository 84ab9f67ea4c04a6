"""Networks as lists of steps, written by hand or drawn at random, and their kernels without torch.export."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
import torch.nn.functional as F
from exact_moments import exact_kernel
from step_runner import run, run_step
from torch import Tensor

from gatedops import trace
from gatedops.gatebits import GateBits
from gatedops.layout import GateLayer
from gatedops.ops.conv_gram import conv_gram
from gatedops.ops.gates import pack_layer
from gatedops.path_kernels.canonical import network_of
from gatedops.path_kernels.compile_steps import compile_steps
from gatedops.path_kernels.network import folded, weighted_layers
from gatedops.trace.pooling import Window

FLOAT64 = torch.float64


class StepNet:
    """A list of steps. Each method adds one, which reads the last step or those of `of`, and returns its index."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        self._draw = torch.Generator().manual_seed(seed)
        self.steps: list[trace.Step] = [trace.Input("input", (), shape)]

    @property
    def last(self) -> int:
        return len(self.steps) - 1

    def shape(self, of: int | None = None) -> tuple[int, ...]:
        return self.steps[self.last if of is None else of].shape

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=FLOAT64, generator=self._draw)

    def add(self, kind: type[trace.Step], *of: int, **fields: Any) -> int:
        of = of or (self.last,)
        step = kind(f"{kind.__name__}{len(self.steps)}", of, (), **fields)
        sources = [torch.zeros(1, *self.shape(index), dtype=FLOAT64) for index in of]
        shape = tuple(run_step(step, *sources).shape[1:])
        self.steps.append(kind(step.name, of, shape, **fields))
        return self.last

    def conv(self, outputs: int, size: int = 3, *, of: int | None = None, groups: int = 1, **fields: Any) -> int:
        """A convolution, padded so that stride 1 keeps the size."""
        of = self.last if of is None else of
        inputs, rows = self.shape(of)[0], len(self.shape(of)) - 1
        kernel, pad = (size if rows == 2 else 1, size), fields.pop("pad", size // 2)
        padding = (pad, pad, pad, pad) if rows == 2 else (pad, pad, 0, 0)
        bias = self.normal(outputs) if fields.pop("bias", False) else None
        stride = fields.pop("stride", 1)
        given = {"stride": (stride, stride), "dilation": (1, 1), "padding_mode": "zeros"} | fields
        weight = self.normal(outputs, inputs // groups, *kernel)
        return self.add(trace.Conv2d, of, weight=weight, bias=bias, padding=padding, groups=groups, **given)

    def linear(self, outputs: int, *, of: int | None = None) -> int:
        of = self.last if of is None else of
        return self.add(trace.Linear, of, weight=self.normal(outputs, self.shape(of)[-1]), bias=None)

    def gate(self, of: int | None = None, **fields: Any) -> int:
        return self.add(trace.Gate, self.last if of is None else of, **fields)

    def cat(self, *of: int) -> int:
        return self.add(trace.Concat, *of, axis=0)

    def moved(self, movement: Any, of: int | None = None) -> int:
        """Applies a function that only moves numbers, or sets some to 0."""
        of = self.last if of is None else of
        numbers = torch.arange(1.0, math.prod(self.shape(of)) + 1, dtype=FLOAT64).view(1, *self.shape(of))
        return self.add(trace.Rearrange, of, source=movement(numbers)[0].long() - 1)

    def max_pool(self, size: int, stride: int, of: int | None = None) -> int:
        window = Window((size, size), (stride, stride), (size // 2, size // 2), (1, 1))
        return self.add(trace.MaxPool, self.last if of is None else of, window=window)

    def avg_pool(self, size: int, of: int | None = None) -> int:
        window = Window((size, size), (size, size), (0, 0), (1, 1))
        fields = {"count_include_pad": True, "divisor": None}
        return self.add(trace.AvgPool, self.last if of is None else of, window=window, **fields)

    def adaptive(self, size: int) -> int:
        """An average over windows of unequal size."""
        rows, columns = (F.adaptive_avg_pool1d(torch.eye(n, dtype=FLOAT64)[None], size)[0].T for n in self.shape()[-2:])
        return self.add(trace.Resample, rows=rows, columns=columns)

    def head(self, outputs: int = 1) -> StepNet:
        """Flattens, and ends with a linear layer."""
        if len(self.shape()) > 1:
            self.add(trace.Flatten)
        self.linear(outputs)
        return self

    def outputs(self, x: Tensor) -> list[Tensor]:
        return run(self.steps, x)

    def kernel(self, x: Tensor, outputs: list[Tensor], *, biases: bool = False, tangent: bool = False) -> Tensor:
        """The kernel that gatedops computes, in float64."""
        network = folded(network_of(self.steps))
        sigmas = [1.0] * len(weighted_layers(network.steps))
        program, per_input = compile_steps(network, sigmas, tangent=tangent, biases=biases)
        columns, words = per_input.rows(x, self._bits(outputs), FLOAT64, 2)
        gram = conv_gram(columns, words, None, None, program.encoded, program.scalars, FLOAT64)
        return gram * 2.0**program.exponent

    def exact(self, x: Tensor, outputs: list[Tensor], **options: bool) -> Tensor:
        return exact_kernel(self.steps, outputs, x, **options)

    def _bits(self, outputs: list[Tensor]) -> GateBits | None:
        words: list[Tensor] = []
        layers: list[GateLayer] = []
        for step in self.steps:
            if not isinstance(step, trace.Gate | trace.MaxPool):
                continue
            q, kind = outputs[step.inputs[0]], "gate" if isinstance(step, trace.Gate) else "select"
            if isinstance(step, trace.MaxPool):
                gates = step.window.select(q)
            else:
                gates = q > 0 if step.inside is None else (q > step.inside[0]) & (q < step.inside[1])
            layers.append(GateLayer(step.name, tuple(gates.shape[1:]), kind, sum(part.shape[1] for part in words)))
            words.append(pack_layer(gates, kind))
        return GateBits(torch.cat(words, 1), tuple(layers)) if words else None


def random_net(seed: int) -> StepNet:
    """A small network of images, with branches, groups and slopes; some are none that path kernels cover."""
    choose = random.Random(seed)
    net = StepNet((choose.choice([2, 4]), choose.choice([3, 4]), 4), seed)
    for _ in range(choose.randint(3, 7)):
        _extend(net, choose)
    return net.head(2)


def _extend(net: StepNet, choose: random.Random) -> None:
    channels, *size = net.shape()
    alike = [index for index, step in enumerate(net.steps[:-1]) if list(step.shape[1:]) == size]
    bias = choose.random() < 0.3
    match choose.choice([*["conv"] * 2, "groups", "depthwise", *["gate"] * 3, "slope", "cat", "add", "other"]):
        case "conv":
            net.conv(choose.choice([2, 4]), choose.choice([1, 3]), stride=choose.choice([1, 1, 2]), bias=bias)
        case "groups" if channels % 2 == 0:
            net.conv(4, 3, groups=2, bias=bias)
        case "depthwise":
            net.conv(channels * choose.choice([1, 1, 2]), 3, groups=channels, stride=choose.choice([1, 1, 2]))
        case "gate":
            net.gate(inside=(0.0, 1.5)) if choose.random() < 0.1 else net.gate()
        case "slope":
            slopes = torch.tensor([choose.choice([0.0, 0.25, -1.0]) for _ in range(channels)], dtype=FLOAT64)
            net.gate(slope=slopes if choose.random() < 0.3 else choose.choice([0.5, -1.0]))
        case "cat" if alike and channels <= 4:
            net.cat(net.last, choose.choice(alike))
        case "add" if alike:
            same = [index for index in alike if net.shape(index) == net.shape()]
            if same:
                net.add(trace.Add, net.last, choose.choice(same))
        case _:
            _move(net, choose)


def _move(net: StepNet, choose: random.Random) -> None:
    channels, height, width = net.shape()
    order = choose.sample(range(channels), choose.randint(1, channels))
    movements = [
        lambda x: x[:, order],
        lambda x: F.pad(x, (1, 0, 1, 1)),
        lambda x: F.pad(x, (1, 1, 0, 1), "replicate"),
        lambda x: x.flip(3),
        lambda x: F.interpolate(x, scale_factor=2) if height * width < 9 else x.roll(1, 2),
    ]
    match choose.choice(["move", "move", "max", "mean", "adaptive", "scale"]):
        case "max" if min(height, width) > 1:
            net.max_pool(choose.choice([2, 3]), choose.choice([1, 2]))
        case "mean" if min(height, width) > 1:
            net.avg_pool(2)
            if choose.random() < 0.5:
                net.conv(channels, 3, groups=choose.choice([1, channels]))
        case "adaptive" if min(height, width) > 2:
            net.adaptive(2)
        case "scale":
            net.add(trace.Scale, factor=torch.tensor(choose.choice([-0.5, 3.0]), dtype=FLOAT64))
        case _:
            net.moved(choose.choice(movements))
