"""What each training point adds to a prediction, against the whole matrix of contributions in float64."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from kernels import gaussian, random_targets
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from gatedops import GateBits, NPKOperator, gate_overlap
from gatedops.operators import KernelOperator, as_operator
from gatedops.solve import gradient_flow, kernel_ridge, nystrom, representers

pytestmark = pytest.mark.usefixtures("one_thread")
N, M, C = 40, 7, 3
# The package has a function of the same name.
MODULE = import_module("gatedops.solve.representers")


class Entries(KernelOperator):
    """A kernel without products, which keeps the shapes of the blocks that it is asked for."""

    def __init__(self, entries, asked):
        self.entries, self.asked, self.shape, self.dtype = entries, asked, tuple(entries.shape), entries.dtype
        self.device, self.symmetric = entries.device, False

    def product(self, v):
        raise AssertionError("a product computes every entry again")

    def diag(self):
        raise AssertionError("a kernel of test points has no diagonal")

    def block(self, rows, cols):
        made = self.entries[rows][:, cols]
        self.asked.append(tuple(made.shape))
        return made

    @property
    def T(self):
        return Entries(self.entries.T, self.asked)


@pytest.fixture(scope="module")
def problem():
    kernel = gaussian(N + M)
    return kernel_ridge(kernel[:N, :N], random_targets(N, C), 0.1), kernel[N:, :N].contiguous()


def gates(rows, seed):
    return GateBits.pack([random_targets(rows, 40, seed), random_targets(rows, 9, seed + 1)], names=["fc1", "fc2"])


def contributions(solution, cross, column):
    """Every contribution ``(m, n)``, entry by entry."""
    return torch.tensor(
        [[cross[t, i] * solution.alpha[i, column[t]] for i in range(cross.shape[1])] for t in range(len(cross))],
        dtype=torch.float64,
    )


def assert_near(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)


def assert_adds_up(found):
    assert_near(found.mean + found.contribution.sum(1) + found.rest, found.score)


# --- what is listed ---


@pytest.mark.parametrize("k", [1, 5, N])
def test_the_largest_contributions_to_the_predicted_class(problem, k):
    solution, cross = problem
    found, scores = representers(solution, cross, k), solution.predict(cross)
    column = scores.argmax(1)
    every = contributions(solution, cross, column)
    order = every.abs().argsort(1, descending=True)[:, :k]
    assert torch.equal(found.index, order)
    assert torch.equal(found.column, column)
    assert_near(found.score, scores.amax(1))
    assert_near(found.mean, solution.mean[column])
    assert_near(found.contribution, every.gather(1, order))
    assert_near(found.kernel, cross.gather(1, order))
    assert_near(found.total, every.abs().sum(1))
    assert_near(found.share, (every.abs() / every.abs().sum(1, keepdim=True)).gather(1, order))
    assert_near(found.rest, every.sum(1) - every.gather(1, order).sum(1))
    assert_adds_up(found)
    assert (found.layers, found.overlap, found.sigma, found.overlap_share) == ((), None, None, None)


def test_with_all_points_nothing_is_left(problem):
    found = representers(*problem, N)
    assert_near(found.share.sum(1), torch.ones(M, dtype=torch.float64))
    torch.testing.assert_close(found.rest, torch.zeros(M, dtype=torch.float64), rtol=0, atol=1e-14)


def test_helpers_and_then_opponents(problem):
    solution, cross = problem
    found = representers(solution, cross, 4, split=True)
    every = contributions(solution, cross, found.column)
    expected = torch.cat([every.argsort(1, descending=True)[:, :4], every.argsort(1)[:, :4]], 1)
    assert torch.equal(found.index, expected)
    assert bool((found.contribution[:, :4] > 0).all())
    assert bool((found.contribution[:, 4:] < 0).all())
    assert_near(found.rest, every.sum(1) - every.gather(1, expected).sum(1))
    assert_adds_up(found)


def test_fewer_helpers_than_asked_for():
    """The first test point has one helper, the second has none."""
    solution = kernel_ridge(torch.eye(4, dtype=torch.float64), torch.tensor([3.0, -1.0, -1.0, -1.0]), 0.5)
    cross = torch.tensor([[1.0, 2.0, 0.0, 1.0], [-1.0, 2.0, 0.0, 0.0]], dtype=torch.float64)
    found = representers(solution, cross, 3, split=True)
    assert found.index.tolist() == [[0, -1, -1, 1, 3, -1], [-1, -1, -1, 0, 1, -1]]
    missing = found.index == -1
    for values in (found.contribution, found.kernel, found.share):
        assert torch.equal(values == 0, missing)
    assert_adds_up(found)
    assert "-1 " not in repr(found)


@pytest.mark.parametrize("column", [2, np.int64(0), [0, 1, 2, 0, 1, 2, 0], torch.tensor([1] * M, dtype=torch.uint8)])
def test_a_given_column(problem, column, monkeypatch):
    monkeypatch.setattr(MODULE, "_ENTRIES", 2 * N)
    solution, cross = problem
    found = representers(solution, cross, 3, column=column)
    expected = torch.as_tensor(column).long().expand(M)
    assert torch.equal(found.column, expected)
    assert_near(found.score, solution.predict(cross).gather(1, expected[:, None])[:, 0])
    every = contributions(solution, cross, expected)
    assert_near(found.contribution, every.gather(1, found.index))
    assert torch.equal(found.index, every.abs().argsort(1, descending=True)[:, :3])


def test_equal_contributions_are_in_the_order_of_their_index(problem):
    alpha = torch.tensor([[1.0], [-2.0], [2.0], [1.0], [-2.0], [0.5]]).double()
    solution = replace(problem[0], alpha=alpha, mean=alpha[0])
    cross = torch.ones(2, 6, dtype=torch.float64)
    assert representers(solution, cross, 4, column=0).index.tolist() == [[1, 2, 4, 0]] * 2
    assert representers(solution, cross, 2).index.tolist() == [[1, 2]] * 2
    assert representers(solution, cross, 2, split=True).index.tolist() == [[2, 0, 1, 4]] * 2
    many = replace(solution, alpha=torch.ones(3000, 1).double())
    assert representers(many, torch.ones(1, 3000), 1000).index.tolist() == [list(range(1000))]


def test_constant_targets_leave_no_contributions():
    found = representers(kernel_ridge(gaussian(5), torch.ones(5, 2).double(), 0.1), gaussian(5)[:2], 2)
    assert found.index.tolist() == [[0, 1]] * 2
    for values in (found.share, found.contribution, found.rest, found.total):
        assert not values.any()
    assert found.score.tolist() == [1, 1]
    assert "all others             0      0.0" in repr(found)


# --- forms of the kernel ---


@pytest.mark.parametrize("entries", [1, 2 * N, 3 * N + 5])
@pytest.mark.parametrize("split", [False, True])
def test_tiles_change_nothing(problem, entries, split, monkeypatch):
    whole = representers(*problem, 6, split=split)
    monkeypatch.setattr(MODULE, "_ENTRIES", entries)
    found = representers(*problem, 6, split=split)
    for name in ("column", "score", "index", "contribution", "share", "rest", "kernel", "total"):
        assert_near(getattr(found, name), getattr(whole, name))


def test_the_kernel_is_computed_once_and_in_tiles(problem, monkeypatch):
    (solution, cross), asked = problem, []
    monkeypatch.setattr(MODULE, "_ENTRIES", 3 * N)
    found = representers(solution, Entries(cross, asked), 2)
    assert asked == [(N, 3), (N, 3), (N, 1)]
    assert torch.equal(found.index, representers(solution, cross, 2).index)


@pytest.mark.parametrize("form", [np.asarray, as_operator, lambda cross: aslinearoperator(cross.numpy())])
def test_forms_of_the_kernel(problem, form):
    solution, cross = problem
    found, expected = representers(solution, form(cross), 3), representers(solution, cross, 3)
    assert torch.equal(found.index, expected.index)
    assert_near(found.contribution, expected.contribution)


def test_an_operator_of_scipy_that_does_not_know_its_transpose(problem):
    solution, cross = problem
    alone = LinearOperator(cross.shape, matvec=lambda v: cross.numpy() @ v, dtype=np.float64)
    with pytest.raises(TypeError, match="K_test: cannot multiply by its transpose: give the operator of scipy rmatvec"):
        representers(solution, alone, 3)


def test_a_float32_kernel(problem):
    solution, cross = problem
    found = representers(solution, cross.float(), 3)
    assert found.kernel.dtype == found.contribution.dtype == torch.float64
    assert torch.equal(found.kernel, cross.float().double().gather(1, found.index))


def test_no_test_points(problem):
    found = representers(problem[0], problem[1][:0], 3)
    assert (tuple(found.index.shape), tuple(found.share.shape), tuple(found.score.shape)) == ((0, 3), (0, 3), (0,))
    assert repr(found).startswith("Representers of 0 test points")


# --- layers ---


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("kind", ["Lambda", "floats", "bytes", "transposed"])
def test_layers_of_the_neural_path_kernel(kind, split, monkeypatch):
    monkeypatch.setattr(MODULE, "_ENTRIES", 60)
    bits, test_bits = gates(30, 0), gates(5, 7)
    x, z = random_targets(30, 6, 3), random_targets(5, 6, 4)
    x, z = {"Lambda": (None, None), "bytes": ((50 * x.abs()).byte(), (50 * z.abs()).byte())}.get(kind, (x, z))
    solution = kernel_ridge(NPKOperator(bits, x, dtype=torch.float64), random_targets(30, 2), 0.1)
    cross = NPKOperator(test_bits, z, bits, x, dtype=torch.float64)
    if kind == "transposed":
        cross = NPKOperator(bits, x, test_bits, z, dtype=torch.float64).T
    found = representers(solution, cross, 4, split=split)
    assert (found.layers, found.widths) == (("fc1", "fc2"), (40, 9))
    counts = gate_overlap(test_bits, bits)
    tests = torch.arange(5)[:, None]
    assert torch.equal(found.overlap, counts[:, tests, found.index].permute(1, 2, 0))
    assert found.overlap.dtype == torch.int32
    assert_near(found.overlap_share, found.overlap / torch.tensor([40.0, 9.0]).double())
    if kind == "Lambda":
        assert found.sigma is None
    else:
        assert_near(found.sigma, (z.double() @ x.double().T)[tests, found.index])
    sigma = 1.0 if found.sigma is None else found.sigma
    assert_near(found.kernel, sigma * found.overlap_share.prod(2))
    assert "fc2: both on %" in repr(found)


def test_pairs_are_counted_some_at_a_time(monkeypatch):
    bits, x = gates(30, 0), random_targets(30, 6, 3)
    operator, (rows, cols) = NPKOperator(bits, x), torch.randint(30, (2, 50))
    whole = operator.shared_gates(rows, cols)
    monkeypatch.setattr("gatedops.operators.npk_operator._PAIRED", 100)
    for ours, expected in zip(operator.shared_gates(rows, cols), whole, strict=True):
        assert torch.equal(ours, expected)
    assert torch.equal(whole[0].T, gate_overlap(bits)[:, rows, cols])


def test_no_layers_where_a_side_has_too_few_points():
    bits, test_bits = gates(3, 0), gates(2, 5)
    solution = kernel_ridge(NPKOperator(bits, dtype=torch.float64), torch.tensor([1.0, -1.0, 0.0]), 0.1)
    found = representers(solution, NPKOperator(test_bits, None, bits, None, dtype=torch.float64), 3, split=True)
    missing = found.index == -1
    assert missing.any()
    assert not found.overlap[missing].any()


# --- other solutions ---


def test_gradient_flow(problem):
    kernel, cross = gaussian(N), problem[1]
    solution = gradient_flow(kernel, random_targets(N, C), 3.0)
    found = representers(solution, cross, 3)
    assert_near(found.score, solution.predict(cross).amax(1))
    assert_adds_up(found)


@pytest.mark.parametrize("split", [False, True])
def test_centres(problem, split):
    centres = torch.tensor([31, 2, 17, 8, 25])
    solution, cross = nystrom(gaussian(N), random_targets(N, C), 0.1, centres=centres), problem[1][:, centres]
    found = representers(solution, cross, 3, split=split)
    every = contributions(solution, cross, found.column)
    assert found.points == 5
    assert bool(((found.index == -1) | torch.isin(found.index, centres)).all())
    for t, i in (found.index >= 0).nonzero().tolist():
        place = centres.tolist().index(int(found.index[t, i]))
        assert_near(found.contribution[t, i], every[t, place])
    if not split:
        assert torch.equal(found.index, centres[every.abs().argsort(1, descending=True)[:, :3]])
    with pytest.raises(ValueError, match=r"K_test: has shape \(7, 40\), needs \(q, 5\), a column for each centre"):
        representers(solution, problem[1], 3)


# --- the table ---


def test_the_table_adds_up(problem):
    lines = repr(representers(*problem, 2)).splitlines()
    assert lines[0] == "Representers of 7 test points: 2 of 40 training points each"
    assert lines[1].split() == ["test", "point", "column", "training", "point", "contribution", "share", "%", "kernel"]
    one = repr(representers(problem[0], problem[1][:1], 2)).splitlines()
    assert [line.split()[2] for line in one[4:]] == ["all", "mean", "score"]
    listed = [float(line.split()[3]) for line in one[2:4]]
    others, mean, score = float(one[4].split()[4]), *(float(line.split()[3]) for line in one[5:])
    assert sum(listed) + others + mean == pytest.approx(score, abs=1e-3)


# --- bad input ---


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"solution": [1]}, TypeError, "solution: got list, needs what kernel_ridge returns: choose one of them"),
        ({"solution": None}, TypeError, "solution: got NoneType, needs what kernel_ridge returns$"),
        ({"K_test": torch.ones(2, N - 1)}, ValueError, r"K_test: has shape \(2, 39\), needs \(m, 40\)"),
        (
            {"K_test": torch.ones(N)},
            ValueError,
            r"got shape \(40,\), needs \(m, 40\), .*: K_test\[None\] is that of one",
        ),
        ({"K_test": "K"}, TypeError, "K_test: got str"),
        ({"K_test": torch.full((2, N), torch.nan)}, ValueError, "K_test: has infinite values or NaN"),
        ({"K_test": Entries(torch.full((2, N), torch.nan), [])}, ValueError, "K_test: has entries that are not finite"),
        ({"k": 0}, ValueError, "k: got 0, needs a whole number from 1 to 40"),
        ({"k": N + 1}, ValueError, "k: got 41, needs a whole number from 1 to 40"),
        ({"k": 2.5}, TypeError, "k: got 2.5, needs a whole number"),
        ({"column": C}, ValueError, "column: got 3, needs a whole number from 0 to 2"),
        ({"column": -1}, ValueError, "column: got -1, needs a whole number from 0 to 2"),
        ({"column": [0, 1]}, ValueError, r"column: got shape \(2,\), needs one number, or \(7,\)"),
        ({"column": [0] * (M - 1) + [C]}, ValueError, "column: has numbers from 0 to 3, needs 0 to 2"),
        ({"column": [0.0] * M}, TypeError, "column: got torch.float64, needs whole numbers"),
        (
            {"column": "last"},
            TypeError,
            "column: got 'last', needs None, a whole number from 0 to 2, or one for each t",
        ),
        ({"column": True}, TypeError, "column: got True, needs None, a whole number from 0 to 2, or one for each test"),
    ],
)
def test_bad_input(problem, change, error, message):
    arguments = {"solution": problem[0], "K_test": problem[1], "k": 3} | change
    with pytest.raises(error, match=message):
        representers(**arguments)
