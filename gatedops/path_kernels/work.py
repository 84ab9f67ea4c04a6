"""Estimates what a program costs before it runs."""

from __future__ import annotations

from dataclasses import dataclass

from gatedops.ops.conv_program import Instruction, Op
from gatedops.path_kernels.program_builder import Program

# These instructions read a whole kernel, because the pixels of both sides move independently.
_SINKS = (Op.POOL, Op.SELECT, Op.RESAMPLE)


@dataclass(frozen=True)
class Work:
    """The operations on numbers and on words of 32 gates that a program takes for one pair of inputs.

    Args:
        total: of all instructions.
        by_step: of the instructions that each step of the network needs.
    """

    total: float
    by_step: dict[str, float]

    def require_at_most(self, most: float | None) -> None:
        """Raises ValueError, which names the step that takes most, if the work is more than this (None: never)."""
        if most is not None and self.total > most:
            step, largest = max(self.by_step.items(), key=lambda pair: pair[1])
            raise ValueError(
                f"model: one pair of inputs takes about {self.total:.1e} operations, {largest / self.total:.0%} of them"
                f" for {step}, and max_work allows {most:.1e}; give smaller images or fewer channels, or a larger"
                " max_work (None lifts the limit)"
            )


def work_of(program: Program) -> Work:
    """The work of a program. A register of which only R(p, p) is needed takes one operation a pixel, else one for each
    pair of pixels."""
    whole: set[int] = set()
    by_step: dict[str, float] = {}
    for i, place in zip(reversed(program.instructions), reversed(program.places), strict=True):
        pixels = i.out_height * i.out_width
        is_whole = i.dst in whole and pixels > 1
        if is_whole or i.op in _SINKS:
            whole |= {i.src, i.src2}
        by_step[place] = by_step.get(place, 0.0) + _operations(i) * (float(pixels) if is_whole else 1.0) * pixels
    return Work(sum(by_step.values()), by_step)


def _operations(i: Instruction) -> float:
    """The operations for one pair of output pixels."""
    words, places = -(-i.channels // 32), i.kernel_h * i.kernel_w
    match i.op:
        case Op.INPUT:
            return i.channels
        case Op.BOX:
            return i.kernel_h + i.kernel_w + (words if i.first >= 0 else 0)
        case Op.GATE:
            return 1 + words
        case Op.MASKED_BOX:
            return places * (1 + words)
        case Op.SELECT:
            return places**2 * (1 + words)
        case Op.POOL:
            return 1 + i.height * i.width / (i.out_height * i.out_width) * places
        case Op.RESAMPLE:
            return 1 + (i.height * i.width / (i.out_height * i.out_width)) ** 2
    return 1
