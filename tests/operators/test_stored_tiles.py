"""Tiles are computed once while there is room, and a product is the same whether they are stored or not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import dense, examples, random_bits, rows_of, seeds
from tolerances import assert_as_good_as_torch, assert_close_in_float64, assert_same_bits
from torch_threads import threads

from gatedops import NPKOperator, npk_gram
from gatedops.operators import as_operator, memory, sums, tiles
from gatedops.operators.tiles import SHARE, UNKNOWN, Tiles, cache_limit

CPU = torch.device("cpu")
BITS, X = random_bits(50, dense(40)), rows_of(50, 130)


class Counted:
    """A matrix that counts the entries that are asked for."""

    def __init__(self, matrix):
        self.matrix, self.entries = matrix, 0

    def __call__(self, rows, cols):
        found = self.matrix[rows][:, cols]
        self.entries += found.numel()
        return found


def made_tiles(n, m, *, symmetric, edge, limit, dtype=torch.float64, seed=0):
    matrix = rows_of(n, m, seed, torch.float64)
    if symmetric:
        upper = (matrix @ matrix.T).triu()  # The product of MKL is not symmetric to the last bit.
        matrix = upper + upper.triu(1).T
    matrix = matrix.to(dtype)
    counted = Counted(matrix)
    shape = (len(matrix), matrix.shape[1])
    made = Tiles(shape, dtype, CPU, symmetric=symmetric, compute=counted, edge=edge, limit=limit, what="matrix")
    return made, counted, matrix


@examples(40)
@given(
    st.integers(0, 17), st.integers(0, 17), st.booleans(), st.integers(2, 9), st.sampled_from([0, 300, 1 << 20]),
    st.integers(1, 3), seeds, st.data(),
)  # fmt: skip
def test_tiles_are_the_matrix(monkeypatch, n, m, symmetric, edge, limit, columns, seed, data):
    made, _, matrix = made_tiles(n, m, symmetric=symmetric, edge=edge, limit=limit, seed=seed)
    monkeypatch.setattr(sums, "_EDGE", 4)
    for _ in range(2):
        for ours, whole in ((made, matrix), (made.T, matrix.mT)):
            v = rows_of(whole.shape[1], columns, 1, torch.float64)
            assert_close_in_float64(ours.product(v), whole @ v)
            assert_close_in_float64(ours.product(v.float()), whole @ v.float().double())
            rows, cols = (
                torch.tensor(data.draw(st.lists(st.integers(-size, size - 1), max_size=8) if size else st.just([])),
                             dtype=torch.int64)
                for size in whole.shape
            )  # fmt: skip
            assert_same_bits(ours.block(rows, cols).contiguous(), whole[rows][:, cols].contiguous())
            some = slice(1, None, 2)
            assert_same_bits(ours.block(some, cols).contiguous(), whole[some][:, cols].contiguous())
        if symmetric:
            assert_same_bits(made.diag(), matrix.diagonal().contiguous())
        assert made.kept <= limit


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_tile_is_computed_once_while_there_is_room(symmetric):
    made, counted, matrix = made_tiles(20, 20, symmetric=symmetric, edge=6, limit=1 << 20)
    v = rows_of(20, 2, dtype=torch.float64)
    made.product(v)
    assert counted.entries * 8 == made.nbytes == made.kept
    assert made.nbytes < (0.7 if symmetric else 1.01) * matrix.nbytes
    first = counted.entries
    made.T.product(v)
    made.block(torch.arange(20), slice(3, 9))
    assert counted.entries == first
    for limit in (made.nbytes - 1, 500, 0):
        made, counted, _ = made_tiles(20, 20, symmetric=symmetric, edge=6, limit=limit)
        made.product(v)
        first, kept = counted.entries, made.kept
        assert kept <= limit
        made.product(v)
        assert counted.entries == 2 * first - kept // 8


def test_a_diagonal_is_computed_alone_unless_its_tiles_can_be_stored():
    made, counted, _ = made_tiles(20, 20, symmetric=True, edge=6, limit=500)
    made.diag()
    assert counted.entries == 20
    made, counted, _ = made_tiles(20, 20, symmetric=True, edge=6, limit=1 << 20)
    made.diag()
    made.product(rows_of(20, 1))
    assert counted.entries * 8 == made.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_stored_products_have_the_same_bits_on_any_threads(dtype):
    n = 300
    bits, x = random_bits(n, dense(40)), rows_of(n, 4, dtype=dtype)
    stored = NPKOperator(bits, x, dtype=dtype, cache=1 << 30)
    low = npk_gram(x, bits, dtype=dtype)
    others = [as_operator(low), as_operator(low[:, :260]), NPKOperator.soft([x.abs(), x[:, :3]], x, dtype=dtype)]
    for op in (stored, others[0], others[1], others[1].T, others[2]):
        for columns in (1, 10):
            v = rows_of(op.shape[1], columns, dtype=torch.float64)
            op @ v
            found = []
            for count in (1, 3):
                with threads(count):
                    found.append(op @ v)
            for other in found[1:]:
                assert_same_bits(found[0], other)


def test_a_stored_gram_gives_the_same_product_up_to_rounding():
    for x in (X, None, (X * 100).round().clamp(0, 255)):
        for normalize in (False, True):
            stored = NPKOperator(BITS, x, normalize=normalize, cache=1 << 20)
            computed = NPKOperator(BITS, x, normalize=normalize, cache="none")
            assert stored.stores
            assert not computed.stores
            truth = npk_gram(None if x is None else x.double(), BITS, normalize=normalize, dtype=torch.float64)
            v = rows_of(50, 3)
            assert_as_good_as_torch(stored @ v, npk_gram(x, BITS, normalize=normalize) @ v, truth @ v.double())
            assert (stored @ v - computed @ v).abs().max() < 1e-5 * (truth.abs() @ v.abs().double()).max()
            # Now the Gram is stored, and gives entries too.
            assert torch.allclose(stored[3:9, [1, 2]], computed[3:9, [1, 2]], atol=1e-5)
            assert torch.allclose(stored.diag(), computed.diag())


def test_auto_stores_floats_of_many_columns_alone(monkeypatch):
    def stores(x=X, **options):
        return NPKOperator(BITS, x, **options).stores

    whole = NPKOperator(BITS, X, cache=1 << 20)._tiles.nbytes
    assert stores()
    assert not stores(X[:, :127])
    assert not stores(None)
    assert not stores((X * 100).round().clamp(0, 255))
    assert not stores(rows_of(50, 130, dtype=torch.uint8))
    assert not stores(X.clone().requires_grad_())
    assert not stores(cache="none")
    assert not stores(cache=0)
    assert not stores(cache=whole - 1)
    assert stores(cache=whole)
    assert stores(None, cache=whole)
    monkeypatch.setattr(tiles, "available", lambda device: int(whole / SHARE) + 4)
    assert stores()
    monkeypatch.setattr(tiles, "available", lambda device: int(whole / SHARE) - 4)
    assert not stores()
    assert cache_limit(7, CPU) == 7
    monkeypatch.setattr(tiles, "available", lambda device: None)
    assert cache_limit("auto", CPU) == UNKNOWN
    assert cache_limit("none", CPU) == 0


def test_the_representation_says_what_is_stored():
    op = NPKOperator(BITS, X)
    assert repr(op).endswith("Gram: will be stored by the first product, 0.00 GiB)")
    op @ torch.ones(50)
    assert repr(op).endswith("Gram: stored, 0.00 GiB)")


def test_free_memory_is_that_of_the_system_or_of_the_container(monkeypatch, tmp_path):
    info, limit, used = (tmp_path / name for name in ("meminfo", "max", "current"))
    info.write_text("MemTotal: 9000 kB\nMemFree:  10 kB\nMemAvailable:   4000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", info)
    monkeypatch.setattr(memory, "_LIMITS", ((str(limit), str(used)),))
    assert memory.available(CPU) == 4_096_000
    limit.write_text("max\n")
    used.write_text("1000\n")
    assert memory.available(CPU) == 4_096_000
    limit.write_text("5000\n")
    assert memory.available(CPU) == 4000
    used.write_text("6000\n")
    assert memory.available(CPU) == 0
    info.unlink()
    limit.unlink()
    assert memory.available(CPU) is None
    assert memory.available(torch.device("meta")) is None


def test_results_larger_than_the_free_memory_are_refused(monkeypatch):
    op = NPKOperator(BITS, X)
    monkeypatch.setattr("gatedops.operators.memory.available", lambda device: 50 * 50 * 4 - 1)
    for call in (op.to_dense, lambda: op[:, :], lambda: op.columns(slice(None)), lambda: op[torch.arange(50)]):
        with pytest.raises(ValueError, match=r"\(50 x 50\) need 0.0 GiB, and 0.0 GiB are free on cpu; take fewer rows"):
            call()
    assert op[:, :49].shape == (50, 49)
    monkeypatch.setattr("gatedops.operators.memory.available", lambda device: None)
    assert op.to_dense().shape == (50, 50)
