"""The Triton gram family in the interpreter agrees with the C++ kernels."""

import pytest
import torch
from tolerances import assert_as_good_as_torch

from gatedops import GateBits
from gatedops.triton import gram

ops = torch.ops.gatedops
CASES = [(70, 45, (33, 300, 1)), (33, 33, (128, 128)), (1, 40, (257,)), (0, 3, (8,)), (3, 0, (8,))]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(gram, "TILE_M", 32)
    monkeypatch.setattr(gram, "TILE_N", 32)
    monkeypatch.setattr(gram, "WORKSPACE", 32 * 45 * 8)


class Problem:
    """Both sides of a Gram as the ops take them; y_words is None in the symmetric case."""

    def __init__(self, n, m, widths, symmetric):
        draw = torch.Generator().manual_seed(n + m)
        side = [GateBits.pack([torch.randn(rows, w, generator=draw) for w in widths]) for rows in (n, m)]
        self.words = side[0].words
        self.y_words = None if symmetric else side[1].words
        self.m = n if symmetric else m
        first = [layer.first_word for layer in side[0].layers]
        self.layout = (first, first, [layer.words for layer in side[0].layers])
        self.widths = list(widths)
        self.scale = [1.0 / w for w in widths]
        self.x = torch.randn(n, 9, generator=draw)
        self.y = None if symmetric else torch.randn(m, 9, generator=draw)
        self.pixels = torch.randint(0, 256, (n, 300), dtype=torch.uint8, generator=draw)
        self.y_pixels = None if symmetric else torch.randint(0, 256, (m, 300), dtype=torch.uint8, generator=draw)
        self.factor = torch.rand(n, dtype=torch.float64, generator=draw)
        self.y_factor = None if symmetric else torch.rand(m, dtype=torch.float64, generator=draw)
        self.v = torch.randn(self.m, 3, generator=draw)
        self.grad = torch.randn(n, self.m, generator=draw)


@pytest.fixture(params=[(*case, symmetric) for case in CASES for symmetric in (True, False)], ids=str)
def p(request):
    return Problem(*request.param)


def test_counts_of_every_measure_are_exact(p):
    for measure in ("both", "agree", "differ"):
        args = (p.words, p.y_words, *p.layout, p.widths, measure)
        assert torch.equal(gram.gate_overlap(*args), ops.gate_overlap(*args))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lambda_is_bit_for_bit_the_cpus(p, dtype):
    args = (None, p.words, None, p.y_words, None, None, *p.layout, p.scale, dtype)
    assert torch.equal(gram.npk_gram(*args), ops.npk_gram(*args))
    diag = (p.words, p.layout[0], p.layout[2], p.scale, dtype)
    assert torch.equal(gram.npk_diag(*diag), ops.npk_diag(*diag))


def test_uint8_sigma_is_exact_with_scaled_rows_and_columns(p):
    args = (p.pixels, p.words, p.y_pixels, p.y_words, p.factor, p.y_factor, *p.layout, p.scale, torch.float32)
    assert torch.equal(gram.npk_gram(*args), ops.npk_gram(*args))


def test_sigma_matvec_and_backward_are_as_close_as_the_cpus(p):
    def double(t):
        return None if t is None else t.double()

    exact = ops.npk_gram(double(p.x), p.words, double(p.y), p.y_words, None, None, *p.layout, p.scale, torch.float64)
    theirs = ops.npk_gram(p.x, p.words, p.y, p.y_words, None, None, *p.layout, p.scale, torch.float32)
    ours = gram.npk_gram(p.x, p.words, p.y, p.y_words, None, None, *p.layout, p.scale, torch.float32)
    assert_as_good_as_torch(ours, theirs, exact)
    matvec = (p.words, p.y, p.y_words, p.v, *p.layout, p.scale)
    assert_as_good_as_torch(gram.npk_matvec(p.x, *matvec), theirs @ p.v, exact @ p.v.double())
    right = p.x if p.y is None else p.y
    rest = (p.y_words, *p.layout, p.scale)
    assert_as_good_as_torch(
        gram.npk_gram_backward(p.grad, p.words, right, *rest),
        ops.npk_gram_backward(p.grad, p.words, right, *rest),
        ops.npk_gram_backward(p.grad.double(), p.words, right.double(), *rest),
    )
