"""Turns the steps of a network into the program that computes its kernel (docs/math.md, section 13)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from gatedops import trace
from gatedops.ops.conv_program import SAME_COLUMN, SAME_ROW
from gatedops.path_kernels.canonical import Channels, Network, Pixels
from gatedops.path_kernels.compile_layers import Layers
from gatedops.path_kernels.compile_pixels import PixelSteps, max_pooled, no_channels
from gatedops.path_kernels.features import Gated, Scaled
from gatedops.path_kernels.masks import Leaf, Mask
from gatedops.path_kernels.moments import Moments
from gatedops.path_kernels.network import has_shift, is_number, recorded_of, weighted_layers
from gatedops.path_kernels.per_input import PerInput
from gatedops.path_kernels.program_builder import Program
from gatedops.path_kernels.terms import (
    ChannelSumTerm,
    ChannelTerm,
    DividedError,
    InputTerm,
    Signal,
    Term,
    joined_alike,
    origins_of,
    unfolded_of,
)
from gatedops.trace import Step
from gatedops.trace.step_builder import GATES_ALONE

# A gate may have this many different slopes.
_MOST_SLOPES = 64


def compile_steps(
    network: Network, sigmas: Sequence[float], *, tangent: bool, biases: bool
) -> tuple[Program, PerInput]:
    """Makes the program of a network's kernel, and the plan of what the program reads of each input.

    Args:
        network: that of :func:`gatedops.path_kernels.network.network_of_model`.
        sigmas: one for each layer with weights.
        tangent: the kernel is E[K^V]; False: E[f f'], which is the NPK if all sigmas are 1.
        biases: biases and constants start paths.

    Raises:
        ValueError: there is no rule for a step at its place; the error names it.
    """
    return _Compiler(network, sigmas, tangent, biases).compiled()


class _Compiler:
    def __init__(self, network: Network, sigmas: Sequence[float], tangent: bool, biases: bool) -> None:
        self._steps = network.steps
        self._recorded = {id(step): index for index, (step, _) in enumerate(recorded_of(network))}
        self._biases, self._tangent = biases, tangent
        self._moments = Moments(network, tangent)
        variances = {id(layer): s**2 for layer, s in zip(weighted_layers(network.steps), sigmas, strict=True)}
        self._layers = Layers(self._moments, variances, biases)
        self._pixels = PixelSteps(self._moments)

    def compiled(self) -> tuple[Program, PerInput]:
        signals: list[Signal] = []
        for index, step in enumerate(self._steps):
            inputs = [signals[source] for source in step.inputs]
            self._moments.at(step.name)
            signals.append(Signal(_image(step), self._terms(index, step, inputs)))
        self._require_output(signals[-1])
        # All outputs have the same kernel, which is that of one output.
        one = tuple(replace(term, channels=(0,)) for term in signals[-1].terms)
        return self._moments.finish(self._moments.channel_sum(one, (1, 1))), self._moments.per_input

    def _terms(self, index: int, step: Step, inputs: list[Signal]) -> tuple[Term, ...]:
        """The terms of the step's output."""
        match step:
            case trace.Input():
                return (InputTerm(frozenset([index]), tuple(range(step.shape[0])), frozenset()),)
            case trace.Linear() | trace.Conv2d():
                return self._layers.behind(index, step, inputs[0])
            case trace.Gate():
                return tuple(part for term in inputs[0].terms for part in self._gated(term, step))
            case trace.MaxPool():
                return self._max_pooled(step, inputs[0])
            case trace.AvgPool() | trace.Mean():
                return self._pixels.averaged(step, inputs[0])
            case trace.Resample():
                return self._pixels.resampled(step, inputs[0])
            case Pixels():
                return self._pixels.moved(step, inputs[0])
            case trace.Flatten():
                return self._pixels.flattened(inputs[0])
        return self._joined(index, step, inputs)

    def _joined(self, index: int, step: Step, inputs: list[Signal]) -> tuple[Term, ...]:
        """The terms of a step that adds, scales, or moves channels."""
        match step:
            case trace.Add():
                self._require_independent(step, *inputs)
                self._require_one_scale(step, inputs)
                return self._merged(*inputs[0].terms, *inputs[1].terms)
            case trace.AddConstant():
                return self._merged(*inputs[0].terms, *self._constant(index, step, inputs[0]))
            case trace.BatchNorm():
                return self._normalised(index, step, inputs[0])
            case trace.Scale():
                return tuple(self._scaled(index, term, step) for term in inputs[0].terms)
            case trace.Concat():
                return self._concatenated(step, inputs)
            case Channels():
                return self._chosen(step, inputs[0])
        raise ValueError(
            f"model: {step.name} is a {type(step).__name__}, which path kernels do not cover; {GATES_ALONE}"
        )

    # --- gates and pools ---------------------------------------------------------------------------------------

    def _gated(self, term: Term, step: trace.Gate) -> list[Term]:
        layer = self._recorded[id(step)]
        if step.inside is not None and self._biases:
            raise ValueError(
                f"model: {step.name} is constant above {step.inside[1]:g}, and no path carries that constant; use"
                ' bias="ignore", or put nn.ReLU in its place'
            )
        slopes = _slopes_of(step, term)
        match term:
            case InputTerm(channels=channels):
                return [term.then(Gated(layer, channels, slopes if len(set(slopes)) > 1 else slopes[:1]))]
            case ChannelTerm():
                return [self._gated_alike(part, layer, slope) for slope, part in _by_slope(term, slopes, step)]
        raise ValueError(no_channels(step))

    def _gated_alike(self, term: ChannelTerm, layer: int, slope: float) -> Term:
        return term if slope == 1 else replace(term, mask=term.mask.gated(Leaf(layer, term.channels, slope)))

    def _max_pooled(self, step: trace.MaxPool, source: Signal) -> tuple[Term, ...]:
        before = self._steps[step.inputs[0]]
        is_relu = isinstance(before, trace.Gate) and before.inside is None
        contained = self._recorded[id(before)] if is_relu else None
        layer = self._recorded[id(step)]
        return tuple(max_pooled(term, step, layer, source.size, contained) for term in source.terms)

    # --- sums and channels ---------------------------------------------------------------------------------------

    def _constant(self, index: int, step: trace.AddConstant, source: Signal) -> tuple[Term, ...]:
        if not self._biases:
            return ()
        kernel = self._moments.constant(_pattern(step.constant, source.size), source.size)
        every = tuple(range(source.shape[0]))
        return (ChannelTerm(frozenset([index]), every, unfolded_of(source.terms), kernel, Mask()),)

    def _normalised(self, index: int, step: trace.BatchNorm, source: Signal) -> tuple[Term, ...]:
        """Counts the scale of a batch norm as a part of the weights behind it."""
        terms = tuple(replace(term, unfolded=term.unfolded | {index}) for term in source.terms)
        # The shift of a batch norm is not a weight, so the tangent kernel does not train it.
        if not self._biases or self._tangent or not has_shift(step):
            return terms
        kernel, every = self._moments.constant(0, source.size), tuple(range(source.shape[0]))
        return self._merged(*terms, ChannelTerm(frozenset([index]), every, frozenset([index]), kernel, Mask()))

    def _scaled(self, index: int, term: Term, step: trace.Scale) -> Term:
        if is_number(step):
            factor = float(step.factor) ** 2
            if factor == 0:
                raise ValueError(f"model: {step.name} multiplies by 0, so nothing before it reaches the output")
            match term:
                case InputTerm():
                    return replace(term, a=term.a * factor, t=term.t * factor)
                case ChannelTerm() | ChannelSumTerm():
                    return replace(term, kernel=term.kernel.times(factor))
        varies = step.factor.shape[-2:].numel() > 1
        is_parameter = any(source.is_parameter for source in step.made_of)
        if isinstance(term, InputTerm) and not is_parameter:
            factors = step.factor.expand(step.shape[0], *step.factor.shape[-2:])
            return term.then(Scaled(factors[list(term.channels)]))
        if varies:
            raise ValueError(
                f"model: {step.name} multiplies pixels by different numbers; path kernels need one number for each"
                " channel: multiply the inputs instead"
            )
        return replace(term, unfolded=term.unfolded | {index})

    def _concatenated(self, step: Step, inputs: list[Signal]) -> tuple[Term, ...]:
        made, first = [], 0
        for signal in inputs:
            for term in signal.terms:
                made.append(replace(term, channels=tuple(channel + first for channel in term.channels)))
            first += signal.shape[0]
        return joined_alike(made)

    def _chosen(self, step: Channels, source: Signal) -> tuple[Term, ...]:
        if step.index == tuple(range(source.shape[0])):
            return source.terms
        readers: dict[int, list[int]] = {}
        for to, channel in enumerate(step.index):
            readers.setdefault(channel, []).append(to)
        try:
            return tuple(moved for term in source.terms if (moved := term.moved(readers)) is not None)
        except DividedError:
            raise ValueError(no_channels(step)) from None

    def _merged(self, *terms: Term) -> tuple[Term, ...]:
        """The same sum in fewer terms: joins the terms with the same channels and mask."""
        merged: dict[object, Term] = {}
        for term in terms:
            mask = getattr(term, "mask", None)
            key = term if isinstance(term, InputTerm) else (type(term), term.channels, term.unfolded, mask)
            same = merged.get(key)
            if isinstance(same, ChannelTerm | ChannelSumTerm) and isinstance(term, ChannelTerm | ChannelSumTerm):
                kernel = self._moments.added(same.kernel, term.kernel)
                merged[key] = replace(same, origins=same.origins | term.origins, kernel=kernel)
            else:
                merged[key] = term
        return tuple(merged.values())

    # --- what is refused -----------------------------------------------------------------------------------------

    def _require_independent(self, step: Step, left: Signal, right: Signal) -> None:
        """Raises ValueError if both sides of an addition carry values of the same layer."""
        shared = origins_of(left.terms) & origins_of(right.terms)
        if shared:
            names = ", ".join(self._steps[index].name for index in sorted(shared))
            raise ValueError(
                f"model: {step.name} adds two outputs that both carry {names} with no Linear or Conv2d layer between."
                " Their paths share all weights, and path kernels have no rule for that; put a layer into one of the"
                " two"
            )

    def _require_one_scale(self, step: Step, inputs: list[Signal]) -> None:
        """Raises ValueError if a batch norm, or a factor for each channel, is on one side of an addition only: no layer
        can take it over."""
        found = {term.unfolded for signal in inputs for term in signal.terms}
        if len(found) > 1:
            lone = sorted(frozenset.union(*found) - frozenset.intersection(*found))
            names = ", ".join(self._steps[index].name for index in lone)
            raise ValueError(
                f"model: {step.name} adds two outputs, and no layer stands between it and {names}, whose scale only"
                " one of the two has; path kernels take the scale of a batch norm as a part of the weights of a layer"
                " beside it: put a layer there, or replace it by nn.Identity()"
            )

    def _require_output(self, signal: Signal) -> None:
        last, numbers = self._steps[-1].name, math.prod(signal.shape)
        if signal.size != (1, 1):
            raise ValueError(
                f"model: ends with images at {last}; path kernels need outputs without pixels: add a layer, as in"
                f" npk(nn.Sequential(model, nn.Flatten(), nn.Linear({numbers}, 1)), x), or behind that output in the"
                " model, if it has several"
            )
        every = set(range(signal.shape[0]))
        plain = all(
            isinstance(term, ChannelTerm) and term.mask == Mask() and not term.unfolded and set(term.channels) == every
            for term in signal.terms
        )
        if not plain:
            raise ValueError(
                f"model: ends with {last}; path kernels need a Linear or Conv2d layer at the end: add one, as in"
                f" npk(nn.Sequential(model, nn.Linear({numbers}, 1)), x), or behind that output in the model, if it has"
                " several"
            )


def _image(step: Step) -> tuple[int, int, int]:
    return step.shape[0], step.shape[1], step.shape[2]


def _slopes_of(step: trace.Gate, term: Term) -> tuple[float, ...]:
    """The slope of each unit of a term."""
    if isinstance(step.slope, Tensor) and step.slope.numel() > 1:
        slopes = step.slope.detach().flatten().tolist()
        return tuple(slopes[channel] for channel in term.channels)
    return (float(step.slope),) * len(term.channels)


def _by_slope(term: ChannelTerm, slopes: tuple[float, ...], step: Step) -> list[tuple[float, ChannelTerm]]:
    """The units of a term, those of each slope apart."""
    different = sorted(set(slopes))
    if len(different) == 1:
        return [(different[0], term)]
    if len(different) > _MOST_SLOPES:
        raise ValueError(
            f"model: {step.name} has {len(different)} different slopes; path kernels take at most {_MOST_SLOPES}: use"
            " one slope for all channels, nn.PReLU(1)"
        )
    parts = [tuple(unit for unit, own in enumerate(slopes) if own == slope) for slope in different]
    return [(slope, term.take(units)) for slope, units in zip(different, parts, strict=True)]


def _pattern(constant: Tensor, size: tuple[int, int]) -> int:
    """The pattern of a constant: which coordinates two pixels must share to have the same constant."""
    given = (1, 1) if size == (1, 1) else (1, 1, *constant.shape)[-2:]
    return SAME_ROW * (given[0] > 1) + SAME_COLUMN * (given[1] > 1)
