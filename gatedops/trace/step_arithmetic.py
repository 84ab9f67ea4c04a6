"""Turns sums, and products with constants, into steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from gatedops.trace.provenance import Sources
from gatedops.trace.step import Add, AddConstant, Mean, Rearrange, Scale
from gatedops.trace.step_builder import Arguments, Converter, StepBuilder
from gatedops.trace.step_gates import is_masked_by, rectify
from gatedops.trace.step_layers import is_everywhere

aten = torch.ops.aten


def _add(builder: StepBuilder, node: Node, a: Arguments) -> None:
    _sum(builder, node, a["self"], a["other"], 1, a["alpha"])


def _subtract(builder: StepBuilder, node: Node, a: Arguments) -> None:
    _sum(builder, node, a["self"], a["other"], 1, -a["alpha"])


def _subtract_from(builder: StepBuilder, node: Node, a: Arguments) -> None:
    """other - alpha * self; the contrary of a mask, 1 - mask, is another mask."""
    mask = builder.mask_of(a["self"])
    if mask is not None and a["other"] == 1 and a["alpha"] == 1:
        builder.compare(node, mask[0], not mask[1])
    else:
        _sum(builder, node, a["self"], a["other"], -a["alpha"], 1)


def _sum(builder: StepBuilder, node: Node, left: Any, right: Any, of_left: float, of_right: float) -> None:
    """Adds of_left * left + of_right * right; at least one of the two is not a constant."""
    if builder.is_constant(left):
        left, right, of_left, of_right = right, left, of_right, of_left
    if builder.is_constant(right):
        _add_constant(builder, node, left, right, of_left, of_right)
        return
    _require_one_dtype(builder, node, left)
    _require_one_dtype(builder, node, right)
    terms = [_times(builder, node, *term) for term in ((left, of_left), (right, of_right))]
    shapes = [builder.shape(left), builder.shape(right)]
    builder.add(node, Add, *[_broadcast(builder, node, *pair) for pair in zip(terms, shapes, strict=True)])


def _broadcast(builder: StepBuilder, node: Node, term: Node | int, shape: tuple[int, ...]) -> Node | int:
    """A term of a sum as a term of the sum's shape: itself, or a new step that repeats its numbers."""
    wanted = builder.shape(node)
    if shape == wanted:
        return term
    if len(shape) != len(wanted):
        builder.refuse(node, f"a sum {wanted} with a term {shape}; give both terms the same number of axes")
    numbers = torch.arange(math.prod(shape), device="cpu").view(shape).expand(wanted)
    return builder.insert(node, Rearrange, term, shape=wanted, source=numbers.contiguous())


def _times(builder: StepBuilder, node: Node, source: Node, number: float) -> Node | int:
    """A term of `node`: its source, or the index of a new step that multiplies it by a number."""
    if number == 1:
        return source
    like = source.meta["val"]
    factor = torch.tensor(number, dtype=like.dtype, device=like.device)
    return builder.insert(node, Scale, source, shape=builder.shape(source), factor=factor)


def _add_constant(
    builder: StepBuilder, node: Node, source: Node, value: Any, of_source: float, of_value: float
) -> None:
    """Adds of_source * source + of_value * value."""
    given, made_of = _constant(builder, node, value)
    if of_value == 0 or is_everywhere(given, 0, made_of):
        _scale(builder, node, source, of_source, lambda factor: factor)
        return
    constant, origin = _fitted(builder, node, source, value, "adding", lambda t: t if of_value == 1 else t * of_value)
    builder.add(node, AddConstant, _times(builder, node, source, of_source), constant=constant, **origin)


def _multiply(builder: StepBuilder, node: Node, a: Arguments) -> None:
    """Accepts a product with a constant, and q * (q > 0)."""
    left, right = a["self"], a["other"]
    for q, mask in ((left, right), (right, left)):
        if is_masked_by(builder, q, mask, True):
            rectify(builder, node, q)
            return
    if builder.is_constant(left):
        left, right = right, left
    if not builder.is_constant(right) or builder.mask_of(left) is not None:
        builder.refuse(node)
    _scale(builder, node, left, right, lambda factor: factor)


def _divide(builder: StepBuilder, node: Node, a: Arguments) -> None:
    if builder.is_constant(a["self"]) or not builder.is_constant(a["other"]) or a.get("rounding_mode") is not None:
        builder.refuse(node)
    _scale(builder, node, a["self"], a["other"], torch.reciprocal)


def _negate(builder: StepBuilder, node: Node, a: Arguments) -> None:
    _scale(builder, node, a["self"], -1.0, lambda factor: factor)


def _power(builder: StepBuilder, node: Node, a: Arguments) -> None:
    """Accepts the first power."""
    if builder.is_constant(a["self"]) or a["exponent"] != 1:
        builder.refuse(node)
    _scale(builder, node, a["self"], 1, lambda factor: factor)


