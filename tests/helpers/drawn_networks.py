"""A hypothesis strategy for networks that path kernels cover, as recipes."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import assume
from hypothesis import strategies as st
from modern_networks import Network
from recipe_ops import avg, conv, conv1, fc, leaky, max_pool
from recipes import Operation, op

# Networks that are drawn have at most this many paths to an output.
_MOST_PATHS = 10_000

_GATES = ["relu", "relu", "leaky", "abs", "prelu", "relu6"]
_PARTS = ["nothing", "max", "two max", "avg", "constant", "block", "cat", "moved", "order", "norm"]


@dataclass
class _Growing:
    """A network while it is drawn: its operations, the last result, and the shape of that.

    Args:
        windowed: there is a max-pool or a depthwise layer behind the last layer that mixes channels. Path kernels have
            no rule for some operations behind those.
        summed: so is an average behind gates.
    """

    operations: list[Operation]
    last: str
    channels: int
    size: tuple[int, int]
    is_flat: bool
    paths: int = 1  # A unit has at most this many paths.
    windowed: bool = False
    summed: bool = False

    def add(self, operation: Operation) -> None:
        self.operations.append(operation)
        self.last = operation[0]

    def moved(self, kernel: int, stride: int, padding: int) -> None:
        height, width = ((size + 2 * padding - kernel) // stride + 1 for size in self.size)
        self.size = (1 if self.is_flat else height, width)

    @property
    def smallest(self) -> int:
        return self.size[1] if self.is_flat else min(self.size)


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Draws networks of one or two convolutions and any head, over images or sequences. Behind each convolution there
    may be a batch norm, a gate, and something else, such as a pool, a concatenation or a residual block."""
    is_flat = draw(st.integers(0, 3)) == 0
    channels, size = draw(st.integers(1, 3)), (1 if is_flat else draw(st.integers(2, 4)), draw(st.integers(2, 4)))
    net = _Growing([], "x", channels, size, is_flat)
    shape = (channels, size[1]) if is_flat else (channels, *size)
    for index in range(draw(st.integers(1, 2))):
        _draw_conv(draw, net, str(index))
        if draw(st.booleans()):
            net.add(op(f"norm{index}", "norm", net.last))
        if draw(st.booleans()):
            _draw_gate(draw, net, f"gate{index}")
        _draw_part(draw, net, str(index))
    head = draw(st.sampled_from(["mean", "flatten"]))
    net.paths *= net.channels * (1 if head == "mean" else net.size[0] * net.size[1])
    assume(net.paths <= _MOST_PATHS)
    net.add(op("head", head, net.last))
    if draw(st.booleans()):
        net.add(fc("dense", net.last, 2))
        net.add(op("gate", "relu", net.last))
    net.add(fc("out", net.last, 1))
    return net.operations, shape


def _draw_conv(draw: st.DrawFn, net: _Growing, index: str) -> None:
    kernel = draw(st.integers(1, min(3, net.smallest)))
    moved = (kernel, draw(st.integers(1, 2)), draw(st.integers(0, kernel - 1)))
    groups = draw(st.sampled_from([1, 1, net.channels])) if not net.summed else 1
    out = groups * draw(st.integers(1, 2)) if groups > 1 else draw(st.integers(1, 3))
    mode = draw(st.sampled_from(["zeros", "zeros", "circular", "reflect", "replicate"]))
    if draw(st.integers(0, 3)) == 0 and net.channels % 2 == 0 and not net.summed:
        groups, out = 2, 2 * draw(st.integers(1, 2))
    options = {"groups": groups, "out": out, "mode": mode, "bias": draw(st.booleans())}
    assume(mode == "zeros" or moved[2] < net.smallest)
    net.add(conv(f"conv{index}", net.last, kernel=kernel, stride=moved[1], padding=moved[2], **options))
    net.paths = net.paths * net.channels // groups * kernel ** (1 if net.is_flat else 2) + 1
    is_depthwise = groups > 1 and groups == net.channels
    net.windowed, net.summed, net.channels = is_depthwise, False, out
    net.moved(*moved)


