"""Small networks of modern architectures, as recipes: groups, concatenation, shuffles, slopes, sequences, resizing."""

from __future__ import annotations

from recipe_ops import (
    add,
    avg,
    cat,
    chunk,
    conv,
    conv1,
    depthwise,
    fc,
    flat_head,
    leaky,
    max_pool,
    mean_head,
    norm,
    relu,
    relu6,
)
from recipes import Operation, op

# A Network has operations and the shape of an input.
Network = tuple[list[Operation], tuple[int, ...]]

CLASSIFIERS: dict[str, Network] = {
    "dense block": (
        [
            *[conv("c1", "x"), relu("g1", "c1")],
            *[conv("c2", "g1", out=1), relu("g2", "c2"), cat("k2", "g1", "g2")],
            *[conv("c3", "k2", out=1, kernel=2, padding=0), relu("g3", "c3")],
            *mean_head("g3"),
        ],
        (1, 3, 3),
    ),
    "DenseNet": (
        [
            conv1("c0", "x"),
            *[norm("n1", "c0"), relu("g1", "n1"), conv("c1", "g1", out=1), cat("k1", "c0", "c1")],
            *[norm("n2", "k1"), relu("g2", "n2"), conv1("c2", "g2", 1), cat("k2", "k1", "c2")],
            *[norm("n3", "k2"), relu("g3", "n3"), conv1("t", "g3"), avg("p", "t"), norm("n4", "p"), relu("g4", "n4")],
            *mean_head("g4"),
        ],
        (1, 4, 2),
    ),
    "inception block": (
        [
            *[conv1("c0", "x"), relu("g0", "c0")],
            *[conv1("a", "g0", 1), relu("ga", "a")],
            *[conv1("b1", "g0", 1), relu("gb1", "b1"), conv("b2", "gb1", out=1), relu("gb", "b2")],
            *[max_pool("p", "g0", 3, 1, 1), conv1("d", "p", 1), norm("nd", "d"), relu("gd", "nd")],
            *[cat("k", "ga", "gb", "gd"), max_pool("q", "k"), conv1("last", "q"), relu("g", "last")],
            *mean_head("g"),
        ],
        (2, 2, 4),
    ),
    "ResNeXt block": (
        [
            *[conv1("c0", "x", 4), norm("n0", "c0"), relu("g0", "n0")],
            *[conv1("c1", "g0", 4, bias=False), norm("n1", "c1"), relu("g1", "n1")],
            *[conv("c2", "g1", out=4, groups=2, kernel=2, bias=False), norm("n2", "c2"), relu("g2", "n2")],
            *[conv("c3", "g2", out=4, kernel=2, padding=0), add("s", "c3", "g0"), relu("g3", "s")],
            *mean_head("g3"),
        ],
        (1, 2, 2),
    ),
    "MobileNet block": (
        [
            *[conv1("c0", "x", 3), norm("n0", "c0"), relu("g0", "n0")],
            *[depthwise("d", "g0", 3), norm("n1", "d"), relu("g1", "n1")],
            *[conv1("c1", "g1", 3), relu("g2", "c1"), add("s", "g2", "g0")],
            *flat_head("s"),
        ],
        (2, 3, 3),
    ),
    "MobileNetV2 block": (
        [
            *[conv("c0", "x", stride=2), norm("n0", "c0"), relu6("g0", "n0")],
            *[conv1("c1", "g0", 4, bias=False), norm("n1", "c1"), relu6("g1", "n1")],
            *[depthwise("d", "g1", 4, bias=False), norm("n2", "d"), relu6("g2", "n2")],
            *[conv1("c2", "g2", bias=False), norm("n3", "c2"), add("s", "n3", "g0")],
            *[conv1("c3", "s", 3), relu6("g3", "c3")],
            *mean_head("g3"),
        ],
        (1, 4, 4),
    ),
    "ShuffleNet units": (
        [
            *[conv1("c0", "x", 4), relu("g0", "c0")],
            *[chunk("a", "g0", 0), chunk("b", "g0", 1)],
            *[conv1("c1", "b"), relu("g1", "c1"), depthwise("d1", "g1", 2), norm("n1", "d1"), conv1("c2", "n1")],
            *[relu("g2", "c2"), cat("k", "a", "g2"), op("s", "shuffle", "k", groups=2)],
            *[op("a2", "slice", "s", start=0, stop=2, step=1), op("b2", "slice", "s", start=2, stop=4, step=1)],
            *[depthwise("d2", "b2", 2), relu("g3", "d2"), cat("k2", "a2", "g3"), op("s2", "shuffle", "k2", groups=2)],
            *[conv("c3", "s2", out=3, groups=1, kernel=2, padding=0), relu("g4", "c3")],
            *flat_head("g4"),
        ],
        (1, 2, 3),
    ),
    "PreActResNet": (
        [
            conv("c0", "x"),
            *[norm("n1", "c0"), relu("g1", "n1"), conv1("c1", "g1", 3)],
            *[norm("n2", "c1"), relu("g2", "n2"), conv("c2", "g2", kernel=2, padding=0, stride=2)],
            *[conv("sc", "g1", kernel=1, padding=0, stride=2), add("s", "c2", "sc")],
            *[norm("n3", "s"), relu("g3", "n3"), conv1("c3", "g3"), add("t", "c3", "s"), norm("n4", "t")],
            *[relu("g4", "n4"), *mean_head("g4")],
        ],
        (1, 4, 2),
    ),
    "U-Net": (
        [
            *[conv("c1", "x"), relu("g1", "c1"), max_pool("p", "g1"), conv("c2", "p"), relu("g2", "c2")],
            *[op("u", "nearest", "g2", factor=2), cat("k", "u", "g1"), conv1("c3", "k", 3), relu("g3", "c3")],
            *mean_head("g3"),
        ],
        (1, 2, 4),
    ),
    "DCGAN discriminator": (
        [
            *[conv("c1", "x", kernel=4, stride=2, bias=False), leaky("g1", "c1")],
            *[conv("c2", "g1", stride=2, bias=False, out=3), norm("n2", "c2"), leaky("g2", "n2")],
            *[conv("o", "g2", kernel=2, padding=0, out=1), op("f", "flatten", "o")],
        ],
        (1, 6, 6),
    ),
}