def _scale(builder: StepBuilder, node: Node, source: Node, value: Any, change: Callable[[Tensor], Tensor]) -> None:
    """Multiplies by a constant after a change of it; a factor of 1 that is not a parameter makes no step."""
    given, made_of = _constant(builder, node, value)
    if is_everywhere(given, 1, made_of) and source.meta["val"].shape == node.meta["val"].shape:
        _require_one_dtype(builder, node, source)
        builder.alias(node, source)
        return
    factor, origin = _fitted(builder, node, source, value, "multiplying by", change)
    builder.add(node, Scale, source, factor=factor, **origin)


def _constant(builder: StepBuilder, node: Node, value: Any) -> tuple[Any, Sources]:
    """A number or tensor that no input changes, and the sources that it was computed from."""
    return (builder.constant(value, node), builder.made_of(value, node)) if isinstance(value, Node) else (value, ())


def _fitted(
    builder: StepBuilder, node: Node, source: Node, value: Any, what: str, change: Callable[[Tensor], Tensor]
) -> tuple[Tensor, dict[str, Any]]:
    """The constant of a step after a change of it, and what it was made of and how to draw it."""
    given, made_of = _constant(builder, node, value)
    shape, result = builder.shape(source), node.meta["val"]
    _require_one_dtype(builder, node, source)
    constant = torch.as_tensor(given, dtype=result.dtype, device=result.device)
    if constant.dim() > len(shape):
        if constant.shape[0] != 1 and (constant.is_meta or not constant.eq(constant[:1]).all()):
            builder.refuse(node, f"{what} a different constant for each input; give all inputs the same constant")
        constant = constant[0]
    if builder.shape(node) != shape:
        builder.refuse(node, f"{what} a constant whose shape does not fit {shape}; give the constant that shape")
    drawn = builder.drawn(value, node) if isinstance(value, Node) else None
    changed = None if drawn is None else lambda seed: change(drawn(seed))
    return change(constant), {"made_of": made_of, "drawn": changed}


def _require_one_dtype(builder: StepBuilder, node: Node, source: Node) -> None:
    """Refuses an operation that converts its source to another dtype or device."""
    before, after = source.meta["val"], node.meta["val"]
    if (before.dtype, before.device) != (after.dtype, after.device):
        builder.refuse(
            node,
            f"a conversion from {before.dtype} to {after.dtype}, but a network of steps has one dtype; remove it and"
            f" convert the model: model.to({before.dtype})",
        )


def _convert(builder: StepBuilder, node: Node, a: Arguments) -> None:
    """Accepts conversions of masks, and conversions to the same dtype."""
    if builder.mask_of(a["self"]) is None:
        _require_one_dtype(builder, node, a["self"])
    builder.alias(node, a["self"])


def _mean(builder: StepBuilder, node: Node, a: Arguments) -> None:
    builder.add(node, Mean, a["self"], axes=_axes(builder, node, a), keepdim=a["keepdim"])


def _sum_over(builder: StepBuilder, node: Node, a: Arguments) -> None:
    """A sum over axes is their mean times a number."""
    axes, source = _axes(builder, node, a), a["self"]
    mean = builder.insert(node, Mean, source, shape=builder.shape(node), axes=axes, keepdim=a["keepdim"])
    count, like = math.prod(builder.shape(source)[axis] for axis in axes), source.meta["val"]
    builder.add(node, Scale, mean, factor=torch.tensor(float(count), dtype=like.dtype, device=like.device))


def _axes(builder: StepBuilder, node: Node, a: Arguments) -> tuple[int, ...]:
    """The axes of one input that an operation takes together."""
    dimensions = len(builder.shape(a["self"])) + 1
    axes = tuple(sorted(axis % dimensions - 1 for axis in a["dim"] or range(dimensions)))
    if -1 in axes or a["dtype"] is not None:
        builder.refuse(
            node, "over the inputs too, or to another dtype; take it over the axes of one input, as in x.mean((2, 3))"
        )
    return axes


ARITHMETIC: dict[Any, Converter] = {
    aten.add.Tensor: _add,
    aten.sub.Tensor: _subtract,
    aten.subtract.Tensor: _subtract,
    aten.rsub.Tensor: _subtract_from,
    aten.rsub.Scalar: _subtract_from,
    aten.mul.Tensor: _multiply,
    aten.multiply.Tensor: _multiply,
    **dict.fromkeys([aten.div.Tensor, aten.div.Tensor_mode, aten.divide.Tensor, aten.true_divide.Tensor], _divide),
    aten.neg.default: _negate,
    aten.negative.default: _negate,
    aten.pow.Tensor_Scalar: _power,
    **dict.fromkeys([aten._to_copy.default, aten.to.dtype, aten.type_as.default], _convert),
    aten.mean.dim: _mean,
    aten.sum.dim_IntList: _sum_over,
}
