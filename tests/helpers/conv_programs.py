"""Programs of the conv_gram family for tests: one instruction at a time, chains of convolutions, and random ones."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from strategies import generator
from torch import Tensor

from gatedops import reference
from gatedops.layout import layer_words
from gatedops.ops.conv_program import Instruction, Op, encode

Pair = tuple[int, int]
CHANNELS = [1, 31, 33, 63, 64, 65, 200]


def window(kernel: Pair, stride: Pair = (1, 1), pad: Pair = (0, 0), dilation: Pair = (1, 1)) -> dict[str, int]:
    """Returns the fields of an instruction's window."""
    names = ("kernel_h", "kernel_w", "stride_h", "stride_w", "pad_top", "pad_left", "dilation_h", "dilation_w")
    return dict(zip(names, (*kernel, *stride, *pad, *dilation), strict=True))


def same(kernel: Pair) -> dict[str, int]:
    """Returns the window of a convolution of stride 1 that keeps the size, for odd kernels."""
    return window(kernel, pad=(kernel[0] // 2, kernel[1] // 2))


@dataclass
class Programs:
    """Appends instructions and lays out what they read: `columns` of x and layers of `masks`."""

    code: list[Instruction] = field(default_factory=list)
    scalars: list[float] = field(default_factory=list)
    masks: list[tuple[int, int]] = field(default_factory=list)  # The positions and channels of each layer.
    columns: int = 0

    def size(self, register: int) -> Pair:
        return self.code[register].out_height, self.code[register].out_width

    def emit(
        self, op: Op, out: Pair, src: int = -1, scale: float = 1.0, constant: float | None = None, **fields: Any
    ) -> int:
        height, width = out if src < 0 else self.size(src)
        fields |= {} if constant is None else {"constant": self.number(constant)}
        self.code.append(
            Instruction(op, len(self.code), src, scale=self.number(scale), height=height, width=width)._replace(
                out_height=out[0], out_width=out[1], **fields
            )
        )
        return len(self.code) - 1

    def number(self, value: float) -> int:
        self.scalars.append(value)
        return len(self.scalars) - 1

    def input(self, size: Pair, channels: int = 1, scale: float = 1.0) -> int:
        self.columns += channels * size[0] * size[1]
        first = self.columns - channels * size[0] * size[1]
        return self.emit(Op.INPUT, size, scale=scale, first=first, channels=channels)

    def masked(self, positions: int, channels: int, own_y: bool = False) -> dict[str, int]:
        """Returns the fields of a new layer of masks, or none for 0 channels. If `own_y`, the rows of y have masks of
        their own."""
        if channels == 0:
            return {}
        fields = {"channels": channels}
        for name in ("first", "first_y") if own_y else ("first",):
            fields[name] = sum(layer_words(*layer) for layer in self.masks)
            self.masks.append((positions, channels))
        return fields

    def box(self, src: int, channels: int, geometry: dict[str, int], out: Pair | None = None, **more: Any) -> int:
        out = self.size(src) if out is None else out
        return self.emit(Op.BOX, out, src, **geometry, **self.masked(out[0] * out[1], channels), **more)

    def gate(self, src: int, channels: int, **more: Any) -> int:
        out = self.size(src)
        return self.emit(Op.GATE, out, src, **self.masked(out[0] * out[1], channels), **more)

    def masked_box(self, src: int, masks: dict[str, int], geometry: dict[str, int], out: Pair, **more: Any) -> int:
        return self.emit(Op.MASKED_BOX, out, src, **geometry, **masks, **more)

    def resample(self, src: int, rows: list[list[float]], columns: list[list[float]], scale: float = 1.0) -> int:
        """Appends a RESAMPLE with these matrices, which have a row for each row or column of its result."""
        first, *_ = [self.number(weight) for row in rows + columns for weight in row]
        return self.emit(Op.RESAMPLE, (len(rows), len(columns)), src, scale, scale2=first)

    def mean(self, src: int) -> int:
        """Appends global average pooling."""
        h, w = self.size(src)
        return self.emit(Op.POOL, (1, 1), src, scale=(h * w) ** -2, **window((h, w)))

    def trace(self, src: int) -> int:
        return self.emit(Op.TRACE, (1, 1), src)

    def rows(self, n: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """Makes random x (n, D) and words (n, W) for the program."""
        made = generator(seed)
        x = torch.rand(n, self.columns, generator=made, dtype=torch.float64).to(dtype)
        layers = [torch.rand(n, p, c, generator=made) < 0.5 for p, c in self.masks]
        words = [reference.words_of_layer(layer) for layer in layers] or [torch.zeros(n, 8, dtype=torch.int32)]
        return x, torch.cat(words, 1)

    def arguments(
        self, n: int, m: int | None = None, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, list[int], list[float], torch.dtype]:
        """Returns the arguments of the op, on random rows. m is None for the symmetric Gram; there the masks of the
        rows of y are those of the rows of x, which makes the kernel symmetric."""
        y, y_words = (None, None) if m is None else self.rows(m, seed + 1, dtype)
        code = [i._replace(first_y=-1) for i in self.code] if m is None else self.code
        return *self.rows(n, seed, dtype), y, y_words, encode(code), self.scalars, dtype


def chain(
    size: Pair, layers: int, channels: int = 64, kernel: Pair = (3, 3), head: str = "mean", inputs: int = 1, **more: int
) -> Programs:
    """Makes gated convolutions of stride 1 that keep the size, a head ("mean" or "trace") and a gated dense layer."""
    p = Programs()
    register = p.input(size, inputs)
    for _ in range(layers):
        register = p.box(register, channels, same(kernel), scale=2.0**-7, **more)
    p.gate(getattr(p, head)(register), 100)
    return p


def residual(size: Pair) -> Programs:
    """Makes a strided block with a 1 x 1 shortcut, an identity block with a gate after the addition, and average
    pooling."""
    p = Programs()
    half = (-(-size[0] // 2), -(-size[1] // 2))
    start = p.box(p.input(size, 3), 20, same((3, 3)))
    block = p.box(p.box(start, 30, window((3, 3), (2, 2), (1, 1)), half), 0, same((3, 3)))
    shortcut = p.box(start, 0, window((1, 1), (2, 2)), half)
    total = p.emit(Op.ADD, half, block, src2=shortcut, scale2=p.number(1.0))
    gated = p.gate(total, 30)
    block = p.box(p.box(gated, 30, same((3, 3))), 0, same((3, 3)))
    total = p.emit(Op.ADD, half, p.gate(block, 30), src2=p.gate(total, 30), scale2=p.number(1.0))
    p.trace(p.emit(Op.POOL, (1, 1), total, **window((2, 2), (2, 2)))) if min(half) > 1 else p.mean(total)
    return p


def pooled() -> Programs:
    """Makes a convolution of 16 x 16 pixels, 2 x 2 average pooling, and a mean."""
    p = Programs()
    register = p.box(p.input((16, 16)), 64, same((3, 3)))
    p.mean(p.emit(Op.POOL, (8, 8), register, **window((2, 2), (2, 2))))
    return p


def depthwise(size: Pair) -> Programs:
    """Makes a gated convolution, a depthwise one with masks for each place in its windows, and a mean."""
    p = Programs()
    register = p.box(p.input(size, 3), 33, same((3, 3)))
    masks = p.masked(size[0] * size[1] * 9, 33)
    p.mean(p.box(p.masked_box(register, masks, same((3, 3)), size, scale=0.125), 20, same((3, 3))))
    return p


def nearest(out: int, size: int) -> list[list[float]]:
    """Returns the matrix of a RESAMPLE that repeats or leaves out pixels."""
    return [[float(source == pixel * size // out) for source in range(size)] for pixel in range(out)]


def linear(out: int, size: int) -> list[list[float]]:
    """Returns the matrix of a RESAMPLE that interpolates between two pixels."""
    places = [pixel * (size - 1) / max(1, out - 1) for pixel in range(out)]
    return [[max(0.0, 1 - abs(place - source)) for source in range(size)] for place in places]


def resampled(size: Pair, matrix: list[list[float]]) -> Programs:
    """Makes a gated convolution, a RESAMPLE with the same matrix for rows and columns, and a flattened convolution."""
    p = Programs()
    register = p.resample(p.box(p.input(size, 3), 33, same((3, 3))), matrix, matrix)
    p.trace(p.box(register, 20, same((3, 3))))
    return p


class RandomProgram:
    """Makes instructions of every kind in random order, from a seed. Without `extended`, they are those that the CUDA
    kernels know: no MASKED_BOX, no RESAMPLE, no negative padding, no masks of their own for the rows of y."""

    def __init__(self, seed: int, extended: bool = True) -> None:
        self.random, self.extended = random.Random(seed), extended
        self.program = Programs()
        self.registers = [self._input((self.random.randint(1, 6), self.random.randint(1, 6)))]
        kinds = [self._box] * 6 + [self._gate, self._pool, self._select, self._add, self._constant, self._second_input]
        kinds += [self._masked_box] * 2 + [self._resample] * 2 if extended else []
        for _ in range(self.random.randint(1, 7)):
            made = self.random.choice(kinds)(self.random.choice(self.registers[-3:]))
            self.registers += [] if made is None else [made]
        self._head(self.registers[-1])

    def _channels(self) -> int:
        return self.random.choice(CHANNELS)

    def _scale(self) -> float:
        return self.random.choice([1.0, 0.5, 0.125])

    def _input(self, size: Pair) -> int:
        return self.program.input(size, self.random.choice([1, 2, 3]), self._scale())

    def _second_input(self, src: int) -> int:
        return self._input(self.program.size(src))

    def _window(self, size: Pair, kernels: list[int], circular: bool = False) -> tuple[dict[str, int], Pair] | None:
        """Draws a window and the size of its result; None if that has no pixels."""
        pick = self.random.choice
        kernel, stride, dilation = (
            (pick(kernels), pick(kernels)),
            (pick([1, 1, 2, 3]), pick([1, 1, 2])),
            pick([1, 1, 2]),
        )
        pad = tuple(pick([0, dilation * (k // 2), 1, *([-1] if self.extended else [])]) for k in kernel)
        if circular:
            pad = tuple(map(min, pad, size))
        out = tuple(
            (length + 2 * before - dilation * (k - 1) - 1) // step + 1
            for length, before, k, step in zip(size, pad, kernel, stride, strict=True)
        )
        if pick([False, True, True]):  # It keeps the size, or divides it by the stride.
            out = tuple(-(-length // step) for length, step in zip(size, stride, strict=True))
        return None if min(out) < 1 else (window(kernel, stride, pad, (dilation, dilation)), out)

    def _box(self, src: int) -> int | None:
        circular = self.random.random() < 0.4
        made = self._window(self.program.size(src), [1, 1, 2, 3, 3, 5], circular)
        if made is None:
            return None
        channels, constant = self.random.choice([0, self._channels()]), self.random.choice([None, 0.25])
        geometry = made[0] | {"circular": int(circular)} | self._masks(made[1][0] * made[1][1], channels)
        return self.program.box(src, 0, geometry, made[1], scale=self._scale(), constant=constant)

    def _masked_box(self, src: int) -> int | None:
        circular = self.random.random() < 0.4
        made = self._window(self.program.size(src), [1, 2, 3], circular)
        if made is None:
            return None
        geometry, (h, w) = made
        masks = self._masks(h * w * geometry["kernel_h"] * geometry["kernel_w"], self._channels())
        geometry |= {"circular": int(circular)}
        return self.program.masked_box(src, masks, geometry, (h, w), scale=self._scale())

    def _masks(self, positions: int, channels: int) -> dict[str, int]:
        own_y = self.extended and self.random.random() < 0.3
        return self.program.masked(positions, channels, own_y)

    def _gate(self, src: int) -> int:
        size = self.program.size(src)
        masks = self._masks(size[0] * size[1], self._channels())
        return self.program.emit(Op.GATE, size, src, self._scale(), **masks)

    def _resample(self, src: int) -> int:
        sizes = [(self.random.randint(1, 6), size) for size in self.program.size(src)]
        kinds = [nearest, linear, self._any_matrix]
        rows, columns = (self.random.choice(kinds)(*size) for size in sizes)
        return self.program.resample(src, rows, columns, self._scale())

    def _any_matrix(self, out: int, size: int) -> list[list[float]]:
        # Weights of both signs could cancel, and leave only rounding errors.
        return [[self.random.choice([0.0, 0.0, 1.0, 0.5, 0.25]) for _ in range(size)] for _ in range(out)]

    def _pool(self, src: int) -> int | None:
        made = self._window(self.program.size(src), [1, 2, 2, 3])
        if made is None:
            return None
        weights = [self.random.choice([0.25, 0.5, 1 / 3]) for _ in range(made[1][0] * made[1][1])]
        first, *_ = [self.program.number(weight) for weight in weights]
        listed = self.random.choice([{}, {"scale2": first}])
        return self.program.emit(Op.POOL, made[1], src, scale=self._scale(), **made[0], **listed)

    def _select(self, src: int) -> int | None:
        made = self._window(self.program.size(src), [1, 2, 2, 3])
        if made is None:
            return None
        geometry, (h, w) = made
        masks = self._masks(h * w * geometry["kernel_h"] * geometry["kernel_w"], self._channels())
        return self.program.emit(Op.SELECT, (h, w), src, scale=self._scale(), **geometry, **masks)

    def _add(self, src: int) -> int:
        size = self.program.size(src)
        second = self.random.choice([-1] + [r for r in range(len(self.program.code)) if self.program.size(r) == size])
        fields = {"src2": second} | ({"scale2": self.program.number(0.5)} if second >= 0 else {})
        return self.program.emit(Op.ADD, size, src, self._scale(), self.random.choice([None, 0.75]), **fields)

    def _constant(self, src: int) -> int:
        size = self.program.size(src)
        made = self.program.emit(Op.CONSTANT, size, scale=0.5, pattern=self.random.randint(0, 3))
        if self.random.random() < 0.3:
            return made
        return self.program.emit(Op.ADD, size, src, src2=made, scale2=self.program.number(2.0))

    def _head(self, src: int) -> None:
        h, w = self.program.size(src)
        kind = self.random.choice(["trace", "mean", "window"])
        if kind == "window":
            register = self.program.emit(Op.POOL, (1, 1), src, **window((max(1, h - 1), w)))
        else:
            register = getattr(self.program, kind)(src)
        for _ in range(self.random.randint(0, 2)):
            channels = self.random.choice([1, 31, 64, 100, 1100])
            if self.random.random() < 0.5:
                register = self.program.gate(register, channels, scale=0.1)
            else:
                register = self.program.box(register, channels, window((1, 1)), scale=0.1, constant=0.2)
