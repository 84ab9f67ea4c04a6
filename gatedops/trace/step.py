"""The steps that kernels of networks understand, as plain records."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gatedops.trace.pooling import Pair, Window
from gatedops.trace.provenance import Sources
from gatedops.trace.redraw import Draw

# eq=False: steps hold tensors, and two steps are the same only if they are one object.
# A field that ends in made_of names the parameters, buffers or other tensors that a weight was computed from. A field
# that ends in drawn computes the weight from random parameters; it is None if the weight is a parameter or a part of
# one, or if no parameter went into it.


@dataclass(frozen=True, eq=False)
class Step:
    """One operation of a network.

    Args:
        name: the name of the module that does it, "layer1.0.conv1", or that name and the operation, "layer1.0.add".
        inputs: the indices of the earlier steps whose outputs it takes.
        shape: the shape of its output for one input, without the axis of the inputs.
    """

    name: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Input(Step):
    """The network's input; the first step. `activations` names all gates and max-pools of the network in the order in
    which they run, also those that only other outputs depend on."""

    activations: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Linear(Step):
    """``x W^T + b`` over the last axis: weight ``(out, in)``, bias ``(out,)`` or None."""

    weight: Tensor
    bias: Tensor | None
    weight_made_of: Sources = ()
    bias_made_of: Sources = ()
    weight_drawn: Draw | None = None
    bias_drawn: Draw | None = None


@dataclass(frozen=True, eq=False)
class Conv2d(Step):
    """A convolution: weight ``(C', C / groups, kh, kw)``, bias ``(C',)`` or None.

    padding counts pixels (left, right, top, bottom). They are zeros or, with padding_mode "circular", pixels of the
    opposite side.
    """

    weight: Tensor
    bias: Tensor | None
    stride: Pair
    padding: tuple[int, int, int, int]
    dilation: Pair
    groups: int
    padding_mode: str
    weight_made_of: Sources = ()
    bias_made_of: Sources = ()
    weight_drawn: Draw | None = None
    bias_drawn: Draw | None = None


@dataclass(frozen=True, eq=False)
class Conv3d(Step):
    """A convolution of volumes: weight ``(C', C / groups, kd, kh, kw)``, bias ``(C',)`` or None. padding counts voxels
    of zeros: (left, right, top, bottom, front, back)."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int, int]
    padding: tuple[int, ...]
    dilation: tuple[int, int, int]
    groups: int
    weight_made_of: Sources = ()
    bias_made_of: Sources = ()
    weight_drawn: Draw | None = None
    bias_drawn: Draw | None = None


@dataclass(frozen=True, eq=False)
class Gate(Step):
    """ReLU: its input times the gate of its input.

    Args:
        slope: the factor where the gate is off: 0 for ReLU, a number or one for each channel ``(C,)`` for LeakyReLU and
            PReLU, -1 for the absolute value.
        inside: None if the gate is on where the input is greater than 0; else (low, high): the gate is on strictly
            between the two, and elsewhere the output is the nearer of them (ReLU6, hardtanh).
    """

    slope: float | Tensor = 0.0
    inside: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class MaxPool(Step):
    """The largest of each window of pixels."""

    window: Window


@dataclass(frozen=True, eq=False)
class AvgPool(Step):
    """The mean of each window of pixels: their sum divided by ``divisor`` or, if that is None, by the number of the
    window's pixels. count_include_pad says whether pixels of the padding are counted."""

    window: Window
    count_include_pad: bool
    divisor: int | None


@dataclass(frozen=True, eq=False)
class Add(Step):
    """The sum of two earlier outputs of one shape."""


@dataclass(frozen=True, eq=False)
class AddConstant(Step):
    """Adds a constant, which no input changes; it broadcasts to `shape`."""

    constant: Tensor
    made_of: Sources = ()
    drawn: Draw | None = None


@dataclass(frozen=True, eq=False)
class Scale(Step):
    """Multiplies by a constant, which no input changes; it broadcasts to `shape`."""

    factor: Tensor
    made_of: Sources = ()
    drawn: Draw | None = None


@dataclass(frozen=True, eq=False)
class Concat(Step):
    """Puts several earlier outputs side by side along `axis` of one input (0 is the first axis after that of the
    inputs)."""

    axis: int


@dataclass(frozen=True, eq=False)
class Rearrange(Step):
    """Each number of its output is a number of its input, or 0: slices, permutations, reshapes, padding.

    `source` is int64 of `shape`. It gives, for each number of the output, the position of that number among the
    numbers of one input, or -1 for 0.
    """

    source: Tensor


@dataclass(frozen=True, eq=False)
class Resample(Step):
    """Each output pixel is a sum of input pixels: ``out = rows @ image @ columns.T`` for the image of each channel.

    rows ``(H', H)`` and columns ``(W', W)`` are float64. An input ``(C, T)`` is an image of one row, and a volume
    ``(C, D, H, W)`` an image of D * H rows.
    """

    rows: Tensor
    columns: Tensor


@dataclass(frozen=True, eq=False)
class Squash(Step):
    """A function of all outputs at the end of a network: "softmax", "log_softmax", "sigmoid"."""

    function: str


@dataclass(frozen=True, eq=False)
class Flatten(Step):
    """Merges all axes of an input into one."""


@dataclass(frozen=True, eq=False)
class Mean(Step):
    """Takes the mean over `axes` of one input (0 is the first axis after that of the inputs).

    keepdim says whether these axes are kept with size 1 or dropped.
    """

    axes: tuple[int, ...]
    keepdim: bool


@dataclass(frozen=True, eq=False)
class BatchNorm(Step):
    """``(x - mean) / sqrt(var + eps) * weight + bias`` per channel, with the running mean and variance ``(C,)``; weight
    and bias ``(C,)`` or None. shift_made_of names the tensors that mean and bias were computed from."""

    mean: Tensor
    var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    shift_made_of: Sources = ()
