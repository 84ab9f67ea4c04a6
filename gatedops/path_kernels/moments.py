"""Writes instructions for the second moments of signals behind layers, pools and sums (docs/math.md, section 13)."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

from gatedops.ops.conv_program import Op
from gatedops.path_kernels.canonical import Network
from gatedops.path_kernels.geometry import Geometry
from gatedops.path_kernels.masks import Mask
from gatedops.path_kernels.per_input import PerInput
from gatedops.path_kernels.program_builder import Matrix, Program, ProgramBuilder, Value
from gatedops.path_kernels.terms import ChannelSumTerm, ChannelTerm, InputTerm, Kernel, Term
from gatedops.trace.pooling import Pair


class Moments:
    """Writes the instructions for the moments of one network's signals.

    Args:
        network: the network.
        tangent: follow E[K^V] in addition to E[f f'].
    """

    def __init__(self, network: Network, tangent: bool) -> None:
        self.per_input = PerInput(network)
        self._builder = ProgramBuilder()
        self.tangent = tangent
        self._sums: dict[tuple[tuple[Term, ...], Pair], Kernel] = {}
        self._inputs: dict[int, Value] = {}
        self._made: dict[tuple[object, ...], Value] = {}

    def at(self, place: str) -> None:
        """Notes the name of the step whose instructions come next."""
        self._builder.place = place

    def layer(self, source: Kernel, variance: float, geometry: Geometry, bias: bool) -> Kernel:
        """The moments of a layer's output before its gate.

        Args:
            source: the moments of the layer's input, summed over channels.
            variance: that of the layer's weights.
            bias: the layer's biases start paths.
        """
        if not self.tangent:
            return Kernel(self._box(_scaled(source.a, variance), geometry, bias))
        # A bias is trained but starts at 0, so it has a derivative but no second moment.
        inner = self.add(_scaled(source.t, variance), source.a)
        return Kernel(_scaled(self._box(source.a, geometry, False), variance), self._box(inner, geometry, bias))

    def weighed(self, kernel: Kernel, variance: float) -> Kernel:
        """The moments times the weights of a layer, before their sum over places and channels."""
        if not self.tangent:
            return Kernel(_scaled(kernel.a, variance))
        return Kernel(_scaled(kernel.a, variance), self.add(_scaled(kernel.t, variance), kernel.a))

    def constant(self, pattern: int, size: tuple[int, int]) -> Kernel:
        """The moments of a constant. Like a bias, it is trained but starts at 0 in the tangent kernel."""
        value = self._builder.constant(pattern, size)
        return Kernel(None, value) if self.tangent else Kernel(value)

    def pooled(self, kernel: Kernel, geometry: Geometry, weights: tuple[float, ...]) -> Kernel:
        key = (Op.POOL, geometry, weights)
        return kernel.each(lambda value: self._once(value, key, lambda v: self._builder.pool(v, geometry, weights)))

    def flattened(self, kernel: Kernel) -> Kernel:
        return kernel.each(lambda value: self._once(value, (Op.TRACE,), self._builder.trace))

    def channel_sum(self, terms: tuple[Term, ...], size: Pair) -> Kernel:
        """The moments of a signal, summed over its channels."""
        if (terms, size) not in self._sums:
            self._sums[terms, size] = reduce(self.added, (self._sum_of(term, size) for term in terms), Kernel(None))
        return self._sums[terms, size]

    def added(self, a: Kernel, b: Kernel) -> Kernel:
        return Kernel(self.add(a.a, b.a), self.add(a.t, b.t))

    def add(self, a: Value | None, b: Value | None) -> Value | None:
        return (a or b) if a is None or b is None else self._builder.add(a, b)

    def finish(self, kernel: Kernel) -> Program:
        """The program whose result is E[K^V] if that is followed, else E[f f']."""
        value = kernel.t if self.tangent else kernel.a
        if value is None:
            raise RuntimeError("an output that depends on the input has moments")
        return self._builder.finish(value)

    def _box(self, value: Value | None, geometry: Geometry, constant: bool) -> Value | None:
        if value is None:
            return self._builder.constant(0, geometry.out) if constant else None
        if constant:
            return self._builder.box(value, geometry, True)
        return self._boxed(value, geometry)

    def resampled(self, kernel: Kernel, rows: Matrix, columns: Matrix) -> Kernel:
        """The moments of images ``rows @ image @ columns.T``."""
        key = (Op.RESAMPLE, rows, columns)
        return kernel.each(lambda value: self._once(value, key, lambda v: self._builder.resample(v, rows, columns)))

    def boxed(self, kernel: Kernel, geometry: Geometry) -> Kernel:
        """The sums over a window's places, the same place on both sides."""
        return kernel.each(lambda value: self._boxed(value, geometry))

    def _boxed(self, value: Value, geometry: Geometry) -> Value:
        return self._once(value, (Op.BOX, geometry), lambda v: self._builder.box(v, geometry, False))

    def _sum_of(self, term: Term, size: Pair) -> Kernel:
        match term:
            case InputTerm(features=features, channels=channels):
                first = self.per_input.first_column(features, (len(channels), *size))
                made = self._inputs.get(first) or self._builder.input(first, len(channels), size)
                self._inputs[first] = made
                return Kernel(*(made.times(factor) if factor else None for factor in (term.a, term.t)))
            case ChannelSumTerm(kernel=kernel):
                return kernel
            case ChannelTerm(kernel=kernel, mask=mask, channels=channels):
                return kernel.each(lambda value: self._weighted(value, mask, len(channels), size))
        raise TypeError(type(term).__name__)

    def _weighted(self, value: Value, mask: Mask, units: int, size: Pair) -> Value:
        """M times the sum over the units of gamma gamma'. A gate with a slope is a sum of masks of ones and zeros, and
        each pair of two different masks occurs twice: with the masks of both inputs exchanged."""
        parts = mask.expanded()
        total: Value | None = None
        for index, (factor, left) in enumerate(parts):
            for other, right in parts[index:]:
                masks = (left,) if left == right else (left, right)
                made = self._counted(value, masks, units, size).times(factor * other)
                total = self.add(total, made)
        assert total is not None
        return total

    def _counted(self, value: Value, masks: tuple[Mask, ...], units: int, size: Pair) -> Value:
        """M times the number of units whose mask is on for both inputs. For two masks: the number of units in which the
        first is on for one input and the second for the other, both ways."""
        mask = masks[0]
        if len(masks) == 1 and mask.is_one:
            if mask.window is None:
                return value.times(units)
            return self._boxed(value, mask.window.geometry).times(units)
        first, first_y = (
            self.per_input.first_word(ordered, units, size) for ordered in (masks, tuple(reversed(masks)))
        )
        counts = (first, len(masks) * units, first_y if len(masks) > 1 else -1)
        window = mask.window
        if window is None:
            return self._once(value, (Op.GATE, masks), lambda v: self._builder.gate(v, *counts))
        if window.is_diagonal:
            return self._once(
                value, (Op.MASKED_BOX, masks), lambda v: self._builder.masked_box(v, window.geometry, *counts)
            )
        return self._once(value, (Op.SELECT, masks), lambda v: self._builder.select(v, window.geometry, *counts))

    def _once(self, value: Value, key: tuple[object, ...], make: Callable[[Value], Value]) -> Value:
        """The result of `make`. It is linear, so we make it once for a register and scale it for each value."""
        made = self._made.get((value.register, *key))
        if made is None:
            made = self._made[(value.register, *key)] = make(value.stored)
        return made.scaled_as(value)


def _scaled(value: Value | None, factor: float) -> Value | None:
    return None if value is None else value.times(factor)
