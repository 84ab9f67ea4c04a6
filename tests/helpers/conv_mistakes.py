"""Calls of conv_gram with one mistake each, and the correct call."""

from __future__ import annotations

import torch
from conv_programs import chain

X, WORDS, _, _, CODE, SCALARS, DTYPE = chain((3, 3), 1).arguments(3)


def replaced(instruction: int, **fields: int) -> list[int]:
    """Returns the program with some fields of one instruction changed."""
    code = [*chain((3, 3), 1).code]
    code[instruction] = code[instruction]._replace(**fields)
    return [number for line in code for number in line]


# Each entry has what the error says, and arguments that do not fit.
ARGUMENTS = {
    "x of other rows": ("x: got shape", (X[:2], WORDS, None, None, CODE, SCALARS, DTYPE)),
    "x of another dtype": ("x: needs", (X.float(), WORDS, None, None, CODE, SCALARS, DTYPE)),
    "words of another dtype": ("words", (X, WORDS.long(), None, None, CODE, SCALARS, DTYPE)),
    "y without words": ("y: needs y_words", (X, WORDS, X, None, CODE, SCALARS, DTYPE)),
    "words without y": ("y: needs y_words", (X, WORDS, None, WORDS, CODE, SCALARS, DTYPE)),
    "y of other columns": ("y: needs as many", (X, WORDS, X[:, 1:], WORDS, CODE, SCALARS, DTYPE)),
    "other words": ("y_words: needs", (X, WORDS, X, WORDS[:, 8:], CODE, SCALARS, DTYPE)),
    "an integer dtype": ("dtype", (X, WORDS, None, None, CODE, SCALARS, torch.int32)),
}
# Each entry has a program that would read outside its memory, and what the error says.
CODES = {
    "empty": ([], "program: got 0 numbers"),
    "cut": (CODE[:-1], "program: got 95 numbers"),
    "unknown op": (replaced(1, op=10), "instruction 1 has op 10, needs 0 to 9"),
    "written twice": (replaced(1, dst=0), "instruction 1 has dst 0, needs 1 to 1"),
    "reads itself": (replaced(1, src=1), "instruction 1 has src 1, needs 0 to 0"),
    "another size": (replaced(1, height=4), "instruction 1 reads a register of another size"),
    "columns past the end": (replaced(0, channels=2), "instruction 0 reads columns outside x"),
    "words past the end": (replaced(1, channels=640), "instruction 1 reads words outside the rows"),
    "words before the start": (replaced(3, first=-1), "instruction 3 reads words outside the rows"),
    "no channels": (replaced(1, channels=0), "instruction 1 reads words outside the rows"),
    "no scale": (replaced(1, scale=99), "instruction 1 has scale 99, needs 0 to"),
    "no weights": (replaced(2, scale2=4), "instruction 2 needs 1 weights in scalars"),
    "a large kernel": (replaced(1, kernel_h=65), "instruction 1 has kernel 65, needs 1 to 64"),
    "a stride of 0": (replaced(1, stride_w=0), "instruction 1 has stride 0, needs 1 to 1024"),
    "words of y past the end": (replaced(1, first_y=10**9), "instruction 1 reads words outside the rows"),
    "words of y before the start": (replaced(1, first_y=-2), "instruction 1 reads words outside the rows"),
    "no masks of a masked box": (replaced(1, op=8, first=-1), "instruction 1 reads words outside the rows"),
    "too few masks of a masked box": (replaced(1, op=8), "instruction 1 reads words outside the rows"),
    "no matrices": (replaced(2, op=9), "instruction 2 needs 6 weights in scalars"),
    "half a matrix": (replaced(2, op=9, scale2=1), "instruction 2 needs 6 weights in scalars"),
    "padding that is too negative": (
        replaced(1, pad_top=-1025),
        "instruction 1 has padding -1025, needs -1024 to 1024",
    ),
    "a large image": (replaced(0, out_height=5000), "instruction 0 has output size 5000, needs 1 to 1024"),
    "many pixels left": (replaced(2, out_height=2), "the last register needs 1 x 1 pixels|another size"),
}
