"""NPKLinearOperator is npk_gram: in values and derivatives, in slices, and as an operator for the solvers."""

from __future__ import annotations

import pytest
import torch
from tolerances import FLOAT32_KERNEL, assert_close_in_float64, assert_same_bits
from torch.autograd import gradcheck

import gatedops
from gatedops import GateBits, NPKOperator, npk_gram
from gatedops.operators import KernelOperator, as_operator

gpytorch = pytest.importorskip("gatedops.gpytorch")
linear_operator = pytest.importorskip("linear_operator")

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = {
    "plain": {},
    "normalized": {"normalize": True},
    "slope": {"slope": [0.5, 0.25], "scale": [2.0, 0.5]},
}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def side(n, seed, dtype=torch.float64):
    return drawn(n, 6, seed=seed).to(dtype), GateBits.pack([drawn(n, 40, seed=seed + 1), drawn(n, 33, seed=seed + 2)])


def gram_of(one, other, *, scale="width", slope=(0.0, 0.0), normalize=False):
    """The kernel from unpacked gates in float64."""

    def plain(one, other):
        gram = one[0].double() @ other[0].double().mT
        for layer, (g, h) in enumerate(zip(one[1].unpack(), other[1].unpack(), strict=True)):
            g, h = (torch.where(gates, 1.0, slope[layer]).double() for gates in (g, h))
            gram = gram * (g @ h.mT) * (1 / g.shape[1] if scale == "width" else scale[layer])
        return gram

    gram = plain(one, other)
    if normalize:
        gram = gram / torch.outer(plain(one, one).diagonal(), plain(other, other).diagonal()).sqrt()
    return gram


def assert_close(ours, truth):
    if ours.dtype == torch.float64:
        return assert_close_in_float64(ours, truth)
    assert (ours.dtype, ours.shape) == (torch.float32, truth.shape)
    assert (ours.double() - truth).abs().max() <= FLOAT32_KERNEL * truth.abs().max()
    return None


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_products_and_entries(options, symmetric, dtype):
    left = side(9, 1, dtype)
    right = left if symmetric else side(9, 4, dtype)
    reference = gram_of(left, right, **options)
    own = NPKOperator(left[1], left[0], *((None, None) if symmetric else right[::-1]), dtype=dtype, **options)
    op = gpytorch.NPKLinearOperator.of(own)
    assert (op.dtype, op.device, tuple(op.shape)) == (dtype, torch.device("cpu"), (9, 9))
    assert_close(op.to_dense(), reference)
    assert_close(op.diagonal(), reference.diagonal())
    v = drawn(9, 3).to(dtype)
    assert_close(op @ v, reference @ v.double())
    assert_close(op.mT @ v, reference.mT @ v.double())
    rows, cols = torch.tensor([8, 0, 0, 3]), torch.tensor([1, 1, 0, 7])
    assert_close(op[rows, cols], reference[rows, cols])
    for index in [(slice(2, None, 3), slice(4)), (slice(1, 5), slice(1, 5)), (rows, slice(None)), (slice(3), cols)]:
        part = op[index]
        assert isinstance(part, gpytorch.NPKLinearOperator)
        assert_close(part.to_dense(), reference[index])
        assert_close(part @ v[: part.shape[1]], reference[index] @ v[: part.shape[1]].double())


def test_sides_whose_layers_lie_elsewhere_in_the_words():
    left, (y, _) = side(4, 1), side(5, 4)
    wider = GateBits.pack([drawn(5, width, seed=width) for width in (70, 40, 33)])
    right = (y, wider.select_layers([1, 2]))
    own = NPKOperator(left[1], left[0], right[1], right[0], dtype=torch.float64)
    op, reference = gpytorch.NPKLinearOperator.of(own), gram_of(left, right)
    assert_close_in_float64(op.clone().to_dense(), reference)
    assert_close_in_float64(op.clone().mT.to_dense(), reference.mT)
    assert_close_in_float64(op.clone() @ drawn(5, 2), reference @ drawn(5, 2))
    assert_close_in_float64(op[1:, 2:].to_dense(), reference[1:, 2:])


def test_pairs_beyond_one_block(monkeypatch):
    monkeypatch.setattr("gatedops.gpytorch.pairs._EDGE", 2)
    left, right = side(9, 1), side(9, 4)
    op = gpytorch.NPKLinearOperator.of(NPKOperator(left[1], left[0], right[1], right[0], dtype=torch.float64))
    assert_close_in_float64(op.diagonal(), gram_of(left, right).diagonal())
    places = torch.arange(9)
    assert_close_in_float64(op[places.expand(9, 9), places[:, None]], gram_of(left, right).mT)
    assert op[places[:0], places[:0]].shape == (0,)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_derivatives_in_the_inputs(options):
    (x, bits), (y, y_bits) = side(3, 1), side(2, 4)

    def made(x, y=None):
        own = NPKOperator(bits, x, *((None, None) if y is None else (y_bits, y)), dtype=torch.float64, **options)
        return gpytorch.NPKLinearOperator.of(own)

    x, y, v = x.requires_grad_(), y.requires_grad_(), drawn(2, 1).requires_grad_()
    assert gradcheck(lambda x, y: made(x, y).to_dense(), (x, y))
    assert gradcheck(lambda x, y, v: made(x, y) @ v, (x, y, v))
    assert gradcheck(lambda x, y: made(x, y)[torch.tensor([0, 2]), torch.tensor([1, 1])], (x, y))
    assert gradcheck(lambda x, y: made(x, y)[1:, torch.tensor([1, 0])].to_dense(), (x, y))
    assert gradcheck(lambda x: made(x).to_dense(), (x,))
    assert gradcheck(lambda x: made(x) @ drawn(3, 2), (x,))
    if not options.get("normalize"):
        assert gradcheck(lambda x: made(x).diagonal(), (x,))


