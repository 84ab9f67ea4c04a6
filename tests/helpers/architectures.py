"""Small networks of every architecture that path kernels cover, as recipes."""

from __future__ import annotations

import functools

import torch
from modern_networks import MODERN, Network
from recipe_ops import avg, conv, fc, max_pool, relu
from recipes import Recipe, op

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