OF_CHANNELS: dict[str, Network] = {
    "groups of the input": (
        [
            conv("c1", "x", groups=2, out=4),
            relu("g1", "c1"),
            conv1("c2", "g1", groups=2),
            relu("g2", "c2"),
            *flat_head("g2"),
        ],
        (4, 2, 3),
    ),
    "depthwise layers of the input": (
        [depthwise("d1", "x", 2, kernel=2), depthwise("d2", "d1", 2, out=4), relu("g", "d2"), *mean_head("g")],
        (2, 3, 3),
    ),
    "depthwise layers in a row": (
        [
            *[conv1("c0", "x", 3), relu("g0", "c0"), depthwise("d1", "g0", 3, kernel=2), relu("g1", "d1")],
            *[depthwise("d2", "g1", 3, stride=2, dilation=2, bias=False), relu("g2", "d2")],
            *[depthwise("d3", "g2", 3, kernel=1, padding=0, out=6), *mean_head("d3")],
        ],
        (1, 4, 5),
    ),
    "depthwise behind a max-pool": (
        [
            *[conv1("c0", "x", 2), leaky("g0", "c0", 0.5), max_pool("p", "g0", 2, 1), depthwise("d", "p", 2, kernel=2)],
            *[relu("g", "d"), conv1("c1", "g", 1), *flat_head("c1")],
        ],
        (2, 4, 4),
    ),
    "groups of a concatenation": (
        [
            *[
                conv1("a", "x", 2),
                relu("ga", "a"),
                conv1("b", "x", 4),
                leaky("gb", "b", -0.5),
                cat("k", "ga", "gb", "x"),
            ],
            *[conv("c", "k", groups=2, kernel=2, out=6), relu("g", "c"), conv1("e", "g", groups=3, out=3)],
            *[relu("h", "e"), *mean_head("h")],
        ],
        (2, 1, 3),
    ),
    "channels in another order": (
        [
            *[conv1("c1", "x", 6), relu("g1", "c1"), op("s", "shuffle", "g1", groups=3)],
            *[op("a", "slice", "s", start=1, stop=None, step=2), op("b", "slice", "s", start=0, stop=3, step=1)],
            *[conv1("c2", "a", 3), add("t", "c2", "b"), relu("g2", "t"), conv("c3", "g2", kernel=2, padding=0)],
            *[cat("k", "c3", "c3"), relu("g3", "k"), op("d", "chunk", "g3", parts=2, index=1), *flat_head("d")],
        ],
        (1, 2, 3),
    ),
    "batch norm in front": (
        [norm("n", "x"), conv("c1", "n"), relu("g1", "c1"), avg("p", "g1"), norm("n2", "p"), *flat_head("n2")],
        (2, 4, 4),
    ),
    "batch norm of vectors": (
        [
            fc("a", "x", 4),
            norm("n", "a"),
            relu("g", "n"),
            norm("n2", "g"),
            fc("b", "n2", 3),
            leaky("h", "b"),
            fc("o", "h"),
        ],
        (3,),
    ),
    "scaled input and branches": (
        [
            *[op("k", "constant", "x", shape=(2, 1, 1)), op("z", "scale", "k", factor=(0.5, 2.0))],
            *[conv("c1", "z"), relu("g1", "c1"), conv1("c2", "g1"), op("h", "scale", "c2", factor=0.25)],
            *[add("s", "h", "g1"), relu("g2", "s"), op("t", "scale", "g2", factor=-2.0), *flat_head("t")],
        ],
        (2, 2, 3),
    ),
    "gains": (
        [
            *[conv("c1", "x"), op("a", "gain", "c1"), relu("g1", "a"), op("b", "gain", "g1"), conv1("c2", "b")],
            *[op("e", "gain", "c2"), add("s", "e", "g1"), relu("g2", "s"), *mean_head("g2")],
        ],
        (1, 2, 4),
    ),
}

