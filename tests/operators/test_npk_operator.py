"""NPKOperator multiplies and shows the Gram of npk_gram, and has its derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gram_problems import FLOATS
from hypothesis import given
from hypothesis import strategies as st
from strategies import dense, examples, generator, nets, random_bits, rows, rows_of, seeds
from tolerances import assert_as_good_as_torch, assert_close_in_float64, assert_same_bits

from gatedops import GateBits, NPKOperator, npk_gram, npk_matvec, reference

pytestmark = pytest.mark.usefixtures("one_thread")

BITS, Y_BITS = random_bits(40, dense(33, 64)), random_bits(27, dense(33, 64), seed=1)
X, Y = rows_of(40, 9), rows_of(27, 9, seed=1)
OP, RECTANGLE = NPKOperator(BITS, X), NPKOperator(BITS, X, Y_BITS, Y)


def truth_of(bits, x=None, y_bits=None, y=None, **options):
    x, y = (side if side is None or side.dtype == torch.uint8 else side.double() for side in (x, y))
    return reference.npk_gram(x, bits, y, y_bits, dtype=torch.float64, **options)


def vectors(count, columns=3, seed=7, dtype=torch.float64):
    return rows_of(count, columns, seed, dtype)


# --- products ---------------------------------------------------------------------------------------------------


def lengths_of(bits, x, normalize):
    """The lengths of the path features: an entry's rounding errors are relative to the lengths of its two features."""
    if normalize:
        return torch.ones(bits.n, dtype=torch.float64)
    return truth_of(bits, x).diagonal().clamp_min(0).sqrt()


@examples(25)
@given(
    rows, rows, nets, st.integers(1, 40), st.sampled_from([None, torch.uint8, *FLOATS]), seeds, st.booleans(),
    st.sampled_from(["none", 1 << 30]), st.sampled_from(FLOATS),
)  # fmt: skip
def test_products_are_those_of_the_gram(n, m, specs, d, x_dtype, seed, normalize, cache, dtype):
    bits, y_bits = random_bits(n, specs, seed), random_bits(m, specs, seed + 1)
    x, y = (None if x_dtype is None else rows_of(k, d, seed, x_dtype) for k in (n, m))
    lengths = lengths_of(bits, x, normalize)
    for other_bits, other in ((None, None), (y_bits, y)):
        op = NPKOperator(bits, x, other_bits, other, normalize=normalize, dtype=dtype, cache=cache)
        kernel = truth_of(bits, x, other_bits, other, normalize=normalize)
        others = lengths if other_bits is None else lengths_of(other_bits, other, normalize)
        assert op.shape == kernel.shape
        assert op.symmetric == (other_bits is None)
        for ours, gram, left, right in ((op, kernel, lengths, others), (op.T, kernel.mT, others, lengths)):
            v = vectors(gram.shape[1], dtype=dtype)
            off = (ours.product(v) - gram @ v.double()).abs()
            assert (off <= 16 * torch.finfo(dtype).eps * left[:, None] * (right @ v.double().abs())).all()


