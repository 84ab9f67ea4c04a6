"""Small networks of every architecture that path kernels cover, as recipes, and a hypothesis strategy for more."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from hypothesis import assume
from hypothesis import strategies as st
from modern_networks import MODERN, Network
from recipe_ops import avg, conv, fc, max_pool, relu
from recipes import Operation, Recipe, op

# Networks that are drawn have at most this many paths to an output.
_MOST_PATHS = 10_000

# These operations are a convolution of "x" and its gate, "g1".
FIRST = [conv("c1", "x"), relu("g1", "c1")]

NETWORKS: dict[str, Network] = {
    "fully connected": ([fc("a", "x", 4), relu("b", "a"), fc("c", "b", 3), relu("d", "c"), fc("e", "d")], (3,)),
    "fully connected, an image flattened": (
        [op("a", "flatten", "x"), fc("b", "a", 5), relu("c", "b"), fc("d", "c")],
        (2, 2, 2),
    ),
    "fully connected, gate before addition": (
        [fc("a", "x", 3), relu("b", "a"), fc("c", "b", 3), relu("d", "c"), op("e", "add", "d", "b"), fc("f", "e")],
        (3,),
    ),
    "fully connected, gate after addition": (
        [fc("a", "x", 3), relu("b", "a"), fc("c", "b", 3), op("d", "add", "c", "b"), relu("e", "d"), fc("f", "e")],
        (3,),
    ),
    "fully connected, the input added": (
        [fc("a", "x", 3), op("b", "add", "a", "x"), relu("c", "b"), fc("d", "c")],
        (3,),
    ),
    "linear": ([fc("a", "x", 3), fc("b", "a")], (4,)),
    "flatten": ([*FIRST, conv("c2", "g1"), relu("g2", "c2"), op("f", "flatten", "g2"), fc("o", "f")], (1, 3, 2)),
    "mean": ([*FIRST, conv("c2", "g1"), relu("g2", "c2"), op("m", "mean", "g2"), fc("o", "m")], (2, 3, 4)),
    "circular": (
        [
            conv("c1", "x", mode="circular"),
            relu("g1", "c1"),
            conv("c2", "g1", mode="circular", kernel=2),
            relu("g2", "c2"),
            op("m", "mean", "g2"),
            fc("o", "m"),
        ],
        (1, 3, 4),
    ),
    "stride and dilation": (
        [
            conv("c1", "x", stride=2, kernel=2, padding=0),
            relu("g1", "c1"),
            conv("c2", "g1", dilation=2, padding=2),
            relu("g2", "c2"),
            op("f", "flatten", "g2"),
            fc("o", "f"),
        ],
        (1, 5, 4),
    ),
    "gated dense layers at the head": (
        [
            *FIRST,
            op("f", "flatten", "g1"),
            fc("d1", "f", 3),
            relu("h1", "d1"),
            fc("d2", "h1", 3),
            relu("h2", "d2"),
            fc("o", "h2"),
        ],
        (1, 2, 3),
    ),
    "average pool": (
        [*FIRST, avg("p", "g1"), conv("c2", "p", kernel=2), relu("g2", "c2"), op("m", "mean", "g2"), fc("o", "m")],
        (1, 4, 5),
    ),
    "average pool, padding not counted": (
        [*FIRST, avg("p", "g1", 3, 2, 1, False), op("f", "flatten", "p"), fc("o", "f")],
        (1, 4, 5),
    ),
    "average pool before the gate": (
        [conv("c1", "x"), avg("p", "c1", 3, 2, 1), relu("g1", "p"), op("m", "mean", "g1"), fc("o", "m")],
        (2, 4, 4),
    ),
    "pools of the input": (
        [
            avg("p", "x"),
            max_pool("q", "p", 2, 1),
            conv("c1", "q"),
            relu("g1", "c1"),
            op("f", "flatten", "g1"),
            fc("o", "f"),
        ],
        (1, 6, 6),
    ),
    "max-pool": (
        [
            *FIRST,
            max_pool("p", "g1"),
            conv("c2", "p", kernel=2, padding=0),
            relu("g2", "c2"),
            op("m", "mean", "g2"),
            fc("o", "m"),
        ],
        (2, 4, 6),
    ),
    "overlapping max-pool with padding": (
        [*FIRST, max_pool("p", "g1", 3, 2, 1), op("f", "flatten", "p"), fc("o", "f")],
        (1, 5, 4),
    ),
    "max-pool before the gate": (
        [conv("c1", "x"), max_pool("p", "c1", 2, 1), relu("g1", "p"), op("m", "mean", "g1"), fc("o", "m")],
        (1, 3, 4),
    ),
    "max-pool, then average": (
        [*FIRST, max_pool("p", "g1", 2, 1), avg("q", "p"), op("f", "flatten", "q"), fc("o", "f")],
        (1, 5, 5),
    ),
    "batch norm": (
        [conv("c1", "x", bias=False), op("n", "norm", "c1"), relu("g1", "n"), op("m", "mean", "g1"), fc("o", "m")],
        (2, 3, 3),
    ),
    "a layer without a gate": (
        [
            *FIRST,
            conv("c2", "g1", out=3),
            conv("c3", "c2", kernel=2),
            relu("g3", "c3"),
            op("m", "mean", "g3"),
            fc("o", "m"),
        ],
        (1, 3, 2),
    ),
    "outputs from a convolution": (
        [*FIRST, conv("c2", "g1", out=3, kernel=1, padding=0), avg("p", "c2", 3, 1)],
        (1, 3, 3),
    ),
    "residual, gate before addition": (
        [*FIRST, conv("c2", "g1"), relu("g2", "c2"), op("s", "add", "g2", "g1"), op("m", "mean", "s"), fc("o", "m")],
        (1, 3, 3),
    ),
    "residual, gate after addition": (
        [
            *FIRST,
            conv("c2", "g1", kernel=2),
            relu("g2", "c2"),
            conv("c3", "g2", kernel=2, padding=0),
            op("s", "add", "g1", "c3"),
            relu("g3", "s"),
            op("m", "mean", "g3"),
            fc("o", "m"),
        ],
        (1, 3, 3),
    ),
    "residual, pre-activation": (
        [
            conv("c1", "x", kernel=1, padding=0),
            relu("g1", "c1"),
            conv("c2", "g1"),
            op("s", "add", "c1", "c2"),
            relu("g2", "s"),
            conv("c3", "g2", kernel=1, padding=0),
            op("t", "add", "s", "c3"),
            relu("g3", "t"),
            op("f", "flatten", "g3"),
            fc("o", "f"),
        ],
        (2, 2, 3),
    ),
    "residual, strided shortcut": (
        [
            *FIRST,
            conv("c2", "g1", stride=2, bias=False),
            op("n2", "norm", "c2"),
            conv("sc", "g1", kernel=1, stride=2, padding=0, bias=False),
            op("ns", "norm", "sc"),
            op("s", "add", "n2", "ns"),
            relu("g2", "s"),
            op("m", "mean", "g2"),
            fc("o", "m"),
        ],
        (1, 4, 3),
    ),
    "residual, behind a max-pool": (
        [
            *FIRST,
            max_pool("p", "g1", 3, 2, 1),
            conv("c2", "p", kernel=1, padding=0),
            op("s", "add", "c2", "p"),
            relu("g2", "s"),
            op("m", "mean", "g2"),
            fc("o", "m"),
        ],
        (1, 5, 4),
    ),
    "residual, then a max-pool": (
        [
            *FIRST,
            conv("c2", "g1", kernel=1, padding=0),
            op("s", "add", "c2", "g1"),
            relu("g2", "s"),
            max_pool("p", "g2"),
            op("f", "flatten", "p"),
            fc("o", "f"),
        ],
        (1, 4, 4),
    ),
    "two residual blocks": (
        [
            *FIRST,
            conv("c2", "g1", kernel=1, padding=0),
            op("s", "add", "c2", "g1"),
            relu("g2", "s"),
            conv("c3", "g2", kernel=1, padding=0),
            op("t", "add", "c3", "g2"),
            relu("g3", "t"),
            op("m", "mean", "g3"),
            fc("o", "m"),
        ],
        (1, 3, 2),
    ),
    "the input added": (
        [
            conv("c1", "x"),
            op("s", "add", "c1", "x"),
            relu("g1", "s"),
            max_pool("p", "g1", 2, 1),
            op("m", "mean", "p"),
            fc("o", "m"),
        ],
        (2, 3, 3),
    ),
    "constants": (
        [
            op("k0", "constant", "x", shape=(1, 1, 1)),
            *[conv("c1", "k0"), op("k1", "constant", "c1", shape=(2, 3, 4))],
            relu("g1", "k1"),
            op("k2", "constant", "g1", shape=(2, 1, 1)),
            relu("g2", "k2"),
            op("k3", "constant", "g2", shape=(1, 1, 4)),
            op("k4", "constant", "k3", shape=(1, 3, 1)),
            op("f", "flatten", "k4"),
            fc("o", "f", bias=False),
        ],
        (1, 3, 4),
    ),
    "heads added": (
        [
            *FIRST,
            op("m", "mean", "g1"),
            fc("o1", "m"),
            op("f", "flatten", "g1"),
            fc("o2", "f"),
            op("o", "add", "o1", "o2"),
        ],
        (1, 3, 2),
    ),
} | MODERN


@functools.cache
def network(name: str) -> Recipe:
    """Returns a network of NETWORKS, always the same object. Some gates of each layer of MODERN are on."""
    if name not in MODERN:
        return Recipe(*NETWORKS[name])
    return next(net for seed in range(1000) if _is_alive(net := Recipe(*NETWORKS[name], seed)))


def _is_alive(net: Recipe) -> bool:
    """Says whether a good part of the gates of every layer is on, and some are off."""
    gates = (mask for mask in net.frozen(net.inputs(5)) if mask.dtype == torch.bool)
    return all(0.25 < mask.double().mean() < 0.99 for mask in gates)


@dataclass
class _Growing:
    """A network while it is drawn: its operations, the last result, and the shape of that."""

    operations: list[Operation]
    last: str
    channels: int
    size: tuple[int, int]
    paths: int = 1  # A unit has at most this many paths.

    def add(self, operation: Operation) -> None:
        self.operations.append(operation)
        self.last = operation[0]

    def moved(self, kernel: int, stride: int, padding: int) -> None:
        height, width = ((size + 2 * padding - kernel) // stride + 1 for size in self.size)
        self.size = (height, width)


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Draws networks of one or two convolutions and any head. Behind each convolution there may be a batch norm, a
    gate, and a pool, constant or residual block."""
    shape = (draw(st.integers(1, 2)), draw(st.integers(2, 4)), draw(st.integers(2, 4)))
    net = _Growing([], "x", shape[0], shape[1:])
    for index in range(draw(st.integers(1, 2))):
        _draw_conv(draw, net, str(index))
        for kind in ("norm", "relu"):
            if draw(st.booleans()):
                net.add(op(f"{kind}{index}", kind, net.last))
        match draw(st.sampled_from(["nothing", "max", "avg", "constant", "block"])):
            case "max" | "avg" as kind:
                _draw_pool(draw, net, f"pool{index}", kind)
            case "constant":
                net.add(op(f"constant{index}", "constant", net.last, shape=(1, 1, 1)))
                net.paths += 1
            case "block":
                _draw_block(draw, net, str(index))
    head = draw(st.sampled_from(["mean", "flatten"]))
    net.paths *= net.channels * (1 if head == "mean" else net.size[0] * net.size[1])
    assume(net.paths <= _MOST_PATHS)
    net.add(op("head", head, net.last))
    if draw(st.booleans()):
        net.add(fc("dense", net.last, 2))
        net.add(relu("gate", net.last))
    net.add(fc("out", net.last, 1))
    return net.operations, shape


