"""Makes the operations of recipes."""

from __future__ import annotations

from typing import Any

from recipes import Operation, op

_CONV = {
    "kernel": 3,
    "out": 2,
    "stride": 1,
    "padding": 1,
    "dilation": 1,
    "groups": 1,
    "bias": True,
    "mode": "zeros",
}


def conv(result: str, source: str, **options: Any) -> Operation:
    return op(result, "conv", source, **(_CONV | options))


def conv1(result: str, source: str, out: int = 2, **options: Any) -> Operation:
    """A convolution of one pixel."""
    return conv(result, source, **({"kernel": 1, "padding": 0, "out": out} | options))


def depthwise(result: str, source: str, channels: int, **options: Any) -> Operation:
    """A convolution in which each output channel reads one input channel."""
    return conv(result, source, **({"groups": channels, "out": channels} | options))


def fc(result: str, source: str, out: int = 2, bias: bool = True) -> Operation:
    return op(result, "linear", source, out=out, bias=bias)


def norm(result: str, source: str) -> Operation:
    return op(result, "norm", source)


def relu(result: str, source: str) -> Operation:
    return op(result, "relu", source)


def relu6(result: str, source: str) -> Operation:
    return op(result, "relu6", source)


def leaky(result: str, source: str, slope: float = 0.25) -> Operation:
    return op(result, "leaky", source, slope=slope)


def add(result: str, *sources: str) -> Operation:
    return op(result, "add", *sources)


def cat(result: str, *sources: str) -> Operation:
    return op(result, "cat", *sources)


def chunk(result: str, source: str, index: int, parts: int = 2) -> Operation:
    return op(result, "chunk", source, parts=parts, index=index)


def avg(
    result: str, source: str, kernel: int = 2, stride: int = 2, padding: int = 0, include: bool = True
) -> Operation:
    return op(result, "avg", source, kernel=kernel, stride=stride, padding=padding, include=include)


def max_pool(result: str, source: str, kernel: int = 2, stride: int = 2, padding: int = 0) -> Operation:
    return op(result, "max", source, kernel=kernel, stride=stride, padding=padding)


def mean_head(source: str, out: int = 2) -> list[Operation]:
    """The mean over pixels and a linear layer."""
    return [op("m", "mean", source), fc("o", "m", out)]


def flat_head(source: str, out: int = 2) -> list[Operation]:
    """All pixels side by side and a linear layer."""
    return [op("f", "flatten", source), fc("o", "f", out)]
