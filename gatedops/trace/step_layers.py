"""Turns layers, pools and interpolation into steps."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from gatedops.trace.operations import BATCH_NORM, GATED_LINEAR
from gatedops.trace.pooling import Pair, Window, pair
from gatedops.trace.provenance import Sources
from gatedops.trace.redraw import Draw
from gatedops.trace.step import AvgPool, BatchNorm, Conv2d, Gate, Linear, MaxPool, Resample
from gatedops.trace.step_builder import Arguments, Converter, Sides, StepBuilder

aten = torch.ops.aten


def is_everywhere(value: Any, number: float, made_of: Sources) -> bool:
    """Whether a constant is this number everywhere, and no parameter in it can change that."""
    if not isinstance(value, Tensor):
        return bool(value == number)
    return not value.is_meta and not any(s.is_parameter for s in made_of) and bool((value == number).all())


def weights_of(builder: StepBuilder, node: Node, a: Arguments) -> dict[str, Any]:
    """The weight and the bias of a layer. A bias of zeros that is not a parameter counts as None."""
    bias, bias_made_of = builder.optional(a["bias"], node), builder.made_of(a["bias"], node)
    bias_drawn = builder.drawn(a["bias"], node)
    if bias is not None and is_everywhere(bias, 0, bias_made_of):
        bias, bias_made_of, bias_drawn = None, (), None
    return {
        "weight": builder.constant(a["weight"], node),
        "bias": bias,
        "weight_made_of": builder.made_of(a["weight"], node),
        "bias_made_of": bias_made_of,
        "weight_drawn": builder.drawn(a["weight"], node),
        "bias_drawn": bias_drawn,
    }


def _linear(builder: StepBuilder, node: Node, a: Arguments) -> None:
    builder.add(node, Linear, a["input"], **weights_of(builder, node, a))


def _matrix_product(builder: StepBuilder, node: Node, a: Arguments) -> None:
    """``x @ W`` with a matrix that no input changes is a linear layer."""
    matrix = a["mat2"] if "mat2" in a else a["other"]
    if not isinstance(matrix, Node) or not builder.is_constant(matrix) or builder.constant(matrix, node).dim() != 2:
        builder.refuse(node)
    drawn = builder.drawn(matrix, node)
    fields = {
        "weight": builder.constant(matrix, node).T,
        "bias": None,
        "weight_made_of": builder.made_of(matrix, node),
        "weight_drawn": None if drawn is None else _transposed(drawn),
    }
    builder.add(node, Linear, a["self"], **fields)


def _transposed(drawn: Draw) -> Draw:
    return lambda seed: drawn(seed).T


def _gated_linear(builder: StepBuilder, node: Node, a: Arguments) -> None:
    builder.add(node, Linear, a["x"], **weights_of(builder, node, a))
    builder.add(node, Gate, node, op="relu")


def _conv(builder: StepBuilder, node: Node, a: Arguments) -> None:
    """A convolution over one axis becomes one of images of one row."""
    weights = weights_of(builder, node, a)
    axes = weights["weight"].dim() - 2
    require_images(builder, node, a["input"], axes)
    if axes == 1:
        weights["weight"] = weights["weight"].unsqueeze(2)
        weights["weight_drawn"] = _with_a_row(weights["weight_drawn"])
    stride, dilation = size_pair(a["stride"], axes), size_pair(a["dilation"], axes)
    sides = _own_padding(a["padding"], pair(weights["weight"].shape[2:]), dilation, axes)
    source, mode = a["input"], "zeros"
    padded = builder.padding_of(source)
    # A circularly padded image that the convolution also pads with zeros is a step of its own.
    if padded is not None and not (padded[2] == "circular" and any(sides)):
        source, before, mode = padded
        sides = (before[0] + sides[0], before[1] + sides[1], before[2] + sides[2], before[3] + sides[3])
    fields = {"stride": stride, "padding": sides, "dilation": dilation, "groups": a["groups"], "padding_mode": mode}
    builder.add(node, Conv2d, source, **weights, **fields)


def require_images(builder: StepBuilder, node: Node, source: Any, axes: int) -> None:
    """Refuses an operation on images if they have no axis of channels beside their own axes."""
    if len(builder.shape(source)) != axes + 1:
        builder.refuse(
            node, f"given inputs {builder.shape(source)} without an axis of channels; give it x.unsqueeze(1)"
        )


def _with_a_row(drawn: Draw | None) -> Draw | None:
    """The same draws of a convolution's weight, as images of one row."""
    return None if drawn is None else lambda seed: drawn(seed).unsqueeze(2)


def size_pair(value: Any, axes: int, down: int = 1) -> Pair:
    """torch's numbers for one or two axes as (height, width). An operation over one axis has `down` as its height."""
    height, width = pair(value)
    return (height if axes == 2 else down, width)


