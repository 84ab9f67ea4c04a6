"""The convolutional path kernel at sizes of some milliseconds to a second; `make bench` runs this."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from gatedops import GateBits
from gatedops.ops.conv_gram import conv_gram
from gatedops.ops.conv_program import Instruction, Op, encode

LAYERS, CHANNELS = 4, 64
MEAN, TRACE = Op.POOL, Op.TRACE


def chain(n: int, side: int, head: Op = MEAN, circular: int = 0, dtype: torch.dtype = torch.float32) -> tuple:
    """Arguments of the op: n images, side x side pixels, 3 x 3 convolutions with random gates, and a head."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, side * side, generator=generator).to(dtype)
    shape = (n, CHANNELS, side, side)
    bits = GateBits.pack([torch.rand(shape, generator=generator) > 0.5 for _ in range(LAYERS)])
    size = {"height": side, "width": side}
    code = [Instruction(Op.INPUT, 0, first=0, channels=1, **size, out_height=side, out_width=side)]
    window = {"kernel_h": 3, "kernel_w": 3, "pad_top": 1, "pad_left": 1, "circular": circular}
    for layer in bits.layers:
        masks = {"first": layer.first_word, "channels": CHANNELS, "out_height": side, "out_width": side}
        code.append(Instruction(Op.BOX, len(code), len(code) - 1, scale=1, **size, **masks, **window))
    whole = {"kernel_h": side, "kernel_w": side} if head == MEAN else {}
    code.append(Instruction(head, len(code), len(code) - 1, **size, **whole))
    return x, bits.words, None, None, encode(code), [1.0, 2.0**-9], dtype


CASES = {
    "8x8 mean": {"n": 64, "side": 8},  # 2,080 pairs
    "8x8 mean, float64": {"n": 64, "side": 8, "dtype": torch.float64},
    "8x8 mean, circular": {"n": 64, "side": 8, "circular": 1},
    "8x8 trace": {"n": 512, "side": 8, "head": TRACE},  # a flattening head needs one displacement of 225
    "16x16 mean": {"n": 32, "side": 16},  # 528 pairs
    "32x32 mean": {"n": 16, "side": 32},  # 136 pairs
}


@pytest.mark.parametrize("name", CASES)
def test_conv_gram(benchmark: BenchmarkFixture, name: str) -> None:
    benchmark(conv_gram, *chain(**CASES[name]))
