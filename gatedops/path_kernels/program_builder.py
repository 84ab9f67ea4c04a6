"""Writes programs of the conv_gram family, and keeps their numbers in range (docs/math.md, section 13)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gatedops.ops.conv_program import Instruction, Op, encode
from gatedops.path_kernels.geometry import Geometry
from gatedops.trace.pooling import Pair

# A Matrix holds the weights of the input pixels along one axis, row by row for the output pixels.
Matrix = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Value:
    """A kernel between pixels: ``factor * 2 ** exponent`` times the content of a register.

    Args:
        register: the number of the register.
        size: (height, width) of the images.
        bound: log2 of the largest number that the register can hold if no pixel's squared norm exceeds 1; at most 0.
        exponent, factor: give the factor by which the register is still to be multiplied; it is not 0.
    """

    register: int
    size: Pair
    bound: float
    exponent: int = 0
    factor: float = 1.0

    def times(self, factor: float) -> Value:
        mantissa, exponent = math.frexp(self.factor * factor)
        return replace(self, factor=mantissa, exponent=self.exponent + exponent)

    @property
    def stored(self) -> Value:
        """The content of the register, without the factor."""
        return Value(self.register, self.size, self.bound)

    def scaled_as(self, other: Value) -> Value:
        """This value times the factor of `other`."""
        return replace(self, exponent=self.exponent + other.exponent).times(other.factor)

    @property
    def largest(self) -> float:
        """log2 of an upper bound of its numbers."""
        return math.log2(abs(self.factor)) + self.exponent + self.bound


@dataclass(frozen=True)
class Program:
    """A finished program; the kernel is its result times ``2 ** exponent``. `places` names, for each instruction, the
    step of the network that needs it."""

    instructions: tuple[Instruction, ...]
    scalars: tuple[float, ...]
    exponent: int
    places: tuple[str, ...] = ()

    @property
    def encoded(self) -> list[int]:
        return encode(self.instructions)


class ProgramBuilder:
    """Appends instructions. The exponent of each register is the least whole number that keeps it within +-1 for all
    gates if no pixel's squared norm exceeds 1. So it depends only on the architecture."""

    def __init__(self) -> None:
        self._program: list[Instruction] = []
        self._scalars: list[float] = []
        self._places: list[str] = []
        # Names the step whose instructions are written.
        self.place = ""

    def input(self, first: int, channels: int, size: Pair) -> Value:
        """The inner products of pixels that are columns of x, from `first` on."""
        return self._emit(Op.INPUT, size, 0.0, first=first, channels=channels)

    def constant(self, pattern: int, size: Pair) -> Value:
        """1 for two pixels whose coordinates agree as the pattern asks, else 0."""
        return self._emit(Op.CONSTANT, size, 0.0, pattern=pattern)

    def box(self, value: Value, geometry: Geometry, constant: bool) -> Value:
        """A convolution without its gate; with `constant`, 1 is added to every number."""
        if geometry.is_identity and geometry.out == value.size:
            return self.add(value, None, True) if constant else value
        largest = value.largest + math.log2(math.prod(geometry.kernel))
        return self._emit(Op.BOX, geometry.out, largest, (value,), constant, **geometry.fields())

    def gate(self, value: Value, first: int, channels: int, first_y: int = -1) -> Value:
        largest = value.largest + math.log2(channels)
        return self._emit(Op.GATE, value.size, largest, (value,), first=first, channels=channels, first_y=first_y)

    def select(self, value: Value, geometry: Geometry, first: int, channels: int, first_y: int = -1) -> Value:
        # A channel has at most one mask that is on in a window.
        largest = value.largest + math.log2(channels)
        fields = geometry.fields() | {"first": first, "channels": channels, "first_y": first_y}
        return self._emit(Op.SELECT, geometry.out, largest, (value,), **fields)

    def masked_box(self, value: Value, geometry: Geometry, first: int, channels: int, first_y: int = -1) -> Value:
        """A depthwise convolution, with a mask for each channel at each place in each window."""
        largest = value.largest + math.log2(math.prod(geometry.kernel) * channels)
        fields = geometry.fields() | {"first": first, "channels": channels, "first_y": first_y}
        return self._emit(Op.MASKED_BOX, geometry.out, largest, (value,), **fields)

    def resample(self, value: Value, rows: Matrix, columns: Matrix) -> Value:
        """The images ``rows @ image @ columns.T``."""
        largest = value.largest + 2 * math.log2(_largest_row(rows) * _largest_row(columns))
        first = len(self._scalars)
        self._scalars.extend(weight for row in (*rows, *columns) for weight in row)
        return self._emit(Op.RESAMPLE, (len(rows), len(columns)), largest, (value,), scale2=first)

    def pool(self, value: Value, geometry: Geometry, weights: Sequence[float]) -> Value:
        """The sums over windows, each times the weight of its output pixel."""
        largest = value.largest + 2 * math.log2(math.prod(geometry.kernel) * max(map(abs, weights)))
        if min(weights) == max(weights):
            value, listed = value.times(weights[0] ** 2), -1
        else:
            listed = len(self._scalars)
            self._scalars.extend(weights)
        return self._emit(Op.POOL, geometry.out, largest, (value,), scale2=listed, **geometry.fields())

    def trace(self, value: Value) -> Value:
        return self._emit(Op.TRACE, (1, 1), value.largest + math.log2(math.prod(value.size)), (value,))

    def add(self, a: Value, b: Value | None, constant: bool = False) -> Value:
        """a + b, where a missing b is 0; with `constant`, 1 is added to every number."""
        if b is not None and a.register == b.register and not constant:
            return replace(a, factor=1.0).times(a.factor + math.ldexp(b.factor, b.exponent - a.exponent))
        largest = a.largest if b is None else _log2_of_sum(a.largest, b.largest)
        return self._emit(Op.ADD, a.size, largest, (a,) if b is None else (a, b), constant)

    def finish(self, value: Value) -> Program:
        """The program whose result is this value of one pixel."""
        result = self._emit(Op.ADD, value.size, value.largest, (value,))
        fused, register_of = _fused(_needed(self._program), self._scalars)
        places = dict(zip(register_of.values(), (self._places[old] for old in register_of), strict=True))
        return Program(tuple(fused), tuple(self._scalars), result.exponent, tuple(places[i.dst] for i in fused))

    def _emit(
        self, op: Op, size: Pair, largest: float, sources: tuple[Value, ...] = (), constant: bool = False, **fields: int
    ) -> Value:
        """Appends an instruction whose numbers are at most 2 ** largest, before the constant is added."""
        largest = _log2_of_sum(largest, 0.0) if constant else largest
        exponent = math.ceil(largest)
        register, before = len(self._program), sources[0].size if sources else size
        scales = [math.ldexp(v.factor, v.exponent - exponent) for v in sources] or [1.0]
        scales += [math.ldexp(1.0, -exponent)] if constant else []
        names = [*("scale", "scale2")[: len(sources) or 1], *(["constant"] if constant else [])]
        fields |= {name: self._scalar(scale) for name, scale in zip(names, scales, strict=True)}
        fields |= dict(zip(("src", "src2"), (v.register for v in sources), strict=False))
        fields |= dict(zip(("height", "width", "out_height", "out_width"), (*before, *size), strict=True))
        self._program.append(Instruction(op, register, **fields))
        self._places.append(self.place)
        return Value(register, size, largest - exponent, exponent)

    def _scalar(self, number: float) -> int:
        self._scalars.append(number)
        return len(self._scalars) - 1


