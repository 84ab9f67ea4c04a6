"""Small versions of the networks for small images that people train, as recipes of some tens of operations."""

from __future__ import annotations

from typing import Any

from modern_networks import Network
from recipe_ops import (
    add,
    avg,
    cat,
    chunk,
    conv,
    conv1,
    depthwise,
    leaky,
    max_pool,
    mean_head,
    norm,
    relu,
    relu6,
)
from recipes import Operation, op


def _gated(name: str, layer: Operation) -> list[Operation]:
    """A layer, a batch norm, and a ReLU whose result is `name`."""
    return [layer, norm(f"{name}n", layer[0]), relu(name, f"{name}n")]


def _conv(name: str, source: str, out: int, **options: Any) -> list[Operation]:
    return _gated(name, conv(f"{name}c", source, out=out, bias=False, **options))


def _conv1(name: str, source: str, out: int, **options: Any) -> list[Operation]:
    return _gated(name, conv1(f"{name}c", source, out, bias=False, **options))


def _inception(name: str, source: str, out: int) -> list[Operation]:
    a, b, c, d = (f"{name}{branch}" for branch in "abcd")
    return [
        *_conv1(a, source, out),
        *[*_conv1(f"{b}1", source, 2), *_conv(b, f"{b}1", out)],
        *[*_conv1(f"{c}1", source, 2), *_conv(f"{c}2", f"{c}1", 3), *_conv(c, f"{c}2", 2)],
        *[max_pool(f"{d}p", source, 3, 1, 1), *_conv1(d, f"{d}p", 2)],
        cat(name, a, b, c, d),
    ]


GOOGLENET = [
    *_conv("s", "x", 6),
    *_inception("i", "s", 3),
    max_pool("p", "i", 3, 2, 1),
    *_inception("j", "p", 4),
    *mean_head("j", 1),
]


def _dense(name: str, source: str, growth: int) -> list[Operation]:
    """A layer of DenseNet: batch norm, ReLU, 1x1, batch norm, ReLU, 3x3, and its input beside its output."""
    return [
        *[norm(f"{name}m", source), relu(f"{name}h", f"{name}m"), *_conv1(f"{name}g", f"{name}h", 4)],
        *[conv(f"{name}o", f"{name}g", out=growth, bias=False), cat(name, f"{name}o", source)],
    ]


DENSENET = [
    conv("s", "x", out=4, bias=False),
    *[*_dense("a", "s", 2), *_dense("b", "a", 2)],
    *[norm("tn", "b"), relu("tg", "tn"), conv1("t", "tg", 4, bias=False), avg("p", "t")],
    *[*_dense("c", "p", 2), *_dense("d", "c", 2), norm("n", "d"), relu("g", "n")],
    *mean_head("g", 1),
]


def _resnext(name: str, source: str, out: int, stride: int) -> list[Operation]:
    return [
        *_conv1(f"{name}1", source, 6),
        *_conv(f"{name}2", f"{name}1", 6, groups=3, stride=stride),
        *[conv1(f"{name}c", f"{name}2", out, bias=False), norm(f"{name}n", f"{name}c")],
        *[conv1(f"{name}r", source, out, stride=stride, bias=False), norm(f"{name}m", f"{name}r")],
        *[add(f"{name}s", f"{name}n", f"{name}m"), relu(name, f"{name}s")],
    ]


RESNEXT = [*_conv("s", "x", 4), *_resnext("a", "s", 5, 1), *_resnext("b", "a", 6, 2), *mean_head("b", 1)]


def _mobile(name: str, source: str, inside: int, out: int, stride: int = 1) -> list[Operation]:
    """An inverted residual without its addition."""
    layer = depthwise(f"{name}d", f"{name}g", inside, stride=stride, bias=False)
    return [
        *[conv1(f"{name}e", source, inside, bias=False), norm(f"{name}m", f"{name}e"), relu6(f"{name}g", f"{name}m")],
        *[layer, norm(f"{name}n", layer[0]), relu6(f"{name}h", f"{name}n")],
        *[conv1(f"{name}p", f"{name}h", out, bias=False), norm(name, f"{name}p")],
    ]


