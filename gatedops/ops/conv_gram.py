"""The Gram of a program of the conv_gram family."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gatedops import reference_conv


def conv_gram(
    x: Tensor,
    words: Tensor,
    y: Tensor | None,
    y_words: Tensor | None,
    program: Sequence[int],
    scalars: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """What a program computes for all pairs of inputs ``(n, m)``, computed in `dtype`."""
    return reference_conv.conv_gram(x, words, y, y_words, program, scalars, dtype)