def _log2_of_sum(a: float, b: float) -> float:
    """log2(2 ** a + 2 ** b)."""
    return max(a, b) + math.log2(1 + 2.0 ** -abs(a - b))


def _largest_row(matrix: Sequence[Sequence[float]]) -> float:
    """The largest sum of the absolute values in a row."""
    return max(sum(map(abs, row)) for row in matrix)


def _needed(program: list[Instruction]) -> list[Instruction]:
    """The instructions that the last one depends on."""
    read = {program[-1].dst}
    for i in reversed(program):
        if i.dst in read:
            read |= {i.src, i.src2}
    return [i for i in program if i.dst in read]


def _fused(program: list[Instruction], scalars: list[float]) -> tuple[list[Instruction], dict[int, int]]:
    """The same program, in which each BOX that only one GATE reads does that gate's work too, and the new number of
    each register."""
    reads = Counter(register for i in program for register in (i.src, i.src2))
    fused: list[Instruction] = []
    # Gives the new number of each old register.
    register_of = {-1: -1}
    for i in program:
        source = fused[register_of[i.src]] if i.src >= 0 else None
        if i.op == Op.GATE and source is not None and source.op == Op.BOX and source.first < 0 and reads[i.src] == 1:
            for index in {source.scale, source.constant} - {-1}:
                scalars[index] *= scalars[i.scale]
            fused[source.dst] = source._replace(first=i.first, channels=i.channels, first_y=i.first_y)
            register_of[i.dst] = source.dst
        else:
            register_of[i.dst] = len(fused)
            fused.append(i._replace(dst=len(fused), src=register_of[i.src], src2=register_of[i.src2]))
    del register_of[-1]
    return fused, register_of