def _own_padding(padding: Any, kernel: Pair, dilation: Pair, axes: int) -> Sides:
    """A convolution's padding argument as (left, right, top, bottom)."""
    if padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        # torch puts the odd pixel to the right and to the bottom.
        (top, bottom), (left, right) = [(t // 2, t - t // 2) for t in total]
        return (left, right, top, bottom)
    down, across = size_pair(0 if padding == "valid" else padding, axes, 0)
    return (across, across, down, down)


def _max_pool(builder: StepBuilder, node: Node, a: Arguments) -> None:
    """A maximum over windows of one or two axes."""
    axes = 1 if node.target is aten.max_pool1d.default else 2
    require_images(builder, node, a["self"], axes)
    builder.add(node, MaxPool, a["self"], window=_window(a, axes))


def _avg_pool(builder: StepBuilder, node: Node, a: Arguments) -> None:
    """An average over windows of one or two axes."""
    axes = 1 if node.target is aten.avg_pool1d.default else 2
    require_images(builder, node, a["self"], axes)
    fields = {"count_include_pad": a["count_include_pad"], "divisor": a.get("divisor_override")}
    builder.add(node, AvgPool, a["self"], window=_window(a, axes), **fields)


def _window(a: Arguments, axes: int) -> Window:
    kernel = size_pair(a["kernel_size"], axes)
    stride = size_pair(a["stride"], axes) if a["stride"] else kernel
    return Window(
        kernel, stride, size_pair(a["padding"], axes, 0), size_pair(a.get("dilation", 1), axes), a["ceil_mode"]
    )


def _adaptive_avg_pool(builder: StepBuilder, node: Node, a: Arguments) -> None:
    """A pool with windows of one size is an AvgPool, any other a Resample."""
    axes = 1 if node.target is aten.adaptive_avg_pool1d.default else 2
    require_images(builder, node, a["self"], axes)
    given, wanted = size_pair(builder.shape(a["self"])[1:], axes), size_pair(builder.shape(node)[1:], axes)
    if any(size % parts for size, parts in zip(given, wanted, strict=True)):
        resample(builder, node, a)
        return
    kernel = (given[0] // wanted[0], given[1] // wanted[1])
    window = Window(kernel, kernel, (0, 0), (1, 1))
    builder.add(node, AvgPool, a["self"], window=window, count_include_pad=True, divisor=None)


def _rows_and_columns(sizes: tuple[int, ...]) -> Pair:
    """The sizes of an image, sequence or volume as those of one image, whose rows are all but the last axis."""
    return math.prod(sizes[:-1]), sizes[-1]


def resample(builder: StepBuilder, node: Node, a: Arguments) -> None:
    """Finds the matrices of a linear operation on pixels, which must act on rows and columns separately."""
    source = a["self"] if "self" in a else a["input"]
    before, after = builder.shape(source)[1:], builder.shape(node)[1:]
    require_images(builder, node, source, len(after))
    (height, width), wanted = _rows_and_columns(before), _rows_and_columns(after)

    def result(image: Tensor) -> Tensor:
        target: Any = node.target
        found: Tensor = target(image.view(1, 1, *before), *node.args[1:], **node.kwargs)
        return found.view(wanted)

    # An image that is 1 in one row and 0 elsewhere shows where that row goes, because the operation keeps constants.
    eye = partial(torch.eye, dtype=torch.float64, device="cpu")
    rows = torch.stack([result(row.view(-1, 1).expand(height, width))[:, 0] for row in eye(height)], 1)
    columns = torch.stack([result(column.expand(height, width))[0] for column in eye(width)], 1)
    image = torch.randn(height, width, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float64)
    if not torch.allclose(rows @ image @ columns.T, result(image), rtol=0.0, atol=1e-9):
        builder.refuse(node, "not a linear operation on rows and columns of images; resize images in front of the net")
    builder.add(node, Resample, source, rows=rows, columns=columns)


def _batch_norm(builder: StepBuilder, node: Node, a: Arguments) -> None:
    mean, var = builder.constant(a["running_mean"], node), builder.constant(a["running_var"], node)
    weight, bias = builder.optional(a["weight"], node), builder.optional(a["bias"], node)
    shift = builder.made_of(a["running_mean"], node) + builder.made_of(a["bias"], node)
    fields = {"mean": mean, "var": var, "weight": weight, "bias": bias, "eps": a["eps"], "shift_made_of": shift}
    builder.add(node, BatchNorm, a["input"], **fields)


LAYERS: dict[Any, Converter] = {
    aten.linear.default: _linear,
    aten.matmul.default: _matrix_product,
    aten.mm.default: _matrix_product,
    GATED_LINEAR: _gated_linear,
    aten.conv1d.default: _conv,
    aten.conv1d.padding: _conv,
    aten.conv2d.default: _conv,
    aten.conv2d.padding: _conv,
    aten.max_pool1d.default: _max_pool,
    aten.max_pool2d.default: _max_pool,
    aten.avg_pool1d.default: _avg_pool,
    aten.avg_pool2d.default: _avg_pool,
    aten.adaptive_avg_pool1d.default: _adaptive_avg_pool,
    aten.adaptive_avg_pool2d.default: _adaptive_avg_pool,
    aten.upsample_linear1d.vec: resample,
    aten.upsample_bilinear2d.vec: resample,
    aten.upsample_bicubic2d.vec: resample,
    aten._upsample_bilinear2d_aa.vec: resample,
    aten._upsample_bicubic2d_aa.vec: resample,
    BATCH_NORM: _batch_norm,
}
