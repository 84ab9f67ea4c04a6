"""as_operator takes matrices, and operators of scipy and of linear_operator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, rows_of, seeds
from tolerances import assert_close_in_float64, assert_same_bits

from gatedops import NPKOperator, solve
from gatedops.operators import KernelOperator, as_operator
from gatedops.operators import adapters as module

pytestmark = pytest.mark.usefixtures("one_thread")


class LazyMatrix:
    """What an operator of the library linear_operator offers, of which this takes vectors of its own dtype alone."""

    def __init__(self, matrix):
        self._matrix, self.shape = matrix, matrix.shape
        self.dtype, self.device = matrix.dtype, matrix.device

    def matmul(self, other):
        return self._matrix @ other

    def transpose(self, first, second):
        return LazyMatrix(self._matrix.transpose(first, second))

    def diagonal(self):
        return self._matrix.diagonal()

    def to_dense(self):
        return self._matrix


def library_of(matrix):
    return pytest.importorskip("linear_operator").operators.DenseLinearOperator(matrix)


def scipy_of(matrix):
    return pytest.importorskip("scipy.sparse.linalg").aslinearoperator(matrix.numpy())


def sparse_of(matrix):
    return pytest.importorskip("scipy.sparse.linalg").aslinearoperator(
        pytest.importorskip("scipy.sparse").csr_matrix(matrix.numpy())
    )


FORMS = {
    "tensor": lambda m: m,
    "array": lambda m: m.numpy(),
    "scipy": scipy_of,
    "sparse": sparse_of,
    "lazy": LazyMatrix,
    "library": library_of,
}


@examples(20)
@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from(list(FORMS)), st.booleans(), st.booleans(), seeds)
def test_operators_are_the_matrix(n, m, form, symmetric, single, seed):
    matrix = rows_of(n, n if symmetric else m, seed, torch.float64)
    matrix = (matrix + matrix.T if symmetric else matrix).to(torch.float32 if single else torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_UNITS", 4)
        patch.setattr(module, "_ROWS", 4)
        op = as_operator(FORMS[form](matrix))
        assert isinstance(op, KernelOperator)
        assert op.dtype == matrix.dtype
        assert op.symmetric == (symmetric or matrix.shape == (1, 1))
        for ours, whole in ((op, matrix), (op.T, matrix.mT)):
            v = rows_of(whole.shape[1], 3, 1, torch.float64)
            if form in ("lazy", "library") and single:  # The products of this library are those of its dtype.
                assert (ours @ v - whole.double() @ v).abs().max() < 1e-5 * (whole.abs().double() @ v.abs()).max()
            else:
                assert_close_in_float64(ours @ v, whole.double() @ v)
            assert (ours @ v.float()).dtype == torch.float32
            assert_same_bits(ours.to_dense(), whole.contiguous())
            index = torch.tensor([0, -1, 0])
            assert_same_bits(ours.block(index, slice(None, None, 2)), whole[index][:, ::2].contiguous())
            assert_same_bits(ours.columns(index), whole[:, index].contiguous())
        if op.symmetric:
            assert_same_bits(op.diag(), matrix.diagonal().contiguous())
            assert op.T is op


def test_operators_of_the_library_solve_like_their_matrices():
    """A preconditioner reads columns of K, and conjugate gradients multiply by K."""
    library = pytest.importorskip("linear_operator").operators
    n, targets = 40, rows_of(40, 2, 3, torch.float64)
    root, smooth = rows_of(n, n, 1, torch.float64), 0.5 ** torch.arange(n, dtype=torch.float64)
    dense = library.DenseLinearOperator(root @ root.mT)
    forms = {
        "DenseLinearOperator": dense,
        "ToeplitzLinearOperator": library.ToeplitzLinearOperator(smooth),
        "AddedDiagLinearOperator": dense.add_jitter(0.5),
        "ConstantMulLinearOperator": dense * 2.0,
        "SumLinearOperator": dense + library.ToeplitzLinearOperator(smooth),
        "RootLinearOperator": library.RootLinearOperator(root),
        "KroneckerProductLinearOperator": library.KroneckerProductLinearOperator(dense[:8, :8], dense[:5, :5]),
    }
    for name, lazy in forms.items():
        assert type(lazy).__name__ == name
        K = lazy.to_dense()
        shift = 0.1 * K.diagonal().mean()
        expected = torch.linalg.solve(K + shift * torch.eye(n, dtype=K.dtype), targets - targets.mean(0))
        for method in ("cholesky", "cg"):
            fit = solve.kernel_ridge(lazy, targets, 0.1, method=method, tol=1e-10)
            torch.testing.assert_close(fit.alpha, expected, rtol=1e-7, atol=1e-8)
            torch.testing.assert_close(fit.predict(lazy), K @ expected + targets.mean(0), rtol=1e-7, atol=1e-7)


def test_an_operator_is_returned_as_it_is():
    op = as_operator(rows_of(4, 4))
    assert as_operator(op) is op
    soft = NPKOperator.soft([rows_of(4, 3).abs()])
    assert as_operator(soft) is soft


def test_symmetry_is_that_up_to_rounding():
    matrix = rows_of(9, 9)
    matrix = matrix @ matrix.T
    matrix[2, 5] *= 1 + 2e-7
    assert as_operator(matrix).symmetric
    matrix[2, 5] *= 1.01
    assert not as_operator(matrix).symmetric
    for form in (scipy_of, LazyMatrix, library_of):
        assert not as_operator(form(matrix.double() + 1e-2 * rows_of(9, 9).double())).symmetric


def test_a_matrix_keeps_its_entries():
    matrix = rows_of(4, 4)
    op = as_operator(matrix)
    op[:, :].zero_()
    op.to_dense().zero_()
    op.columns(slice(None)).zero_()
    assert matrix.any()


def test_a_matrix_has_entries_of_its_dtype_alone():
    with pytest.raises(NotImplementedError, match=r"DenseOperator exist in torch\.float32 alone"):
        as_operator(rows_of(4, 4)).with_dtype(torch.float64)


def test_other_things_are_refused():
    scipy, sparse = pytest.importorskip("scipy.sparse.linalg"), pytest.importorskip("scipy.sparse")
    nan = rows_of(5, 5)
    nan[4, 2] = float("nan")
    wrong = [
        ([[1.0]], TypeError, "K: got list, needs an NPKOperator, a tensor, a numpy array, or an operator of scipy"),
        (sparse.eye(3).tocsr(), TypeError, r"K: got csr_matrix, needs .*scipy\.sparse\.linalg\.aslinearoperator"),
        (rows_of(5, 5).half(), TypeError, "K: got torch.float16, needs torch.float32 or torch.float64"),
        (np.eye(3, dtype=np.int64), TypeError, "K: got torch.int64, needs torch.float32 or torch.float64"),
        (rows_of(5, 5)[0], ValueError, r"K: got shape \(5,\), needs a matrix \(n, m\)"),
        (nan, ValueError, "K: has infinite values or NaN, needs finite numbers"),
        (LazyMatrix(nan), ValueError, "K: its product has infinite values or NaN, needs finite numbers"),
        (LazyMatrix(rows_of(5, 5)[None]), ValueError, r"K: got shape \(1, 5, 5\), needs a matrix \(n, m\)"),
        (LazyMatrix(rows_of(5, 5).half()), TypeError, "K: got torch.float16, needs torch.float32 or torch.float64"),
        (scipy.aslinearoperator(np.eye(3) * 1j), TypeError, "K: got an operator of complex128, needs real numbers"),
    ]
    for given_k, error, message in wrong:
        with pytest.raises(error, match=message):
            as_operator(given_k)
    lazy = LazyMatrix(rows_of(5, 5))
    lazy.shape = (6, 5)
    with pytest.raises(ValueError, match=r"kernel: its product with \(5, 2\) has shape \(5, 2\), needs \(6, 2\)"):
        as_operator(lazy, "kernel")