OF_UNITS: dict[str, Network] = {
    "leaky residual": (
        [
            *[conv("c1", "x"), leaky("g1", "c1"), conv("c2", "g1"), leaky("g2", "c2", 0.5), add("s", "g2", "g1")],
            *[leaky("g3", "s"), *mean_head("g3")],
        ],
        (1, 2, 2),
    ),
    "slopes of each channel": (
        [
            *[conv("c1", "x", out=3), op("g1", "prelu", "c1", slopes=3), max_pool("p", "g1", 2, 1)],
            *[conv1("c2", "p", 3), add("s", "c2", "p"), op("g2", "prelu", "s", slopes=1), *flat_head("g2")],
        ],
        (1, 3, 4),
    ),
    "absolute values": (
        [
            *[op("g0", "abs", "x"), conv("c1", "g0"), op("g1", "abs", "c1"), depthwise("d", "g1", 2, kernel=2)],
            *[max_pool("p", "c1", 2, 1, 1), cat("k", "d", "p"), op("g2", "abs", "k"), conv1("c2", "g2")],
            *[leaky("g3", "c2", 2.0), *mean_head("g3")],
        ],
        (1, 2, 3),
    ),
    "relu6": (
        [
            relu6("g0", "x"),
            conv("c1", "g0", out=3),
            relu6("g1", "c1"),
            max_pool("p", "g1", 2, 1),
            conv1("c2", "p"),
            relu6("g2", "c2"),
            *mean_head("g2"),
        ],
        (1, 3, 5),
    ),
}

