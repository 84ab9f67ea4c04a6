"""Writes instructions for the second moments of signals behind layers, pools and sums (docs/math.md, section 13)."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

from gatedops.ops.conv_program import Op
from gatedops.path_kernels.geometry import Geometry
from gatedops.path_kernels.masks import Mask
from gatedops.path_kernels.per_input import PerInput, Shape
from gatedops.path_kernels.program_builder import Program, ProgramBuilder, Value
from gatedops.path_kernels.terms import ChannelSumTerm, ChannelTerm, InputTerm, Kernel, Signal, Term


class Moments:
    """Writes the instructions for the moments of one network's signals.

    Args:
        shape: the shape of an input.
        tangent: follow E[K^V] in addition to E[f f'].
    """

    def __init__(self, shape: Shape, tangent: bool) -> None:
        self.per_input = PerInput(shape)
        self._builder = ProgramBuilder()
        self._tangent = tangent
        self._sums: dict[Signal, Kernel] = {}
        self._made: dict[tuple[object, ...], Value] = {}

    def layer(self, source: Kernel, variance: float, geometry: Geometry, bias: bool) -> Kernel:
        """The moments of a layer's output before its gate.

        Args:
            source: the moments of the layer's input, summed over channels.
            variance: that of the layer's weights.
            bias: the layer's biases start paths.
        """
        if not self._tangent:
            return Kernel(self._box(_scaled(source.a, variance), geometry, bias))
        # A bias is trained but starts at 0, so it has a derivative but no second moment.
        inner = self.add(_scaled(source.t, variance), source.a)
        return Kernel(_scaled(self._box(source.a, geometry, False), variance), self._box(inner, geometry, bias))

    def constant(self, pattern: int, size: tuple[int, int]) -> Kernel:
        """The moments of a constant. Like a bias, it is trained but starts at 0 in the tangent kernel."""
        value = self._builder.constant(pattern, size)
        return Kernel(None, value) if self._tangent else Kernel(value)

    def pooled(self, kernel: Kernel, geometry: Geometry, weights: tuple[float, ...]) -> Kernel:
        key = (Op.POOL, geometry, weights)
        return kernel.each(lambda value: self._once(value, key, lambda v: self._builder.pool(v, geometry, weights)))

    def flattened(self, kernel: Kernel) -> Kernel:
        return kernel.each(lambda value: self._once(value, (Op.TRACE,), self._builder.trace))

    def channel_sum(self, signal: Signal) -> Kernel:
        """The moments of a signal, summed over its channels."""
        if signal not in self._sums:
            self._sums[signal] = reduce(self.added, (self._sum_of(term, signal.shape) for term in signal.terms))
        return self._sums[signal]

    def added(self, a: Kernel, b: Kernel) -> Kernel:
        return Kernel(self.add(a.a, b.a), self.add(a.t, b.t))

    def add(self, a: Value | None, b: Value | None) -> Value | None:
        return (a or b) if a is None or b is None else self._builder.add(a, b)

    def finish(self, kernel: Kernel) -> Program:
        """The program whose result is E[K^V] if that is followed, else E[f f']."""
        value = kernel.t if self._tangent else kernel.a
        if value is None:
            raise RuntimeError("an output that depends on the input has moments")
        return self._builder.finish(value)

    def _box(self, value: Value | None, geometry: Geometry, constant: bool) -> Value | None:
        if value is None:
            return self._builder.constant(0, geometry.out) if constant else None
        if constant:
            return self._builder.box(value, geometry, True)
        return self._once(value, (Op.BOX, geometry), lambda v: self._builder.box(v, geometry, False))

    def _sum_of(self, term: Term, shape: Shape) -> Kernel:
        match term:
            case InputTerm(features=features):
                first = self.per_input.first_column(features, shape)
                return Kernel(self._builder.input(first, shape[0], shape[1:]))
            case ChannelSumTerm(kernel=kernel):
                return kernel
            case ChannelTerm(kernel=kernel, mask=mask) if mask == Mask():
                return kernel.each(lambda value: value.times(shape[0]))
            case ChannelTerm(kernel=kernel, mask=mask):
                return kernel.each(lambda value: self._with_counts(value, mask, shape))
        raise TypeError(type(term).__name__)

    def _with_counts(self, value: Value, mask: Mask, shape: Shape) -> Value:
        """M times the overlaps of the term's masks."""
        first = self.per_input.first_word(mask, shape[0], shape[1:])
        if mask.pooled is None:
            return self._once(value, (Op.GATE, mask), lambda v: self._builder.gate(v, first, shape[0]))
        geometry = mask.pooled.geometry
        return self._once(value, (Op.SELECT, mask), lambda v: self._builder.select(v, geometry, first, shape[0]))

    def _once(self, value: Value, key: tuple[object, ...], make: Callable[[Value], Value]) -> Value:
        """The result of `make`. It is linear, so we make it once for a register and scale it for each value."""
        made = self._made.get((value.register, *key))
        if made is None:
            made = self._made[(value.register, *key)] = make(value.stored)
        return made.scaled_as(value)


def _scaled(value: Value | None, factor: float) -> Value | None:
    return None if value is None else value.times(factor)