def _draw_conv(draw: st.DrawFn, net: _Growing, index: str) -> None:
    kernel = draw(st.integers(1, min(3, *net.size)))
    moved = (kernel, draw(st.integers(1, 2)), draw(st.integers(0, kernel - 1)))
    options = {
        "mode": draw(st.sampled_from(["zeros", "circular"])),
        "bias": draw(st.booleans()),
        "out": draw(st.integers(1, 2)),
    }
    net.add(conv(f"conv{index}", net.last, kernel=kernel, stride=moved[1], padding=moved[2], **options))
    net.paths = net.paths * net.channels * kernel**2 + 1
    net.channels = options["out"]
    net.moved(*moved)


def _draw_pool(draw: st.DrawFn, net: _Growing, name: str, kind: str) -> None:
    kernel = draw(st.integers(1, min(3, *net.size)))
    moved = (kernel, draw(st.integers(1, 2)), draw(st.integers(0, kernel // 2)))
    net.add(max_pool(name, net.last, *moved) if kind == "max" else avg(name, net.last, *moved, draw(st.booleans())))
    net.moved(*moved)


def _draw_block(draw: st.DrawFn, net: _Growing, index: str) -> None:
    shortcut = net.last
    net.add(conv(f"block{index}", shortcut, kernel=1, padding=0, out=net.channels, bias=draw(st.booleans())))
    if draw(st.booleans()):
        net.add(relu(f"inside{index}", net.last))
    net.add(op(f"add{index}", "add", net.last, shortcut))
    if draw(st.booleans()):
        net.add(relu(f"after{index}", net.last))
    net.paths = net.paths * (net.channels + 1) + 1
