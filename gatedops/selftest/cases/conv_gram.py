"""Cases of the kernels of convolutional networks: programs as npk makes them (docs/math.md, section 13), on random
inputs and gates. If the inputs are small whole numbers and the network averages nothing, its kernel is exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from gatedops.layout import layer_words
from gatedops.ops.conv_program import SAME_ROW
from gatedops.path_kernels.geometry import Geometry
from gatedops.path_kernels.program_builder import ProgramBuilder, Value
from gatedops.portable.gates import words_of
from gatedops.selftest.case import Arguments, Case, Timing
from gatedops.selftest.cases.inputs import FLOAT32, FLOAT64, Draw, call, drawn, drawn_rows, name_of, sliced
from gatedops.trace.pooling import Pair


@dataclass(frozen=True)
class Masks:
    """The masks of one layer of a program. `windows` is the number of pixels in each window of a max-pool, of which
    each channel chooses one or none; it is 0 for gates."""

    pixels: int
    channels: int
    windows: int = 0

    @property
    def words(self) -> int:
        return layer_words(self.pixels * max(1, self.windows), self.channels)

    def rows(self, draw: Draw, n: int) -> Tensor:
        """Returns the words of random masks."""
        if self.windows == 0:
            return words_of(draw.gates(n, self.pixels, self.channels))
        choice = draw.integers(0, self.windows, n, self.pixels, self.channels)
        masks = one_hot(choice, self.windows + 1)[..., : self.windows].bool()
        return words_of(masks.transpose(2, 3).flatten(1, 2))


class Net:
    """Writes the program of a network layer by layer, and remembers which columns and masks it reads."""

    def __init__(self, channels: int, size: Pair) -> None:
        self.builder = ProgramBuilder()
        self.columns = channels * math.prod(size)
        self.masks: list[Masks] = []
        self.input = self.builder.input(0, channels, size)

    def conv(
        self,
        value: Value,
        channels: int,
        kernel: Pair = (3, 3),
        stride: Pair = (1, 1),
        dilation: Pair = (1, 1),
        *,
        circular: bool = False,
        bias: bool = False,
    ) -> Value:
        """Adds a convolution, padded so that stride 1 keeps the size, and its gates; 0 channels mean no gates."""
        before = (dilation[0] * (kernel[0] // 2), dilation[1] * (kernel[1] // 2))
        out = (-(-value.size[0] // stride[0]), -(-value.size[1] // stride[1]))
        made = self.builder.box(value, Geometry(kernel, stride, before, dilation, out, circular), bias)
        return self.gate(made, channels) if channels else made

    def gate(self, value: Value, channels: int) -> Value:
        return self.builder.gate(value, self.first(Masks(math.prod(value.size), channels)), channels)

    def max_pool(self, value: Value, channels: int, kernel: Pair, stride: Pair) -> Value:
        geometry = _windows(value.size, kernel, stride)
        masks = Masks(math.prod(geometry.out), channels, math.prod(kernel))
        return self.builder.select(value, geometry, self.first(masks), channels)

    def depthwise(self, value: Value, channels: int, kernel: Pair) -> Value:
        """Adds a depthwise convolution, padded so that it keeps the size. Each place in its windows has masks."""
        geometry = Geometry(kernel, (1, 1), (kernel[0] // 2, kernel[1] // 2), (1, 1), value.size)
        masks = Masks(math.prod(value.size) * math.prod(kernel), channels)
        return self.builder.masked_box(value, geometry, self.first(masks), channels)

    def crop(self, value: Value, before: Pair, size: Pair) -> Value:
        """Cuts a part of this size out of the images."""
        return self.builder.box(value, Geometry((1, 1), (1, 1), (-before[0], -before[1]), (1, 1), size), False)

    def average(self, value: Value, kernel: Pair, stride: Pair, *, uneven: bool = False) -> Value:
        """Adds an average pool. If `uneven`, each output pixel has a weight of its own."""
        geometry = _windows(value.size, kernel, stride)
        weights = [1 / (math.prod(kernel) + uneven * pixel) for pixel in range(math.prod(geometry.out))]
        return self.builder.pool(value, geometry, weights)

    def mean(self, value: Value) -> Value:
        return self.average(value, value.size, (1, 1))

    def first(self, masks: Masks) -> int:
        """Adds masks, and returns the word at which they begin."""
        self.masks.append(masks)
        return sum(before.words for before in self.masks[:-1])

    def arguments(self, draw: Draw, value: Value, n: int, m: int | None, dtype: torch.dtype, whole: bool) -> Arguments:
        """Returns the op's arguments for the kernel of this value. If m is None, they ask for the symmetric Gram of n
        inputs; else both sides are slices of longer rows."""
        program = self.builder.finish(value)
        x, words = self._rows(draw, n, dtype, whole)
        y, y_words = (None, None) if m is None else map(sliced, self._rows(draw, m, dtype, whole))
        if m is not None:
            x, words = sliced(x), sliced(words)
        return call(x, words, y, y_words, program.encoded, list(program.scalars), dtype)

    def _rows(self, draw: Draw, n: int, dtype: torch.dtype, whole: bool) -> tuple[Tensor, Tensor]:
        x = draw.integers(-3, 3, n, self.columns).to(dtype) if whole else draw.normal(n, self.columns, dtype=dtype)
        return x, torch.cat([masks.rows(draw, n) for masks in self.masks], 1)


def _windows(size: Pair, kernel: Pair, stride: Pair) -> Geometry:
    """Returns the windows of a pool without padding."""
    out = ((size[0] - kernel[0]) // stride[0] + 1, (size[1] - kernel[1]) // stride[1] + 1)
    return Geometry(kernel, stride, (0, 0), (1, 1), out)


# --- networks: each gives its kernel --------------------------------------------------------------------------------


def chain() -> tuple[Net, Value]:
    net = Net(3, (5, 7))
    value = net.input
    for channels in (33, 64, 31):
        value = net.conv(value, channels)
    return net, net.gate(net.mean(value), 100)


def flat() -> tuple[Net, Value]:
    """Makes a network whose kernel is exact for whole numbers."""
    net = Net(2, (4, 5))
    value = net.conv(net.conv(net.input, 9), 20, (3, 1))
    return net, net.builder.trace(value)


def flat_bias() -> tuple[Net, Value]:
    """Makes a network whose kernel is exact for whole numbers."""
    net = Net(1, (3, 3))
    value = net.conv(net.conv(net.input, 5, bias=True), 33, (1, 1))
    return net, net.gate(net.builder.trace(value), 3)


def max_pools() -> tuple[Net, Value]:
    net = Net(3, (7, 7))
    value = net.max_pool(net.conv(net.input, 0), 40, (3, 3), (2, 2))
    value = net.conv(value, 33)
    return net, net.mean(net.average(value, (2, 2), (1, 1), uneven=True))


def exact_max_pool() -> tuple[Net, Value]:
    """Makes a network whose kernel is exact for whole numbers."""
    net = Net(1, (6, 4))
    value = net.max_pool(net.conv(net.input, 0), 65, (2, 2), (2, 2))
    return net, net.builder.trace(value)


def residual() -> tuple[Net, Value]:
    net = Net(3, (6, 5))
    start = net.conv(net.input, 33)
    added = net.builder.add(net.conv(net.conv(start, 64), 0), net.conv(start, 0, (1, 1)))
    value = net.conv(net.gate(added, 33), 70, stride=(2, 2))
    return net, net.builder.trace(value)


def circular() -> tuple[Net, Value]:
    net = Net(2, (6, 5))
    value = net.conv(net.input, 65, circular=True)
    value = net.conv(value, 33, dilation=(2, 1), circular=True)
    return net, net.mean(value)


def strided() -> tuple[Net, Value]:
    net = Net(3, (9, 7))
    value = net.conv(net.input, 31, stride=(2, 2), bias=True)
    value = net.builder.add(value, net.builder.constant(SAME_ROW, value.size))
    value = net.average(net.conv(value, 200, dilation=(1, 2)), (2, 2), (2, 2))
    return net, net.mean(net.conv(value, 40, (1, 1)))


def depthwise() -> tuple[Net, Value]:
    net = Net(3, (6, 5))
    value = net.depthwise(net.conv(net.input, 0), 33, (3, 3))
    value = net.depthwise(value, 70, (1, 3))
    return net, net.mean(net.conv(value, 40, (1, 1)))


def exact_depthwise() -> tuple[Net, Value]:
    """Makes a network whose kernel is exact for whole numbers."""
    net = Net(1, (4, 5))
    return net, net.builder.trace(net.depthwise(net.conv(net.input, 0), 33, (3, 3)))


def resampled() -> tuple[Net, Value]:
    """Makes a network that interpolates between pixels."""
    net = Net(3, (4, 3))
    rows = [[max(0.0, 1 - abs(pixel * 3 / 6 - source)) for source in range(4)] for pixel in range(7)]
    columns = [[max(0.0, 1 - abs(pixel * 2 / 4 - source)) for source in range(3)] for pixel in range(5)]
    value = net.conv(net.builder.resample(net.conv(net.input, 33), rows, columns), 64)
    return net, net.mean(value)


def repeated() -> tuple[Net, Value]:
    """Makes a network that repeats pixels and cuts the images. Its kernel is exact for whole numbers."""
    net = Net(2, (2, 3))
    twice = [[[float(source == pixel // 2) for source in range(size)] for pixel in range(2 * size)] for size in (2, 3)]
    value = net.builder.resample(net.conv(net.input, 9), twice[0], twice[1])
    value = net.conv(net.crop(value, (1, 2), (3, 4)), 20, (3, 1))
    return net, net.builder.trace(value)


def masks_of_y() -> tuple[Net, Value]:
    """Makes a network in which the rows of y have masks of their own. Its kernel is exact for whole numbers, and not
    symmetric."""
    net = Net(1, (4, 4))
    gates = Masks(16, 33)
    value = net.builder.gate(net.conv(net.input, 0), net.first(gates), 33, net.first(gates))
    geometry = _windows(value.size, (2, 2), (2, 2))
    choices = Masks(4, 40, 4)
    value = net.builder.select(value, geometry, net.first(choices), 40, net.first(choices))
    return net, net.builder.trace(value)


def crossed() -> tuple[Net, Value]:
    """Makes a symmetric kernel: the sum over both orders of two layers of masks. It is exact for whole numbers."""
    net = Net(2, (3, 5))
    value, geometry = net.conv(net.input, 0), _windows((3, 5), (2, 2), (1, 1))
    first, other = (net.first(Masks(8, 33, 4)) for _ in range(2))
    one = net.builder.select(value, geometry, first, 33, other)
    return net, net.builder.trace(net.builder.add(one, net.builder.select(value, geometry, other, 33, first)))


def dense() -> tuple[Net, Value]:
    net = Net(20, (1, 1))
    value = net.input
    for channels in (33, 1000, 2100):
        value = net.conv(value, channels, (1, 1))
    return net, value


Network = Callable[[], tuple[Net, Value]]
# The portable op runs these for kernels that do not know all instructions.
_MAY_BE_REFUSED = (depthwise, exact_depthwise, resampled, repeated, masks_of_y, crossed)


def cases() -> list[Case]:
    made = []
    for network in (chain, max_pools, residual, circular, strided, dense):
        for n, m in ((20, None), (15, 9)):
            made += [_case(network, n, m, dtype, whole=False) for dtype in (FLOAT32, FLOAT64)]
    for network in (flat, flat_bias, exact_max_pool):
        made += [_case(network, n, m, FLOAT32, whole=True) for n, m in ((37, None), (20, 37))]
    for network in (depthwise, resampled):
        made += [_case(network, 10, None, FLOAT32, whole=False), _case(network, 7, 9, FLOAT64, whole=False)]
    for network in (exact_depthwise, repeated, crossed):
        made += [_case(network, n, m, FLOAT32, whole=True) for n, m in ((19, None), (9, 17))]
    return [
        *made,
        _case(masks_of_y, 9, 17, FLOAT32, whole=True),
        _case(flat, 6, None, FLOAT64, whole=True),
        _case(flat, 1, None, FLOAT32, whole=True),
        _case(flat, 0, 3, FLOAT32, whole=True),
    ]


def _case(network: Network, n: int, m: int | None, dtype: torch.dtype, *, whole: bool) -> Case:
    def build(draw: Draw) -> Arguments:
        net, value = network()
        return net.arguments(draw, value, n, m, dtype, whole)

    rows = f"{n} inputs" if m is None else f"{n} x {m} inputs"
    name = f"conv_gram of the network {network.__name__}, {rows}, {'whole' if whole else 'any'} {name_of(dtype)}"
    close = frozenset() if whole else frozenset({0})
    return Case(name, "conv_gram", drawn(build), close, may_refuse=network in _MAY_BE_REFUSED)


def timings() -> list[Timing]:
    return [
        Timing(f"conv_gram of 3 convolutions of 64 channels, {n} inputs of 32 x 32", "conv_gram", size,
               drawn_rows(_images, n), frozenset({0}))
        for size, n in (("small", 24), ("large", 96))
    ]  # fmt: skip


def _images(draw: Draw, n: int) -> Arguments:
    net = Net(3, (32, 32))
    value = net.input
    for _ in range(3):
        value = net.conv(value, 64)
    return net.arguments(draw, net.gate(net.mean(value), 256), n, None, FLOAT32, whole=False)
