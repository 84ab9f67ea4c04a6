"""Describes the fully connected and convolutional ReLU networks of the papers, as specs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from gatedops.ops.checks import require_device, require_option

HEADS = ("flatten", "gap")
PADDING_MODES = ("zeros", "circular")


class Spec:
    """Describes the architecture of a ReLU network; :func:`fc_spec` and :func:`conv_spec` make it.

    shape is that of one input.
    """

    shape: tuple[int, ...]

    def relu_net(
        self,
        seed: int | None = None,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> nn.Sequential:
        """Makes the ordinary ReLU network with Glorot-uniform weights and zero biases.

        Args:
            seed: the weights are drawn from a new generator with this seed.
            generator: the weights are drawn from it, if no seed is given; None: from torch's default generator.
            device, dtype: those of the parameters. The same seed gives the same weights on every device.

        Raises:
            ValueError: both seed and generator are given, or torch does not have the device.
        """
        if seed is not None and generator is not None:
            raise ValueError("seed: got a generator as well; give only one of the two")
        if device is not None:
            require_device(device, "device")
        network = self.undrawn().to(device=device, dtype=dtype)
        draw_glorot(network, generator if seed is None else torch.Generator().manual_seed(seed))
        return network

    def undrawn(self) -> nn.Sequential:
        """Makes the network; its parameters have no values yet."""
        raise NotImplementedError


@dataclass(frozen=True)
class FCSpec(Spec):
    """Describes a fully connected net; :func:`fc_spec` makes it."""

    inputs: int
    widths: tuple[int, ...]
    outputs: int
    bias: bool = True

    def __post_init__(self) -> None:
        _require_counts("inputs", [self.inputs])
        _require_counts("widths", self.widths)
        _require_counts("outputs", [self.outputs])

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.inputs,)

    def undrawn(self) -> nn.Sequential:
        return nn.Sequential(*_dense(self.inputs, self.widths, self.outputs, self.bias))


@dataclass(frozen=True)
class ConvSpec(Spec):
    """Describes a convolutional net; :func:`conv_spec` makes it."""

    shape: tuple[int, int, int]
    channels: tuple[int, ...]
    dense: tuple[int, ...]
    outputs: int
    head: str = "flatten"
    kernel_size: int = 3
    padding_mode: str = "zeros"
    bias: bool = True

    def __post_init__(self) -> None:
        if len(self.shape) != 3:
            raise ValueError(f"shape: got {self.shape}, needs (channels, height, width) of an input")
        for name, counts in (("shape", self.shape), ("channels", self.channels), ("dense", self.dense)):
            _require_counts(name, counts)
        _require_counts("outputs", [self.outputs])
        _require_counts("kernel_size", [self.kernel_size])
        if not self.channels:
            raise ValueError("channels: got none, needs at least one convolution; for a net without any use fc_spec")
        for name, given, known in (("head", self.head, HEADS), ("padding_mode", self.padding_mode, PADDING_MODES)):
            require_option(name, given, known, listed=True)

    def undrawn(self) -> nn.Sequential:
        layers: list[nn.Module] = []
        inside = self.shape[0]
        for channels in self.channels:
            # If the kernel size is even, Conv2d with padding 'same' pads one pixel more to the right and to the bottom.
            options: dict[str, Any] = {"padding": "same", "padding_mode": self.padding_mode, "bias": self.bias}
            layers += [nn.utils.skip_init(nn.Conv2d, inside, channels, self.kernel_size, **options), nn.ReLU()]
            inside = channels
        if self.head == "gap":
            layers.append(nn.AdaptiveAvgPool2d(1))
        layers.append(nn.Flatten())
        flat = inside if self.head == "gap" else inside * self.shape[1] * self.shape[2]
        return nn.Sequential(*layers, *_dense(flat, self.dense, self.outputs, self.bias))


def fc_spec(inputs: int = 784, widths: Sequence[int] = (128,) * 5, outputs: int = 10, *, bias: bool = True) -> FCSpec:
    """Describes a fully connected net: gated layers of these widths, then a plain output layer.

    Args:
        inputs: the number of numbers in one input.
        widths: the widths of the gated layers, at least one; the default is that of the papers (arXiv 2006.10529).
        outputs: the width of the last layer.
        bias: whether the layers have biases.

    Raises:
        TypeError, ValueError: an argument does not fit; the error names it.
    """
    spec = FCSpec(inputs, _tuple("widths", widths), outputs, bias)
    if not spec.widths:
        raise ValueError("widths: got none, needs the width of at least one gated layer")
    return spec


def conv_spec(
    shape: Sequence[int] = (3, 32, 32),
    channels: Sequence[int] = (64, 64, 128, 128),
    dense: Sequence[int] = (256, 256),
    outputs: int = 10,
    head: Literal["flatten", "gap"] = "flatten",
    kernel_size: int = 3,
    padding_mode: Literal["zeros", "circular"] = "zeros",
    *,
    bias: bool = True,
) -> ConvSpec:
    """Describes a convolutional net: gated 'same' convolutions, a head, gated dense layers, a plain output layer. The
    defaults are VCONV of the papers (arXiv 2006.10529); with head="gap" they are GCONV.

    Args:
        shape: (channels, height, width) of one input.
        channels: the channels of the convolutions, at least one.
        dense: the widths of the gated layers behind the head; may be empty.
        outputs: the width of the last layer.
        head: "flatten", or "gap" for global average pooling.
        kernel_size: the size of each convolution's kernel, in both directions.
        padding_mode: "zeros" or "circular".
        bias: whether the layers have biases.

    Raises:
        TypeError, ValueError: an argument does not fit; the error names it.
    """
    sizes: Any = _tuple("shape", shape)
    return ConvSpec(
        sizes, _tuple("channels", channels), _tuple("dense", dense), outputs, head, kernel_size, padding_mode, bias
    )


def draw_glorot(network: nn.Module, generator: torch.Generator | None = None) -> None:
    """Gives each Linear and Conv2d, in order, Glorot-uniform weights and zero biases.

    Weights are drawn on the generator's device (None: the CPU), so a seed gives the same weights on every device of the
    network.
    """
    if not isinstance(generator, torch.Generator | None):
        raise TypeError(f"generator: got {type(generator).__name__}, needs a torch.Generator")
    device = torch.device("cpu") if generator is None else generator.device
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                drawn = torch.empty(module.weight.shape, dtype=module.weight.dtype, device=device)
                module.weight.copy_(nn.init.xavier_uniform_(drawn, generator=generator))
                if module.bias is not None:
                    module.bias.zero_()


def _dense(inputs: int, widths: tuple[int, ...], outputs: int, bias: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.utils.skip_init(nn.Linear, inputs, width, bias=bias), nn.ReLU()]
        inputs = width
    return [*layers, nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)]


def _tuple(name: str, counts: Sequence[int]) -> tuple[int, ...]:
    if isinstance(counts, (str, bytes)) or not isinstance(counts, Sequence):
        raise TypeError(f"{name}: got {counts!r}, needs a sequence of whole numbers")
    return tuple(counts)


def _require_counts(name: str, counts: Sequence[int]) -> None:
    for count in counts:
        if not isinstance(count, int) or isinstance(count, bool):
            raise TypeError(f"{name}: got {count!r}, needs whole numbers")
        if count < 1:
            raise ValueError(f"{name}: got {count}, needs whole numbers of at least 1")
