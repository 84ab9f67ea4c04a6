"""Packs images, tokens and masks in the memory layouts that networks produce.

Every instruction set gives the words of the reference. The sizes lie around vectors of 8 and 16 elements, words of 32
gates and the 64-bit boundary of a position.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packing_problems import DTYPES
from strategies import examples, pre_activations, seeds
from tolerances import assert_same_bits
from torch import Tensor
from torch_threads import threads

from gatedops import GateBits, backends, gate_overlap, npk_gram, pack_gates, reference

channels = st.sampled_from([1, 2, 3, 7, 8, 16, 31, 32, 33, 63, 64, 65, 96, 130])
sides = st.tuples(st.integers(1, 7), st.sampled_from([1, 2, 3, 5, 8, 16, 17]))


def crop(q: Tensor) -> Tensor:
    """Returns the middle of a larger image or sequence: neither channels nor positions fill their strides."""
    padded = torch.nn.functional.pad(q.float(), (1, 2) * (q.dim() - 2)).to(q.dtype)
    return padded[(..., *(slice(1, -2) for _ in range(q.dim() - 2)))]


def every_other_channel(q: Tensor) -> Tensor:
    return torch.stack([q, q.logical_not().to(q.dtype)], 2).flatten(1, 2)[:, ::2]


def channels_last(q: Tensor) -> Tensor:
    return q.contiguous(memory_format=torch.channels_last)


def channels_last_crop(q: Tensor) -> Tensor:
    return crop(q).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)[:, :, :, :]


def channels_last_slice(q: Tensor) -> Tensor:
    """Returns some of the channels of a wider channels-last image."""
    return channels_last(torch.cat([q, q], 1))[:, : q.shape[1]]


def width_first(q: Tensor) -> Tensor:
    return q.transpose(2, 3).contiguous().transpose(2, 3)


def batch_last(q: Tensor) -> Tensor:
    return q.movedim(0, -1).contiguous().movedim(-1, 0)


def one_image(q: Tensor) -> Tensor:
    return q[:1].expand(q.shape)


def constant_channels(q: Tensor) -> Tensor:
    return q[:, :1].expand(q.shape)


IMAGES = {
    "NCHW": lambda q: q,
    "NHWC": channels_last,
    "NCHW, cropped": crop,
    "NHWC, made of a crop": channels_last_crop,
    "NHWC, some channels": channels_last_slice,
    "every other channel": every_other_channel,
    "NCWH": width_first,
    "CHWN": batch_last,
    "one image repeated": one_image,
    "one channel repeated": constant_channels,
}
TOKENS = {
    "NTC": lambda q: q,
    "NCT": lambda q: q.mT.contiguous().mT,
    "TNC": lambda q: q.transpose(0, 1).contiguous().transpose(0, 1),
    "NTC, cropped": lambda q: torch.cat([q, q], 2)[:, :, 1 : q.shape[2] + 1],
    "heads side by side": lambda q: torch.stack([q, q], 2)[:, :, 1],
    "every other channel": lambda q: torch.stack([q, q.logical_not().to(q.dtype)], -1)[..., 0],
    "one token repeated": lambda q: q[:, :1].expand(q.shape),
}


def assert_packs_like_the_reference(q: Tensor) -> None:
    """Checks the words of every instruction set, and that q does not change."""
    before, expected = q.clone(), reference.pack_gates(q.contiguous()).words
    for isa in backends.available_isas():
        with backends.force_cpu(isa):
            assert_same_bits(pack_gates(q).words, expected)
    assert_same_bits(q.contiguous(), before.contiguous())


@examples(80)
@given(st.integers(0, 3), channels, sides, st.sampled_from(DTYPES), st.sampled_from(sorted(IMAGES)), seeds)
def test_images_of_every_layout_pack_per_pixel(n, c, side, dtype, layout, seed):
    q = IMAGES[layout](pre_activations(n, (c, *side), dtype, seed))
    assert q.shape == (n, c, *side)
    assert_packs_like_the_reference(q)


@examples(60)
@given(st.integers(0, 3), st.integers(1, 20), channels, st.sampled_from(DTYPES), st.sampled_from(sorted(TOKENS)), seeds)
def test_tokens_of_every_layout_pack_per_token(n, t, c, dtype, layout, seed):
    q = TOKENS[layout](pre_activations(n, (t, c), dtype, seed))
    assert q.shape == (n, t, c)
    assert_packs_like_the_reference(q)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_both_layouts_of_an_image_give_the_same_words(dtype, layout):
    q = pre_activations(5, (70, 9, 11), dtype, 3)
    assert_packs_like_the_reference(IMAGES[layout](q))
    assert_same_bits(pack_gates(channels_last(q)).words, pack_gates(q).words)


def test_the_gates_of_a_pixel_lie_side_by_side():
    q = torch.full((1, 65, 2, 3), -1.0)
    q[0, 64, 1, 2] = 1.0  # This is the 65th channel of the last pixel, position 5.
    words = pack_gates(q).words[0]
    assert words.nonzero().tolist() == [[5 * 4 + 2]]  # 65 channels take 4 words of 32 bits.
    assert words[22] == 1


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_width_of_a_dense_layer_packs_to_its_last_gate(dtype):
    for width in range(1, 101):
        q = torch.zeros(3, width).to(dtype)
        q[1, -1], q[2] = 1, 1
        words = pack_gates(q).words
        gates = ((words.unsqueeze(-1) >> torch.arange(32)) & 1).flatten(1)
        assert gates[0].sum() == 0
        assert gates[1].nonzero().tolist() == [[width - 1]]
        assert gates[2].bool().equal(torch.arange(gates.shape[1]) < width)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NCWH"])
def test_threads_do_not_change_a_word(layout):
    q = IMAGES[layout](pre_activations(37, (70, 9, 11), torch.float32, 0))
    expected = reference.pack_gates(q).words
    for count in (1, 2, 3):
        with threads(count):
            assert_same_bits(pack_gates(q).words, expected)


@pytest.mark.usefixtures("isa")
def test_memory_outside_a_view_is_not_looked_at():
    # NaN and infinity lie around the view: words must depend on the view alone, at every offset and width.
    for offset in range(18):
        for width in (1, 15, 33):
            frame = torch.full((4, offset + width + 20), float("inf"))
            view = frame[1:3, offset : offset + width]
            view.copy_(-torch.ones(2, width))
            assert pack_gates(view).words.count_nonzero() == 0


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_selection_of_packed_images_is_used_without_copying(layout):
    first, second = (IMAGES[layout](pre_activations(9, (33, 4, 5), torch.float32, seed)) for seed in (0, 1))
    bits = GateBits.pack([first, torch.randn(9, 70), second], names=["first", "dense", "second"])
    part = bits.select_layers(["second", "first"])
    assert part.words.data_ptr() == bits.words.data_ptr()
    alone = GateBits.pack([second, first])
    assert_same_bits(gate_overlap(part), gate_overlap(alone))
    assert_same_bits(npk_gram(None, part), npk_gram(None, alone))