def test_the_result_has_the_dtype_and_the_kind_of_v():
    v = vectors(40)
    kernel = truth_of(BITS, X)
    for dtype in FLOATS:
        found = OP @ v.to(dtype)
        assert found.dtype == dtype
        assert_same_bits(OP @ v.to(dtype)[:, 0], (OP @ v.to(dtype)[:, :1])[:, 0])
        array = OP @ v.to(dtype).numpy()
        assert isinstance(array, np.ndarray)
        assert_same_bits(torch.from_numpy(array), found)
    # The rounding of entries remains, and that of v does not.
    assert (OP @ v - kernel @ v).abs().max() < 1e-6 * (kernel.abs() @ v.abs()).max()
    assert (OP @ v - npk_gram(X, BITS).double() @ v).abs().max() < 1e-6 * (kernel.abs() @ v.abs()).max()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_integers_are_multiplied_exactly(dtype):
    x = torch.randint(0, 4, (70, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    bits = random_bits(70, dense(7, 9), seed=3)
    v = torch.randint(-3, 4, (70, 2), generator=torch.Generator().manual_seed(1)).double()
    for given_x in (x, x.float(), x.double()):
        op = NPKOperator(bits, given_x, scale="none", dtype=dtype)
        assert_same_bits(op @ v, truth_of(bits, x, scale="none") @ v)


@pytest.mark.parametrize("scale", ["width", "none", [0.5, -2.0]])
@pytest.mark.parametrize("slope", [0.0, [0.1, -1.0]])
@pytest.mark.parametrize("normalize", [False, True])
def test_scales_and_slopes_are_those_of_the_gram(scale, slope, normalize):
    options = {"scale": scale, "slope": slope, "normalize": normalize}
    x = torch.randint(0, 256, (40, 9), generator=torch.Generator().manual_seed(0)).float() / 255
    for inputs in (None, X, x):
        op = NPKOperator(BITS, inputs, **options)
        low = npk_gram(inputs, BITS, **options)
        kernel = npk_gram(None if inputs is None else inputs.double(), BITS, **options, dtype=torch.float64)
        assert_as_good_as_torch(op.to_dense(), low, kernel)
        assert_as_good_as_torch(op.diag(), low.diagonal(), kernel.diagonal())
        v = vectors(40, dtype=torch.float32)
        assert_as_good_as_torch(op @ v, low @ v, kernel @ v.double())


def test_a_scale_of_zero_gives_zeros():
    for normalize in (False, True):
        op = NPKOperator(BITS, X, scale=[1.0, 0.0], normalize=normalize)
        assert not (op @ vectors(40)).any()
        assert not op.diag().any()


def test_deep_normalized_nets_stay_in_range():
    # One gate in some rows and all gates in others: no pass of float32 holds the products of both.
    layers = [torch.rand(30, 64, generator=generator(layer)) < 0.1 for layer in range(80)]
    for q in layers:
        q[15:] = True
        q[:, 0] = True
    bits = GateBits.pack(layers)
    x = rows_of(30, 6)
    kernel = npk_gram(x.double(), bits, normalize=True, dtype=torch.float64)
    for inputs, gram in ((x, kernel), (None, npk_gram(None, bits, normalize=True, dtype=torch.float64))):
        op = NPKOperator(bits, inputs, normalize=True)
        assert len(op._kept_parts) > 1
        low = npk_gram(inputs, bits, normalize=True)
        v = vectors(30, dtype=torch.float32)
        assert_as_good_as_torch(op @ v, low @ v, gram @ v.double())
        assert_as_good_as_torch(op.to_dense(), low, gram)
        assert_same_bits(op.diag(), torch.ones(30))
    grown = x.clone().requires_grad_()
    (NPKOperator(bits, grown, normalize=True) @ v).sum().backward()
    exact = x.double().requires_grad_()
    (npk_gram(exact, bits, normalize=True, dtype=torch.float64) @ v.double()).sum().backward()
    assert (grown.grad - exact.grad).abs().max() < 1e-5 * exact.grad.abs().max()


def test_rows_of_zeros_give_zeros_when_normalized():
    x = X.clone()
    x[3] = 0
    op = NPKOperator(BITS, x, normalize=True)
    assert op.diag()[3] == 0
    assert not (op @ vectors(40))[3].any()
    assert (op.diag()[4:] == 1).all()


# --- entries ----------------------------------------------------------------------------------------------------

INDICES = [3, -1, np.int64(2), torch.tensor(4), slice(None), slice(5, 20, 3), slice(None, None, -2), [1, 1, -1, 8], []]
INDICES += [torch.tensor([5, 2]), np.array([0, 7]), torch.arange(27) % 3 == 0, ([True] * 13 + [False] * 14)]


@pytest.mark.parametrize("cache", ["none", 1 << 30])
@pytest.mark.parametrize("cols", INDICES, ids=lambda index: str(index)[:24])
def test_indices_select_entries(cols, cache):
    op = NPKOperator(BITS, X, Y_BITS, Y, cache=cache)
    op @ vectors(27)
    kernel = truth_of(BITS, X, Y_BITS, Y)
    array = kernel.numpy()
    at = np.asarray(cols) if isinstance(cols, list) and cols else cols
    at = at.numpy() if isinstance(at, torch.Tensor) else at
    for some in (slice(None), slice(2, 30, 5)):
        expected = torch.from_numpy(np.ascontiguousarray(array[some][:, at]))
        found = op[some, cols]
        assert found.shape == expected.shape
        assert found.dtype == torch.float32
        assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-5)
        assert torch.allclose(op.T[cols, some], found.mT if found.dim() == 2 else found, atol=1e-5)
    assert torch.allclose(op[:, cols].double(), torch.from_numpy(np.ascontiguousarray(array[:, at])), atol=1e-5)


def test_two_ints_give_one_entry_and_one_index_gives_rows():
    kernel = OP.to_dense()
    assert OP[2, 5].shape == ()
    assert abs(OP[2, 5] - kernel[2, 5]) < 1e-5
    assert OP[2].shape == (40,)
    assert OP[[2, 3]].shape == (2, 40)


def test_columns_and_dense_matrix():
    kernel = npk_gram(X, BITS)
    assert_same_bits(OP.to_dense(), kernel)
    assert_same_bits(OP.to_dense(), OP.to_dense().mT)
    index = torch.tensor([7, 0, 39])
    assert torch.allclose(OP.columns(index), kernel[:, index], atol=1e-6)
    assert torch.allclose(OP.columns(slice(3, 9)), kernel[:, 3:9], atol=1e-6)
    assert torch.allclose(OP.columns([-1, 3]), kernel[:, [-1, 3]], atol=1e-6)
    assert torch.allclose(OP.columns(3), kernel[:, 3:4], atol=1e-6)


def test_the_transpose_of_a_transpose_is_the_operator():
    assert OP.T is OP
    v = vectors(27)
    assert_same_bits(RECTANGLE.T.T @ v, RECTANGLE @ v)
    assert RECTANGLE.T.shape == (27, 40)


def test_another_dtype_of_the_same_kernel():
    for x in (None, X, torch.randint(0, 256, (40, 9), generator=torch.Generator().manual_seed(0)).float() / 255):
        for normalize in (False, True):
            op = NPKOperator(BITS, x, normalize=normalize).with_dtype(torch.float64)
            assert op.to_dense().dtype == torch.float64
            inputs = None if x is None else x.double()
            if op.sigma.kind == "multiples":
                inputs = (255 * inputs).round() / 255
            kernel = truth_of(BITS, inputs, normalize=normalize)
            assert_close_in_float64(op.to_dense(), kernel)
            v = vectors(40)
            assert_close_in_float64(op @ v, kernel @ v)
            assert_same_bits(op.with_dtype(torch.float32) @ v, NPKOperator(BITS, x, normalize=normalize) @ v)
    assert OP.with_dtype(torch.float32) is OP


# --- derivatives ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("two", [False, True])
def test_products_are_differentiable_in_x_y_and_v(normalize, two):
    bits, y_bits = random_bits(4, dense(9, 5), density=0.7), random_bits(3, dense(9, 5), seed=1, density=0.7)

    def product(x, y, v):
        sides = (y_bits, y) if two else (None, None)
        return NPKOperator(bits, x, *sides, normalize=normalize, dtype=torch.float64) @ v

    x, y = rows_of(4, 2, dtype=torch.float64), rows_of(3, 2, 1, torch.float64)
    inputs = [t.requires_grad_() for t in (x, y, vectors(3 if two else 4, 2))]
    assert torch.autograd.gradcheck(product, inputs)
    assert torch.autograd.gradgradcheck(product, inputs)

    def transposed(x, y, v):
        return NPKOperator(bits, x, y_bits, y, normalize=normalize, dtype=torch.float64).T @ v

    assert torch.autograd.gradcheck(transposed, [x, y, vectors(4, 2).requires_grad_()])


def test_a_vector_has_derivatives_beside_fixed_inputs():
    bits = random_bits(7, dense(33, 64))
    for x in (X[:7], None, (X[:7].abs() * 100).round().clamp(0, 255)):
        op = NPKOperator(bits, x, dtype=torch.float64)
        v = vectors(7, 2).requires_grad_()
        assert torch.autograd.gradcheck(lambda v, op=op: op @ v, v)
        _, tangent = torch.func.jvp(lambda v, op=op: op @ v, (v.detach(),), (v.detach(),))
        assert_close_in_float64(tangent, op @ v.detach())


def test_recorded_products_are_those_of_npk_matvec():
    x, v = X.clone().requires_grad_(), vectors(40, dtype=torch.float32)
    assert_same_bits(NPKOperator(BITS, x) @ v, npk_matvec(x, BITS, v))
    assert not (NPKOperator(BITS, x).product(v)).requires_grad
    with torch.no_grad():
        assert not (NPKOperator(BITS, x) @ v).requires_grad


@pytest.mark.parametrize("normalize", [False, True])
def test_inputs_that_need_a_gradient_may_change(normalize):
    x = X.clone().requires_grad_()
    op = NPKOperator(BITS, x, normalize=normalize, cache=1 << 30)
    assert not op.stores
    v = vectors(40)
    op.product(v)
    with torch.no_grad():
        x += rows_of(40, 9, 5)
    fresh = NPKOperator(BITS, x, normalize=normalize)
    assert_same_bits(op.product(v), fresh.product(v))
    assert_same_bits(op.diag(), fresh.diag())
    assert_same_bits(op @ v, fresh @ v)


def test_scipy_multiplies_by_the_operator():
    linalg = pytest.importorskip("scipy.sparse.linalg")
    for op in (OP, RECTANGLE):
        found, kernel = op.as_scipy(), op.to_dense().double().numpy()
        v, u = vectors(op.shape[1]).numpy(), vectors(40).numpy()
        for ours, theirs in (
            (found @ v, kernel @ v),
            (found @ v[:, 0], kernel @ v[:, 0]),
            (found.T @ u, kernel.T @ u),
            (found.rmatvec(u[:, 0]), kernel.T @ u[:, 0]),
        ):
            assert ours.shape == theirs.shape
            assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()
        assert (found @ v[:, :0]).shape == (40, 0)
        with pytest.raises(TypeError, match=r"v: got complex128, needs real numbers: multiply v\.real"):
            found @ (v + 1j)
    largest = linalg.eigsh(OP.as_scipy(), k=1, return_eigenvectors=False)[0]
    assert abs(largest - torch.linalg.eigvalsh(OP.to_dense().double())[-1]) < 1e-5 * largest
