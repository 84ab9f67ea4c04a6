"""Few variants of each Triton kernel are compiled, because each takes a good part of a second when it is first
needed."""

from __future__ import annotations

import pytest
import torch
from strategies import LAYOUTS, dense, pre_activations, random_bits

pytest.importorskip("triton")

from variants import recorded

from gatedops.triton import gated_linear, gated_linear_backward, gated_linear_gate, gates, gram
from gatedops.triton import gated_linear_tuning as tuning

PACKED = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.bool]
SHAPES = [(300,), (1024,), (1,), (6, 70), (40, 5, 3), (64, 8, 8)]


def as_op_takes_it(q):
    """Returns (n, channels, ...) as (n, positions, channels)."""
    return q.unsqueeze(1) if q.dim() == 2 else q.flatten(2).transpose(1, 2)


def test_activations_of_any_shape_and_strides_take_two_variants_for_each_dtype(monkeypatch):
    found = recorded(monkeypatch)
    for dtype in PACKED:
        for shape in SHAPES:
            for n in (1, 9):
                q = pre_activations(n, shape, dtype, seed=1)
                layouts = [name for name in LAYOUTS if len(shape) > 1 or name != "channels last"]
                for activations in (as_op_takes_it(LAYOUTS[name](q)) for name in layouts):
                    words = gates.pack_gates(activations)
                    if dtype != torch.bool:
                        gated_linear_gate.gate_relu(activations)
                        gated_linear_gate.gate_select(activations, words, 0)
    counted = {name: len(variants) for name, variants in found.items()}
    assert counted == {"pack_kernel": 2 * 5, "relu_kernel": 2 * 4, "select_kernel": 2 * 4}


def test_grams_of_any_size_take_eight_variants_for_each_dtype(monkeypatch):
    found = recorded(monkeypatch)
    for n, m in ((257, 130), (1, 300), (130, 1), (256, 256), (64, 48)):
        for specs in (dense(257, 64, 1, 1000), dense(128)):
            a, b = random_bits(n, specs), random_bits(m, specs, 1)
            first, count = [layer.first_word for layer in a.layers], [layer.words for layer in a.layers]
            layout, scale = (first, first, count), [1.0] * len(count)
            for dtype in (torch.float32, torch.float64):
                for y_words in (None, b.words):
                    for x in (None, torch.zeros(n, 5)):
                        y = None if x is None or y_words is None else torch.zeros(m, 5)
                        gram.npk_gram(x, a.words, y, y_words, None, None, *layout, scale, dtype)
                    gram.gate_overlap(a.words, y_words, *layout, list(a.widths), "both")
            gram.npk_diag(a.words, first, count, scale, torch.float32)
    counted = {name: len(variants) for name, variants in found.items()}
    assert counted == {"gram_kernel": 8 * 2, "overlap_kernel": 4, "row_counts_kernel": 1}


@pytest.mark.parametrize("hopper", [False, True])
def test_layers_of_any_size_take_a_few_variants(hopper, monkeypatch):
    """Rows may be aligned or not, those of the result multiples of 16, 1 or neither, and read in the best way or
    another."""
    if hopper:
        monkeypatch.setattr(tuning, "capability", lambda device: (9, 0))
    found = recorded(monkeypatch)
    for inputs in (1, 8, 20, 64, 784):
        for width in (1, 33, 96, 500, 1024):
            for rows in (1, 16, 130):
                x, weight = torch.zeros(rows, inputs).bfloat16(), torch.zeros(width, inputs).bfloat16()
                for given in (x, x.T.contiguous().T):
                    y, words = gated_linear.gated_linear_relu(given, weight, None)
                    for grad in (y, y[:1].expand(y.shape)):
                        gated_linear_backward.gated_linear_backward(grad, given, weight, words, 0, True)
    counted = {name: len(variants) for name, variants in found.items()}
    assert counted["layer_kernel"] <= 6
    assert counted["input_gradient_kernel"] <= 6
    assert counted["weight_gradient_kernel"] <= 6
    assert counted["bias_gradient_kernel"] <= 2