MOBILENETV2 = [
    *[conv("s", "x", out=4, bias=False), norm("sn", "s"), relu6("sg", "sn")],
    *[*_mobile("a", "sg", 6, 4, 2), *_mobile("b", "a", 6, 4), add("t", "b", "a")],
    *[conv1("l", "t", 8, bias=False), norm("ln", "l"), relu6("lg", "ln")],
    *mean_head("lg", 1),
]

SHUFFLENETV2 = [
    *_conv("s", "x", 6),
    # A unit that halves the image has two branches.
    *[depthwise("ad", "s", 6, stride=2, bias=False), norm("ae", "ad"), *_conv1("a", "ae", 4)],
    *[*_conv1("b1", "s", 4), depthwise("bd", "b1", 4, stride=2, bias=False), norm("be", "bd"), *_conv1("b", "be", 4)],
    *[cat("k", "a", "b"), op("u", "shuffle", "k", groups=2)],
    # A unit of the other kind leaves half of the channels alone.
    *[chunk("l", "u", 0), chunk("r", "u", 1)],
    *[*_conv1("c1", "r", 4), depthwise("cd", "c1", 4, bias=False), norm("ce", "cd"), *_conv1("c", "ce", 4)],
    *[cat("m2", "l", "c"), op("v", "shuffle", "m2", groups=2), chunk("w", "v", 1)],
    *[depthwise("e", "w", 4, bias=False), norm("en", "e"), *_conv1("g", "en", 6)],
    *mean_head("g", 1),
]


def _preact(name: str, source: str, out: int, stride: int) -> list[Operation]:
    return [
        *[norm(f"{name}n", source), relu(f"{name}g", f"{name}n")],
        conv1(f"{name}r", f"{name}g", out, stride=stride, bias=False),
        *_conv(f"{name}h", f"{name}g", out, stride=stride),
        *[conv(f"{name}o", f"{name}h", out=out, bias=False), add(name, f"{name}o", f"{name}r")],
    ]


PREACTRESNET = [
    conv("s", "x", out=4, bias=False),
    *[*_preact("a", "s", 5, 1), *_preact("b", "a", 6, 2)],
    *[norm("cn", "b"), relu("cg", "cn"), conv("co", "cg", out=6, bias=False), add("c", "co", "b")],
    *[norm("n", "c"), relu("g", "n"), *mean_head("g", 1)],
]

DCGAN = [
    *[conv("a", "x", kernel=4, stride=2, out=4, bias=False), leaky("ag", "a")],
    *[conv("b", "ag", kernel=4, stride=2, out=6, bias=False), norm("bn", "b"), leaky("bg", "bn")],
    *[conv("c", "bg", stride=2, out=8, bias=False), norm("cn", "c"), leaky("cg", "cn")],
    *[conv("o", "cg", kernel=1, padding=0, out=1, bias=False), op("f", "flatten", "o")],
]


def _causal(name: str, source: str, out: int, dilation: int) -> list[Operation]:
    """A convolution that sees no later time."""
    options = {"kernel": 3, "padding": 2 * dilation, "dilation": dilation, "bias": False}
    layer = conv(f"{name}c", source, out=out, **options)
    return [layer, op(f"{name}k", "crop", layer[0], sides=(0, 0, 0, 2 * dilation)), relu(name, f"{name}k")]


TCN = [
    *[*_causal("a1", "x", 5, 1), *_causal("a2", "a1", 5, 1), conv1("ar", "x", 5, bias=False), add("as", "a2", "ar")],
    *[relu("a", "as"), *_causal("b1", "a", 5, 2), *_causal("b2", "b1", 5, 2), add("bs", "b2", "a"), relu("b", "bs")],
    *[op("l", "crop", "b", sides=(0, 0, 11, 0)), *mean_head("l", 1)],
]

COLLECTION: dict[str, Network] = {
    "GoogLeNet": (GOOGLENET, (3, 5, 5)),
    "DenseNet": (DENSENET, (3, 6, 6)),
    "ResNeXt": (RESNEXT, (3, 5, 5)),
    "MobileNetV2": (MOBILENETV2, (3, 6, 6)),
    "ShuffleNetV2": (SHUFFLENETV2, (3, 6, 6)),
    "PreActResNet": (PREACTRESNET, (3, 6, 6)),
    "DCGAN": (DCGAN, (3, 8, 8)),
    "TCN": (TCN, (2, 12)),
}
