"""NPKOperator.of and NPKOperator.soft give the kernels of npk, ntk and soft_npk_gram as operators."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from strategies import generator, rows_of
from tolerances import assert_as_good_as_torch, assert_close_in_float64, assert_same_bits
from torch import nn

from gatedops import NPKOperator, npk, soft_npk_gram
from gatedops.operators import tiled
from gatedops.path_kernels import problem

pytestmark = pytest.mark.usefixtures("one_thread")


def images(n, seed=0):
    return torch.rand(n, 2, 6, 5, generator=generator(seed))


@cache
def conv_net():
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Conv2d(4, 3, 2), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(6, 2)).eval()


@cache
def dense_net():
    torch.manual_seed(0)
    layers = nn.Linear(60, 9), nn.ReLU(), nn.Linear(9, 7), nn.LeakyReLU(0.1), nn.Linear(7, 2)
    return nn.Sequential(nn.Flatten(), *layers).eval()


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(tiled, "_MODEL_EDGE", 8)
    monkeypatch.setattr(tiled, "_PAIRS", 3)
    monkeypatch.setattr(tiled, "_SOFT_EDGE", 7)


@pytest.mark.usefixtures("small_tiles", "exported_once")
@pytest.mark.parametrize(
    ("net", "kernel", "two", "kept"),
    [
        (conv_net, "npk", False, "auto"),
        (conv_net, "ntk", False, 700),
        (conv_net, "npk", True, 700),
        (conv_net, "npk", True, "none"),
        (dense_net, "ntk", True, "auto"),
        (dense_net, "npk", False, "none"),
    ],
)
def test_operators_of_models_are_their_kernels(net, kernel, two, kept):
    model, x, y = net(), images(21), images(10, 1) if two else None
    options = {"kernel": kernel, "sigma": 0.5}
    op = NPKOperator.of(model, x, y, cache=kept, **options)
    low, exponent = npk(model, x, y, return_exponent=True, **options)
    exact = npk(model, x, y, dtype=torch.float64, **options)
    assert op.exponent == exponent
    assert type(op).__name__ == ("ModelOperator" if net is conv_net else "NPKOperator")
    for _ in range(2):
        for ours, float32, truth in ((op, low, exact), (op.T, low.mT, exact.mT)):
            v = rows_of(truth.shape[1], 3)
            assert_as_good_as_torch(ours @ v, float32 @ v, truth @ v.double())
            assert_as_good_as_torch(ours.to_dense(), float32, truth)
            rows, cols = torch.tensor([9, 0, -1, 5, 4]), slice(1, 9, 3)
            assert_as_good_as_torch(ours[rows, cols], float32[rows][:, cols], truth[rows][:, cols])
            twice = ours.with_dtype(torch.float64)
            assert twice.dtype == torch.float64
            assert_as_good_as_torch((twice @ v.double()).float(), float32 @ v, truth @ v.double())
        if not two:
            assert_as_good_as_torch(op.diag(), low.diagonal(), exact.diagonal())


@pytest.mark.usefixtures("small_tiles", "exported_once")
def test_gates_are_recorded_and_entries_computed_once(monkeypatch):
    recorded, blocks = [], []
    record = problem.recorded_gates
    monkeypatch.setattr(problem, "recorded_gates", lambda *rest: recorded.append(rest[2]) or record(*rest))
    op = NPKOperator.of(conv_net(), images(21))
    made = op._pairs.block
    monkeypatch.setattr(op._pairs, "block", lambda *rest: blocks.append(rest) or made(*rest))
    v = rows_of(21, 2)
    op.diag()
    first = op @ v
    count = len(blocks)
    assert_same_bits(op @ v, first)
    op.columns(slice(3, 9))
    assert len(blocks) == count
    assert len([side for side in recorded if side is not None]) == 1
    assert_same_bits(op.to_dense(), op.to_dense().mT)


@pytest.mark.usefixtures("exported_once")
def test_bytes_of_a_fully_connected_net_stay_bytes():
    x = (images(9) * 255).to(torch.uint8)
    op = NPKOperator.of(dense_net(), x)
    assert op.sigma.kind == "bytes"
    assert_close_in_float64(
        NPKOperator.of(dense_net(), x, dtype=torch.float64).to_dense(), npk(dense_net(), x, dtype=torch.float64)
    )


@pytest.mark.usefixtures("exported_once")
def test_a_pass_shows_a_bar_until_all_is_stored(capsys):
    pytest.importorskip("tqdm")
    op = NPKOperator.of(conv_net(), images(9), progress=True)
    v = torch.ones(9)
    capsys.readouterr()
    op._tiles._progress = True
    from unittest import mock

    with mock.patch("gatedops.operators.tiles.with_bar", side_effect=lambda items, *rest: items) as bar:
        op @ v
        op @ v
    assert [call.args[-1] for call in bar.call_args_list] == [True, False]
    assert "operations a pair" in repr(op)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("kept", ["auto", "none", 300])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("scale", ["width", [0.5, -3.0]])
def test_operators_of_soft_gates_are_their_kernel(scale, normalize, kept):
    gates, y_gates = ([torch.rand(n, w, generator=generator(n + w)) for w in (6, 5)] for n in (20, 13))
    options = {"scale": scale, "normalize": normalize}
    for x, y in ((rows_of(20, 4), rows_of(13, 4)), (None, None)):
        for two in (False, True):
            others = (y_gates, y) if two else (None, None)
            op = NPKOperator.soft(gates, x, *others, cache=kept, **options)
            low, exact = (
                soft_npk_gram(x, gates, others[1], others[0], dtype=dtype, **options)
                for dtype in (torch.float32, torch.float64)
            )
            for ours, float32, truth in ((op, low, exact), (op.T, low.mT, exact.mT)):
                v = rows_of(truth.shape[1], 3)
                assert_as_good_as_torch(ours @ v, float32 @ v, truth @ v.double())
                assert_as_good_as_torch(ours.to_dense(), float32, truth)
                twice = ours.with_dtype(torch.float64)
                assert_as_good_as_torch((twice @ v.double()).float(), float32 @ v, truth @ v.double())
            if not two:
                assert_as_good_as_torch(op.diag(), low.diagonal(), exact.diagonal())
                assert op.symmetric
    assert repr(op) == (
        "SoftOperator(20 x 13 float32 on cpu; layers and inputs: [6, 5]; tiles: 0.00 of 0.00 GiB are stored)"
    )


def test_vectors_have_derivatives_beside_models():
    gates = [torch.rand(6, 4, generator=generator(0)).double()]
    op = NPKOperator.soft(gates, y_gates=[gates[0][:4]], dtype=torch.float64)
    v = rows_of(4, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: op @ v, v)
    assert torch.autograd.gradgradcheck(lambda v: op @ v, v)
    tangent = torch.func.jvp(lambda v: op @ v, (v.detach(),), (v.detach(),))[1]
    assert_close_in_float64(tangent.detach(), op.product(v.detach()))
