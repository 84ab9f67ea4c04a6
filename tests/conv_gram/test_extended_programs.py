"""conv_gram runs masked boxes, resampling, negative padding and masks of their own for y, in C++, by torch's operations
and in the plain reference (docs/math.md, section 13)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from conv_programs import Programs, linear, nearest, same, window
from strategies import generator
from tolerances import assert_close_in_float64, assert_same_bits
from torch import Tensor
from torch.nn.functional import pad

from gatedops import reference
from gatedops.ops.conv_gram import conv_gram
from gatedops.ops.conv_program import Op, encode
from gatedops.portable.conv_gram import conv_gram as portable_conv
from gatedops.reference.conv_gram import conv_gram as reference_conv

FORMS = {"op": conv_gram, "portable": portable_conv, "reference": reference_conv}
# For each instruction that reads masks: how many positions they have, and how to append it to a register of 4 x 5
# pixels.
MASKED = {
    "GATE": (20, lambda p, src, masks: p.emit(Op.GATE, (4, 5), src, **masks)),
    "BOX": (20, lambda p, src, masks: p.box(src, 0, same((3, 3)) | masks, constant=0.5)),
    "SELECT": (6 * 4, lambda p, src, masks: p.emit(Op.SELECT, (2, 3), src, **window((2, 2), (2, 2), (0, 1)), **masks)),
    "MASKED_BOX": (20 * 6, lambda p, src, masks: p.masked_box(src, masks, window((3, 2), pad=(1, 0)), (4, 5))),
}
# For each instruction that has windows: how to append it to a register, with padding and masks for 2 x 3 output pixels.
WINDOWED = {
    "BOX": lambda p, src, pads: p.box(src, 7, window((2, 2), pad=pads), (2, 3)),
    "MASKED_BOX": lambda p, src, pads: p.masked_box(src, p.masked(24, 7), window((2, 2), pad=pads), (2, 3)),
    "SELECT": lambda p, src, pads: p.emit(Op.SELECT, (2, 3), src, **window((2, 2), pad=pads), **p.masked(24, 7)),
    "POOL": lambda p, src, pads: p.emit(Op.POOL, (2, 3), src, **window((2, 2), pad=pads)),
}


@pytest.fixture(params=FORMS)
def run(request: pytest.FixtureRequest) -> Any:
    """Gives every form of the op."""
    return FORMS[request.param]


# --- the features of bundles of paths -----------------------------------------------------------------------------


def random_gates(channels: int, seed: int) -> Tensor:
    """Returns random gates of 5 inputs, (5, channels, 3, 4)."""
    return (torch.rand(5, channels, 3, 4, generator=generator(seed)) < 0.5).double()


def moved(images: Tensor, offset: int) -> Tensor:
    """Returns images (..., H, W) in which each pixel is that at an offset in the 3 x 3 window around it."""
    (i, j), (rows, columns) = divmod(offset, 3), images.shape[-2:]
    return pad(images, (1, 1, 1, 1))[..., i : i + rows, j : j + columns]


def words_of(masks: Tensor) -> Tensor:
    """Returns the words of masks (n, channels, ..., H, W), whose places in windows come before H and W."""
    return reference.words_of_layer(masks.flatten(2, -3).movedim(2, -1).flatten(2).mT.bool())


def test_a_depthwise_layer(run):
    """The net is a convolution and its gate, a depthwise convolution and its gate, and a mean. A bundle stays in one
    channel. The masks are the products of both gates."""
    p = Programs()
    register = p.box(p.input((3, 4), 2), 0, same((3, 3)))
    p.mean(p.masked_box(register, p.masked(12 * 9, 3), same((3, 3)), (3, 4)))
    x, first, second = p.rows(5, 0)[0], random_gates(3, 1), random_gates(3, 2)
    images = x.unflatten(1, (2, 3, 4))
    masks = torch.stack([second * moved(first, u) for u in range(9)], 2)
    bundles = itertools.product(range(2), range(9), range(3), range(9))
    features = [second[:, c] * moved(first[:, c] * moved(images[:, i], d), u) for i, d, c, u in bundles]
    listed = torch.stack(features, 1).mean((2, 3))
    ours = run(x, words_of(masks), None, None, encode(p.code), p.scalars, torch.float64)
    assert_close_in_float64(ours, listed @ listed.T)


def signed(out: int, size: int) -> list[list[float]]:
    """Returns a matrix with weights of both signs."""
    return [[(-0.5) ** (pixel * source) for source in range(size)] for pixel in range(out)]


@pytest.mark.parametrize("matrix", [nearest, linear, signed])
@pytest.mark.parametrize("size", [(3, 4), (6, 7), (2, 2)], ids=str)
def test_resampled_images(run, matrix, size):
    """The net is a convolution and its gate, a resampling, a convolution of 1 x 3, and the sum of all pixels, at which
    there are the same weights for all pixels or others for each."""
    x, gates = torch.rand(5, 2 * 12, generator=generator(0), dtype=torch.float64), random_gates(33, 1)
    rows, columns = matrix(size[0], 3), matrix(size[1], 4)
    images = x.unflatten(1, (2, 3, 4))
    features = [gates * moved(images[:, i], d)[:, None] for i, d in itertools.product(range(2), range(9))]
    left, right = (torch.tensor(weights, dtype=torch.float64) for weights in (rows, columns))
    resampled = left @ torch.cat(features, 1) @ right.mT
    convolved = torch.cat([moved(resampled, u) for u in (3, 4, 5)], 1)
    for head, listed in (("sum", convolved.sum((2, 3))), ("trace", convolved.flatten(1))):
        p = Programs()
        register = p.resample(p.box(p.input((3, 4), 2), 33, same((3, 3))), rows, columns)
        register = p.box(register, 0, same((1, 3)))
        p.trace(register) if head == "trace" else p.emit(Op.POOL, (1, 1), register, **window(size))
        ours = run(x, words_of(gates[:, :, None]), None, None, encode(p.code), p.scalars, torch.float64)
        assert_close_in_float64(ours, listed @ listed.T)


# --- masks of their own for y -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MASKED)
def test_the_rows_of_y_have_masks_of_their_own(run, name):
    positions, append = MASKED[name]
    p = Programs()
    masks = p.masked(positions, 33, own_y=True)
    p.trace(append(p, p.input((4, 5), 2), masks))
    x, words, y, y_words, _, scalars, dtype = p.arguments(5, 4)
    ours = run(x, words, y, y_words, encode(p.code), scalars, dtype)
    exchanged = torch.cat([y_words[:, masks["first_y"] :], y_words[:, : masks["first_y"]]], 1)
    code = encode(i._replace(first_y=-1) for i in p.code)
    assert_same_bits(ours, run(x, words, y, exchanged, code, scalars, dtype))
    assert not torch.equal(ours, run(x, words, y, y_words, code, scalars, dtype))


@pytest.mark.parametrize("name", MASKED)
def test_the_sum_over_both_orders_of_masks_is_symmetric(run, name):
    positions, append = MASKED[name]
    p = Programs()
    source, masks = p.input((4, 5), 2), p.masked(positions, 33, own_y=True)
    one = append(p, source, masks)
    other = append(p, source, masks | {"first": masks["first_y"], "first_y": masks["first"]})
    p.mean(p.emit(Op.ADD, p.size(one), one, src2=other, scale2=p.number(1.0)))
    (x, words), rest = p.rows(5, 0), (encode(p.code), p.scalars, torch.float64)
    ours = run(x, words, None, None, *rest)
    assert_same_bits(ours, ours.T)
    assert_close_in_float64(ours, run(x, words, x, words, *rest))


# --- negative padding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WINDOWED)
def test_negative_padding_cuts_images(run, name):
    whole, cut = Programs(), Programs()
    for p, size, pads in ((whole, (5, 8), (-1, -3)), (cut, (3, 4), (0, 0))):
        p.mean(WINDOWED[name](p, p.input(size, 2), pads))
    x, words, y, y_words, *rest = whole.arguments(5, 4)
    parts = [side.unflatten(1, (2, 5, 8))[:, :, 1:4, 3:7].flatten(1) for side in (x, y)]
    expected = run(parts[0], words, parts[1], y_words, *cut.arguments(1)[4:])
    assert_close_in_float64(run(x, words, y, y_words, *rest), expected)