OF_PIXELS: dict[str, Network] = {
    "two max-pools": (
        [
            conv("c1", "x"),
            relu("g1", "c1"),
            max_pool("p", "g1", 2, 1),
            max_pool("q", "p", 3, 2, 1),
            relu("g2", "q"),
            conv1("c2", "g2"),
            relu("g3", "c2"),
            *flat_head("g3"),
        ],
        (1, 5, 4),
    ),
    "spatial pyramid pool": (
        [
            *[conv1("c1", "x"), relu("g1", "c1"), max_pool("p", "g1", 3, 1, 1), max_pool("q", "p", 3, 1, 1)],
            *[cat("k", "g1", "p", "q"), conv1("c2", "k", 3), relu("g2", "c2"), *mean_head("g2")],
        ],
        (1, 4, 4),
    ),
    "reflected and replicated borders": (
        [
            *[
                conv("c1", "x", mode="reflect"),
                relu("g1", "c1"),
                conv("c2", "g1", mode="replicate", stride=2, kernel=2),
            ],
            *[relu("g2", "c2"), op("p", "pad", "g2", sides=(1, 0, 0, 1), mode="replicate"), *flat_head("p")],
        ],
        (1, 3, 4),
    ),
    "moved pixels, then a depthwise layer": (
        [
            *[conv1("c1", "x"), relu("g1", "c1"), op("p", "pad", "g1", sides=(1, 1, 0, 1), mode="reflect")],
            *[op("z", "pad", "p", sides=(0, 1), mode="zeros"), op("u", "nearest", "z", factor=2)],
            *[op("v", "crop", "u", sides=(1, 0, 0, 3)), depthwise("d", "v", 2, padding=0), leaky("g2", "d")],
            *[conv1("c2", "g2"), *mean_head("c2")],
        ],
        (1, 2, 2),
    ),
    "uneven averages": (
        [
            *[
                conv("c1", "x"),
                relu("g1", "c1"),
                op("p", "adaptive", "g1", size=(3, 2)),
                conv1("c2", "p"),
                relu("g2", "c2"),
            ],
            *[op("q", "adaptive", "g2", size=(2, 1)), *flat_head("q")],
        ],
        (1, 4, 3),
    ),
    "transposed convolutions": (
        [
            *[conv1("c1", "x"), relu("g1", "c1"), op("c2", "transposed", "g1", out=2, kernel=3, stride=2, padding=1)],
            *[
                norm("n2", "c2"),
                relu("g2", "n2"),
                op("c3", "transposed", "g2", out=1, kernel=2, stride=1, padding=0),
                leaky("g3", "c3"),
            ],
            *flat_head("g3"),
        ],
        (1, 2, 3),
    ),
    "bilinear": (
        [
            *[op("y", "bilinear", "x", size=(2, 4)), conv("c1", "y"), relu("g1", "c1")],
            *[op("u", "bilinear", "g1", size=(4, 8)), conv("c2", "u", stride=2), relu("g2", "c2"), *mean_head("g2")],
        ],
        (1, 4, 2),
    ),
}

OF_SEQUENCES: dict[str, Network] = {
    "TCN": (
        [
            *[conv("c1", "x", kernel=2, padding=1), op("h1", "crop", "c1", sides=(0, 0, 0, 1)), relu("g1", "h1")],
            *[conv("c2", "g1", kernel=2, padding=2, dilation=2), op("h2", "crop", "c2", sides=(0, 0, 0, 2))],
            *[relu("g2", "h2"), conv1("sc", "x"), add("s", "g2", "sc"), relu("g3", "s")],
            *[op("z", "pad", "g3", sides=(2, 0), mode="zeros"), conv("c3", "z", kernel=2, padding=0, dilation=2)],
            *[relu("g4", "c3"), op("last", "crop", "g4", sides=(0, 0, 5, 0)), *flat_head("last")],
        ],
        (2, 6),
    ),
    "sequences of signals": (
        [
            *[conv("c1", "x", stride=2, bias=False), norm("n1", "c1"), avg("p", "n1", 3, 1, 1), relu("g1", "p")],
            *[depthwise("d", "g1", 2, mode="circular"), relu("g2", "d"), op("u", "nearest", "g1", factor=2)],
            *[conv1("c2", "u", 3), op("v", "nearest", "g2", factor=2), cat("k", "c2", "u"), leaky("g3", "k")],
            *[cat("l", "g3", "v"), *mean_head("l")],
        ],
        (1, 8),
    ),
    "tokens": (
        [
            *[fc("a", "x", 3), relu("g1", "a"), fc("b", "g1", 3), add("s", "b", "g1"), op("g2", "abs", "s")],
            *[op("t", "slice", "g2", start=1, stop=3, step=1), cat("k", "t", "g1"), fc("c", "k", 4), relu("g3", "c")],
            *mean_head("g3"),
        ],
        (4, 2),
    ),
    "tokens, flattened": (
        [fc("a", "x", 3), op("g", "prelu", "a", slopes=1), fc("b", "g", 2), relu("h", "b"), *flat_head("h")],
        (3, 2),
    ),
}

MODERN: dict[str, Network] = CLASSIFIERS | OF_CHANNELS | OF_UNITS | OF_PIXELS | OF_SEQUENCES
