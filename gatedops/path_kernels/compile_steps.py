"""Turns the steps of a network into the program that computes its kernel (docs/math.md, section 13)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from gatedops import trace
from gatedops.ops.conv_program import SAME_COLUMN, SAME_ROW
from gatedops.path_kernels.geometry import geometry_of, windows_of
from gatedops.path_kernels.masks import Chosen, Flattened, Gated, Mask, Pooled, WindowSums
from gatedops.path_kernels.moments import Moments
from gatedops.path_kernels.network import pool_of, recorded_of, shape_of, weighted_layers
from gatedops.path_kernels.per_input import PerInput
from gatedops.path_kernels.program_builder import Program
from gatedops.path_kernels.terms import ChannelSumTerm, ChannelTerm, InputTerm, Kernel, Signal, Term
from gatedops.path_kernels.ties import Layer
from gatedops.trace import Step
from gatedops.trace.step_builder import GATES_ALONE


def compile_steps(
    steps: Sequence[Step], sigmas: Sequence[float], *, tangent: bool, biases: bool
) -> tuple[Program, PerInput]:
    """Makes the program of a network's kernel, and the plan of what the program reads of each input.

    Args:
        steps: those of :func:`gatedops.path_kernels.network.steps_of`.
        sigmas: one for each layer with weights.
        tangent: the kernel is E[K^V]; False: E[f f'], which is the NPK if all sigmas are 1.
        biases: biases and constants start paths.

    Raises:
        ValueError: there is no rule for a step at its place; the error names it.
    """
    return _Compiler(steps, sigmas, tangent, biases).compiled()


class _Compiler:
    def __init__(self, steps: Sequence[Step], sigmas: Sequence[float], tangent: bool, biases: bool) -> None:
        self._steps = steps
        self._variances = {id(layer): sigma**2 for layer, sigma in zip(weighted_layers(steps), sigmas, strict=True)}
        self._recorded = {id(step): index for index, step in enumerate(recorded_of(steps))}
        self._biases = biases
        self._moments = Moments(shape_of(steps[0]), tangent)

    def compiled(self) -> tuple[Program, PerInput]:
        signals: list[Signal] = []
        for index, step in enumerate(self._steps):
            inputs = [signals[source] for source in step.inputs]
            signals.append(Signal(shape_of(step), self._terms(index, step, inputs)))
        self._require_output(signals[-1])
        # All outputs have the same kernel. With one channel, the sum over channels is the kernel of one output.
        kernel = self._moments.channel_sum(replace(signals[-1], shape=(1, 1, 1)))
        return self._moments.finish(kernel), self._moments.per_input

    def _terms(self, index: int, step: Step, inputs: list[Signal]) -> tuple[Term, ...]:
        """The terms of the step's output."""
        match step:
            case trace.Input():
                return (InputTerm(frozenset([index])),)
            case trace.Linear() | trace.Conv2d():
                return (ChannelTerm(frozenset([index]), self._layer(step, inputs[0]), Mask()),)
            case trace.Gate():
                return tuple(self._gated(term, step) for term in inputs[0].terms)
            case trace.MaxPool():
                return tuple(self._max_pooled(term, step) for term in inputs[0].terms)
            case trace.AvgPool() | trace.Mean():
                return self._averaged(step, inputs[0])
            case trace.Flatten():
                return self._flattened(inputs[0])
            case trace.Add():
                self._require_independent(step, *inputs)
                return self._merged(*inputs[0].terms, *inputs[1].terms)
            case trace.AddConstant():
                return self._merged(*inputs[0].terms, *self._constant(index, step))
        raise ValueError(
            f"model: {step.name} is a {type(step).__name__}, which path kernels do not cover; {GATES_ALONE}"
        )

    def _layer(self, layer: Layer, source: Signal) -> Kernel:
        bias = self._biases and layer.bias is not None
        return self._moments.layer(
            self._moments.channel_sum(source), self._variances[id(layer)], geometry_of(layer), bias
        )

    def _constant(self, index: int, step: trace.AddConstant) -> tuple[Term, ...]:
        if not self._biases:
            return ()
        size = shape_of(step)[1:]
        kernel = self._moments.constant(_pattern(step.constant, size), size)
        return (ChannelTerm(frozenset([index]), kernel, Mask()),)

    def _gated(self, term: Term, step: trace.Gate) -> Term:
        layer = self._recorded[id(step)]
        match term:
            case InputTerm():
                return replace(term, features=(*term.features, Gated(layer)))
            case ChannelTerm():
                return replace(term, mask=term.mask.gated(layer))
        raise ValueError(_no_channels(step))

    def _max_pooled(self, term: Term, step: trace.MaxPool) -> Term:
        layer, before = self._recorded[id(step)], self._steps[step.inputs[0]]
        geometry = windows_of(step.window, step)
        match term:
            case InputTerm():
                return replace(term, features=(*term.features, Chosen(layer, geometry)))
            case ChannelTerm(mask=Mask(gates=gates, pooled=None)):
                # The choices already contain the gate that stands right before the pool.
                contained = {self._recorded[id(before)]} if isinstance(before, trace.Gate) else set()
                return replace(term, mask=Mask(pooled=Pooled(layer, geometry, gates - contained)))
            case ChannelTerm():
                raise ValueError(
                    f"model: {step.name} pools the output of another max-pool; path kernels need a Linear or Conv2d"
                    " layer between the two: put one there, or make one MaxPool2d of the two"
                )
        raise ValueError(_no_channels(step))

    def _averaged(self, step: trace.AvgPool | trace.Mean, source: Signal) -> tuple[Term, ...]:
        window, weights = pool_of(step, *source.size)
        geometry = windows_of(window, step)
        made: list[Term] = []
        masked: list[Term] = []
        for term in source.terms:
            match term:
                case InputTerm():
                    made.append(replace(term, features=(*term.features, WindowSums(geometry, weights))))
                case ChannelTerm(mask=mask) if mask == Mask():
                    made.append(replace(term, kernel=self._moments.pooled(term.kernel, geometry, weights)))
                case _:
                    masked.append(term)
        if masked:
            kernel = self._moments.channel_sum(Signal(source.shape, tuple(masked)))
            made.append(ChannelSumTerm(_origins(masked), self._moments.pooled(kernel, geometry, weights)))
        return tuple(made)

    def _flattened(self, source: Signal) -> tuple[Term, ...]:
        if source.size == (1, 1):
            return source.terms
        made: list[Term] = []
        others: list[Term] = []
        for term in source.terms:
            if isinstance(term, InputTerm):
                made.append(replace(term, features=(*term.features, Flattened())))
            else:
                others.append(term)
        if others:
            kernel = self._moments.channel_sum(Signal(source.shape, tuple(others)))
            made.append(ChannelSumTerm(_origins(others), self._moments.flattened(kernel)))
        return tuple(made)

    def _merged(self, *terms: Term) -> tuple[Term, ...]:
        """The same sum in fewer terms: joins the terms with the same mask, and the terms without channels."""
        merged: dict[object, Term] = {}
        for term in terms:
            key = term if isinstance(term, InputTerm) else (type(term), getattr(term, "mask", None))
            same = merged.get(key)
            if isinstance(same, ChannelTerm | ChannelSumTerm) and not isinstance(term, InputTerm):
                kernel = self._moments.added(same.kernel, term.kernel)
                merged[key] = replace(same, origins=same.origins | term.origins, kernel=kernel)
            else:
                merged[key] = term
        return tuple(merged.values())

    def _require_independent(self, step: Step, left: Signal, right: Signal) -> None:
        """Raises ValueError if both sides of an addition carry values of the same layer."""
        shared = _origins(left.terms) & _origins(right.terms)
        if shared:
            names = ", ".join(self._steps[index].name for index in sorted(shared))
            raise ValueError(
                f"model: {step.name} adds two outputs that both carry {names} with no Linear or Conv2d layer between."
                " Their paths share all weights, and path kernels have no rule for that; put a layer into one of the"
                " two"
            )

    def _require_output(self, signal: Signal) -> None:
        last, numbers = self._steps[-1].name, math.prod(signal.shape)
        if signal.size != (1, 1):
            raise ValueError(
                f"model: ends with images at {last}; path kernels need outputs without pixels: add a layer, as in"
                f" npk(nn.Sequential(model, nn.Flatten(), nn.Linear({numbers}, 1)), x)"
            )
        if not all(isinstance(term, ChannelTerm) and term.mask == Mask() for term in signal.terms):
            raise ValueError(
                f"model: ends with {last}; path kernels need a Linear or Conv2d layer at the end: add one, as in"
                f" npk(nn.Sequential(model, nn.Linear({numbers}, 1)), x)"
            )


def _pattern(constant: Tensor, size: tuple[int, int]) -> int:
    """The pattern of a constant: which coordinates two pixels must share to have the same constant."""
    given = (1, 1) if size == (1, 1) else (1, 1, *constant.shape)[-2:]
    return SAME_ROW * (given[0] > 1) + SAME_COLUMN * (given[1] > 1)


def _origins(terms: Sequence[Term]) -> frozenset[int]:
    return frozenset().union(*(term.origins for term in terms))


def _no_channels(step: Step) -> str:
    return (
        f"model: {step.name} acts on sums over pixels behind gates (an average, or flattened images); path kernels need"
        " a Linear or Conv2d layer between the two: put one there"
    )