def _draw_gate(draw: st.DrawFn, net: _Growing, name: str) -> None:
    match draw(st.sampled_from(_GATES)):
        case "leaky":
            net.add(leaky(name, net.last, draw(st.sampled_from([0.5, -0.25, 2.0]))))
        case "prelu":
            net.add(op(name, "prelu", net.last, slopes=draw(st.sampled_from([1, net.channels]))))
        case kind:
            net.add(op(name, kind, net.last))
    net.paths += 1  # relu6 starts one at its constant.


def _draw_part(draw: st.DrawFn, net: _Growing, index: str) -> None:
    """Draws what stands behind a convolution and its gate."""
    match draw(st.sampled_from(_PARTS)):
        case "max" | "two max" as kind:
            if not net.windowed and not net.is_flat:
                for number in range(1 + (kind == "two max")):
                    _draw_pool(draw, net, f"pool{index}{number}", "max")
                net.windowed = True
        case "avg":
            _draw_pool(draw, net, f"pool{index}", "avg")
            net.summed = True
        case "constant":
            net.add(op(f"constant{index}", "constant", net.last, shape=(1, 1, 1)[net.is_flat :]))
            net.paths += 1
        case "block":
            _draw_block(draw, net, index)
        case "cat":
            inside = net.last
            net.add(conv1(f"branch{index}", inside, 1))
            net.add(op(f"cat{index}", "cat", *draw(st.permutations([inside, net.last]))))
            net.paths, net.channels = net.paths * net.channels + 1, net.channels + 1
        case "moved":
            _draw_moved(draw, net, index)
            net.summed = net.windowed
        case "order":
            start, step = draw(st.integers(0, net.channels - 1)), draw(st.integers(1, 2))
            net.add(op(f"slice{index}", "slice", net.last, start=start, stop=None, step=step))
            net.channels = len(range(start, net.channels, step))
            if net.channels % 2 == 0:
                net.add(op(f"shuffle{index}", "shuffle", net.last, groups=2))
        case "norm":
            net.add(op(f"behind{index}", "norm", net.last))
            net.paths += 1


def _draw_pool(draw: st.DrawFn, net: _Growing, name: str, kind: str) -> None:
    kernel = draw(st.integers(1, min(3, net.smallest)))
    moved = (kernel, draw(st.integers(1, 2)), draw(st.integers(0, kernel // 2)))
    net.add(max_pool(name, net.last, *moved) if kind == "max" else avg(name, net.last, *moved, draw(st.booleans())))
    net.moved(*moved)


def _draw_moved(draw: st.DrawFn, net: _Growing, index: str) -> None:
    """Draws padding, which reflects only what is there, or a larger image."""
    if draw(st.booleans()):
        net.add(op(f"nearest{index}", "nearest", net.last, factor=2))
        net.size = (net.size[0] if net.is_flat else 2 * net.size[0], 2 * net.size[1])
        return
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate"]))
    most = min(2, net.smallest - 1) if mode == "reflect" else 2
    sides = draw(st.tuples(*[st.integers(0, most)] * (2 if net.is_flat else 4)))
    net.add(op(f"pad{index}", "pad", net.last, sides=sides, mode=mode))
    down, across = (0 if net.is_flat else sum(sides[2:])), sum(sides[:2])
    net.size = (net.size[0] + down, net.size[1] + across)


def _draw_block(draw: st.DrawFn, net: _Growing, index: str) -> None:
    shortcut = net.last
    net.add(conv1(f"block{index}", shortcut, net.channels, bias=draw(st.booleans())))
    if draw(st.booleans()):
        net.add(op(f"inside{index}", "relu", net.last))
    net.add(op(f"add{index}", "add", net.last, shortcut))
    if draw(st.booleans()):
        net.add(op(f"after{index}", "relu", net.last))
    net.paths = net.paths * (net.channels + 1) + 1