def test_the_dtype_changes_and_the_gates_do_not():
    x, bits = side(5, 1, torch.float32)
    op = gpytorch.NPKLinearOperator.of(NPKOperator(bits, x))
    for wide in (op.double(), op.to(torch.float64), op.to("cpu", torch.float64)):
        assert wide.dtype == torch.float64
        assert_same_bits(wide.representation()[1], bits.words)
        assert_close_in_float64(wide.to_dense(), gram_of((x, bits), (x, bits)))
    moved = op.to("meta")
    assert {held.device.type for held in moved.representation()} == {"meta"}


def test_an_operator_of_this_package_comes_back_as_it_was():
    x, bits = side(5, 1)
    own = NPKOperator(bits, x, dtype=torch.float64)
    op = gpytorch.NPKLinearOperator.of(own)
    assert op.kernel_operator is own
    assert as_operator(op) is own
    part = as_operator(op[1:4, 1:4])
    assert isinstance(part, NPKOperator)
    assert part.symmetric
    assert_close_in_float64(part.to_dense(), gram_of((x, bits), (x, bits))[1:4, 1:4])
    soft = NPKOperator.soft([drawn(5, 3).abs().float()])
    assert as_operator(gpytorch.NPKLinearOperator.of(soft)) is soft


def test_kernel_ridge_takes_it():
    x, bits = side(30, 1)
    op = gpytorch.NPKLinearOperator.of(NPKOperator(bits, x, dtype=torch.float64))
    targets, K = drawn(30, 2), gram_of((x, bits), (x, bits))
    shift = 0.1 * K.diagonal().mean()
    expected = torch.linalg.solve(K + shift * torch.eye(30).double(), targets - targets.mean(0))
    for method in ("cholesky", "cg"):
        fit = gatedops.solve.kernel_ridge(op, targets, ridge=0.1, method=method, tol=1e-10)
        torch.testing.assert_close(fit.alpha, expected, rtol=1e-7, atol=1e-9)


def test_an_opaque_operator_stays_in_tiles_and_changes_its_dtype():
    gates = [drawn(7, 5, seed=1).abs().float(), drawn(7, 4, seed=2).abs().float()]
    own = NPKOperator.soft(gates, drawn(7, 3).float())
    op = gpytorch.NPKLinearOperator.of(own)
    assert isinstance(op, gpytorch.OpaqueLinearOperator)
    reference = own.to_dense().double()
    assert_same_bits(op.to_dense(), own.to_dense())
    assert_close(op @ drawn(7, 2).float(), reference @ drawn(7, 2).float().double())
    rows = torch.tensor([0, 6])
    assert_close(op[rows, rows.flip(0)], reference[rows, rows.flip(0)])
    assert_close(op[2:5, :3].to_dense(), reference[2:5, :3])
    assert op.to("cpu", torch.float64).dtype == torch.float64
    assert op.double().kernel_operator.dtype == torch.float64
    with pytest.raises(ValueError, match="device: got meta, needs cpu: make the operator of inputs on meta"):
        op.to("meta")


def test_batches_give_one_operator_each():
    x, bits = side(6, 1)
    op = gpytorch.NPKLinearOperator(x.view(2, 3, 6), bits.words.view(2, 3, -1), layers=bits.layers)
    whole = gram_of((x, bits), (x, bits))
    assert_close_in_float64(op.to_dense(), torch.stack([whole[:3, :3], whole[3:, 3:]]))
    assert isinstance(op[1].kernel_operator, KernelOperator)
    with pytest.raises(ValueError, match=r"K: is a batch of matrices \(2, 3, 3\), needs one matrix: select it, K\[0\]"):
        as_operator(op)
    none = gpytorch.NPKLinearOperator(x.view(2, 3, 6)[:0], bits.words.view(2, 3, -1)[:0], layers=bits.layers)
    assert none.to_dense().shape == (0, 3, 3)
    assert (none @ torch.zeros(0, 3, 2).double()).shape == (0, 3, 2)


def test_other_things_are_refused():
    with pytest.raises(TypeError, match="operator: got Tensor, needs a KernelOperator"):
        gpytorch.NPKLinearOperator.of(torch.eye(3))
    x, bits = side(4, 1, torch.float32)
    half = gpytorch.NPKLinearOperator.of(NPKOperator(bits, x)).half()
    with pytest.raises(TypeError, match=r"dtype: got torch\.float16, needs torch\.float32 or torch\.float64"):
        half.to_dense()


def test_the_arguments_of_an_operator_make_it_again():
    (x, bits), (y, y_bits) = side(4, 1), side(3, 4)
    own = NPKOperator(bits, x, y_bits, y, dtype=torch.float64, **OPTIONS["slope"], cache="none")
    again = NPKOperator(**own.arguments())
    assert_same_bits(again.to_dense(), own.to_dense())
    assert_same_bits(NPKOperator(**own.T.arguments()).to_dense(), own.T.to_dense())
    assert_close_in_float64(own.to_dense(), npk_gram(x, bits, y, y_bits, dtype=torch.float64, **OPTIONS["slope"]))
