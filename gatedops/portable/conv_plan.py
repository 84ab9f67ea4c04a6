"""Plans how conv_gram runs a program: which registers it needs, as a whole or on their diagonal, and in which tiles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from gatedops.layout import words_used
from gatedops.ops.conv_program import Instruction, Op, decode
from gatedops.portable.conv_resample import moves_pixels
from gatedops.portable.workspace import WORKSPACE

# This many gates of each side are unpacked at a time. Both sides together take up to ten bytes for each of them, which
# is 40 MiB.
GATES = 4 << 20
# This many bytes of each side of an INPUT are copied at a time.
INPUTS = 8 << 20
# The registers and temporaries of a tile take at most this many bytes.
REGISTERS = WORKSPACE * 3 // 4
# On a CPU they take fewer bytes: small tensors stay in its caches, and the memory of large ones would be mapped anew
# each time.
CPU_REGISTERS = 16 << 20
# At most this many words of a mask are multiplied at a time.
_SPAN = 64
_WINDOWED = (Op.BOX, Op.SELECT, Op.POOL, Op.MASKED_BOX)


@dataclass(frozen=True)
class PlannedInstruction:
    """An instruction that is needed, and how it runs.

    If `diagonal`, it reads and writes R(p, p) only, as ``(H, W, a, b)`` for a tile of a x b pairs; else registers are
    ``(H, W, a, H', W', b)``. `drops` are the registers that no later instruction reads.
    """

    instruction: Instruction
    diagonal: bool
    drops: tuple[int, ...]

    @property
    def masked(self) -> bool:
        """Whether the instruction reads masks."""
        i = self.instruction
        return i.op in (Op.GATE, Op.SELECT, Op.MASKED_BOX) or (i.op == Op.BOX and i.first >= 0)

    @property
    def positions(self) -> int:
        """Number of pixels that the masks or the input have; a SELECT or MASKED_BOX has one for each place in each
        window."""
        i = self.instruction
        windows = i.kernel_h * i.kernel_w if i.op in (Op.SELECT, Op.MASKED_BOX) else 1
        return i.out_height * i.out_width * windows

    @property
    def words(self) -> int:
        """Number of words that hold the masks of a position."""
        return -(-self.instruction.channels // 32)

    @property
    def pitch(self) -> int:
        """Number of words from one position to the next."""
        return words_used(self.positions, self.instruction.channels) // self.positions

    @property
    def span(self) -> int:
        """Number of words of each position that are multiplied at a time; few if many positions are unpacked."""
        return min(self.words, max(1, min(_SPAN, GATES // (8 * 32 * self.at_once))))

    @property
    def at_once(self) -> int:
        """Number of positions of a row that are unpacked at once; a MASKED_BOX counts one place in all windows."""
        if self.by_pixel:
            return 1
        i = self.instruction
        return i.out_height * i.out_width if i.op == Op.MASKED_BOX else self.positions

    @property
    def by_pixel(self) -> bool:
        """Whether each pixel is counted with the same pixel of the other side only, not with all its pixels."""
        return self.diagonal and self.positions > 1

    @property
    def numbers(self) -> int:
        """How many numbers the written register has, for one pair."""
        return self.area(self.instruction.out_height * self.instruction.out_width)

    def area(self, pixels: int) -> int:
        """Returns how many numbers a kernel between this many pixels has, for one pair."""
        return pixels if self.diagonal else pixels * pixels


def tiled(i: Instruction) -> bool:
    """Whether the windows of a pool lie side by side in the image: no pixel is in two windows, and none is outside."""
    return all(
        before == 0
        and (dilation == 1 or kernel == 1)
        and (stride == kernel or out == 1)
        and (out - 1) * stride + kernel <= size
        for before, dilation, kernel, stride, out, size in (
            (i.pad_top, i.dilation_h, i.kernel_h, i.stride_h, i.out_height, i.height),
            (i.pad_left, i.dilation_w, i.kernel_w, i.stride_w, i.out_width, i.width),
        )
    )


def plan(program: Sequence[int], scalars: Sequence[float]) -> list[PlannedInstruction]:
    """Returns the steps of a valid program, without those that do not reach the last register."""
    instructions = [_plain(instruction) for instruction in decode(program)]
    needed, whole = {instructions[-1].dst}, set[int]()
    steps: list[PlannedInstruction] = []
    for i in reversed(instructions):
        if i.dst not in needed:
            continue
        sources = {i.src, i.src2} - {-1}
        one_pixel = i.out_height * i.out_width == 1
        mixes = i.op in (Op.POOL, Op.SELECT) or (i.op == Op.RESAMPLE and not moves_pixels(i, scalars))
        diagonal = not mixes and (one_pixel or i.dst not in whole)
        if not diagonal:
            whole |= sources
        steps.append(PlannedInstruction(i, diagonal, tuple(sources - needed)))
        needed |= sources
    return steps[::-1]


def _plain(i: Instruction) -> Instruction:
    """Resets the fields that this kind of instruction does not use, and says where the masks of y begin."""
    if i.op == Op.TRACE:
        i = i._replace(out_height=1, out_width=1)
    if i.op in (Op.INPUT, Op.CONSTANT):
        i = i._replace(src=-1, height=i.out_height, width=i.out_width)
    if i.op != Op.ADD:
        i = i._replace(src2=-1)
    if i.op not in (Op.BOX, Op.ADD):
        i = i._replace(constant=-1)
    if i.op not in _WINDOWED:
        i = i._replace(kernel_h=1, kernel_w=1, stride_h=1, stride_w=1, dilation_h=1, dilation_w=1)
        i = i._replace(pad_top=0, pad_left=0)
    if i.first_y < 0:
        i = i._replace(first_y=i.first)
    return i if i.op in (Op.BOX, Op.MASKED_BOX) else i._replace(circular=0)


# --- tiles ---------------------------------------------------------------------------------------------------


def edges_of(
    steps: list[PlannedInstruction], shape: tuple[int, int], symmetric: bool, itemsize: int, registers: int
) -> tuple[int, int]:
    """Returns the rows and columns of the largest tile whose registers and temporaries fit `registers` bytes."""
    return _sides(shape, symmetric, max(1, registers // _peak(steps, itemsize)), _most_rows(steps, itemsize))


def _sides(shape: tuple[int, int], symmetric: bool, pairs: int, most: int) -> tuple[int, int]:
    n, m = (max(1, size) for size in shape)
    if symmetric:
        side = _even(n, min(math.isqrt(pairs), most))
        return side, side
    columns = _even(m, min(most, max(math.isqrt(pairs), pairs // n)))
    return _even(n, min(most, pairs // columns)), columns


def _even(total: int, most: int) -> int:
    """Returns the size of about equally large blocks of at most `most`."""
    return -(-total // -(-total // most))


def _most_rows(steps: list[PlannedInstruction], itemsize: int) -> int:
    """Returns how many rows of one side have masks and inputs that fit the memory for them."""
    masks = [GATES // (32 * s.span * s.at_once) for s in steps if s.masked]
    inputs = [INPUTS // (itemsize * s.positions) for s in steps if s.instruction.op == Op.INPUT]
    return max(1, min(masks + inputs, default=WORKSPACE))


def _peak(steps: list[PlannedInstruction], itemsize: int) -> int:
    """Returns the most bytes of registers and temporaries that are alive at a time, for one pair."""
    alive: dict[int, int] = {}
    peak = 0
    for step in steps:
        peak = max(peak, sum(alive.values()) + _bytes(step, itemsize))
        alive[step.instruction.dst] = step.numbers * itemsize
        for register in step.drops:
            del alive[register]
    return peak


def _bytes(step: PlannedInstruction, itemsize: int) -> int:
    """Returns how many bytes the result and the temporaries of a step take, for one pair."""
    i = step.instruction
    h, w, out_h, out_w = i.height, i.width, i.out_height, i.out_width
    result = step.numbers * itemsize
    # Counts take four bytes each. If they are summed from parts, their sums take a number of the registers' dtype each.
    each = 0 if not step.masked else 4 + itemsize * (step.by_pixel or step.words > step.span)
    match i.op:
        case Op.BOX:
            return max(step.area(out_h * w) * itemsize + result, result + step.numbers * each)
        case Op.SELECT if tiled(i):
            pixels = step.positions
            return max(pixels**2 * (itemsize + each), (pixels**2 + pixels * out_h * out_w) * itemsize + result)
        case Op.POOL if tiled(i):
            return h * w * out_h * out_w * itemsize + result
        case Op.RESAMPLE if step.diagonal:
            return step.area(out_h * w) * itemsize + result
        case Op.POOL | Op.RESAMPLE:
            sizes = (h * w * out_h * w, h * w * out_h * out_w, out_h * w * out_h * out_w, (out_h * out_w) ** 2)
            # The sums and their product with the weights are alive together.
            return max(*map(sum, itertools.pairwise(sizes)), 2 * sizes[-1]) * itemsize
    return result + step.numbers * each
