"""NPKKernel is the kernel of the network's gates, in the shapes and combinations that GPyTorch and BoTorch ask for."""

from __future__ import annotations

import copy
import importlib.util
import io
import sys

import pytest
import torch
from nets import mlp
from tolerances import assert_close_in_float64, assert_same_bits
from torch import nn
from torch.autograd import gradcheck

import gatedops

own = pytest.importorskip("gatedops.gpytorch")
npk_kernel = pytest.importorskip("gatedops.gpytorch.npk_kernel")
gpytorch = pytest.importorskip("gpytorch")
linear_operator = pytest.importorskip("linear_operator")

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return mlp()


def kernel_of(net, **options):
    return own.NPKKernel(net, **options).double()


def gates_of(net, x):
    """Multiplies through the net; shares no code with the recorder."""
    net, found, z = copy.deepcopy(net).to(x.dtype), [], x.detach()
    for module in net:
        if isinstance(module, nn.ReLU):
            found.append((z > 0).double())
        z = module(z)
    return found


def gram_of(net, x, y, *, sigma=True):
    gram = x @ y.mT if sigma else torch.ones(len(x), len(y)).double()
    for one, other in zip(gates_of(net, x), gates_of(net, y), strict=True):
        gram = gram * (one @ other.mT) / one.shape[1]
    return gram


@pytest.mark.parametrize("sigma", [True, False])
def test_values(net, sigma):
    x, y, kernel = drawn(7, 6), drawn(5, 6, seed=1), kernel_of(net, sigma=sigma)
    square = gram_of(net, x, x, sigma=sigma)
    assert_close_in_float64(kernel(x).to_dense(), square)
    assert_close_in_float64(kernel(x, x.clone()).to_dense(), square)
    assert_close_in_float64(kernel(x, y).to_dense(), gram_of(net, x, y, sigma=sigma))
    assert_close_in_float64(kernel(x, diag=True), square.diagonal())
    assert_close_in_float64(kernel(x, y[:1].expand(7, 6), diag=True), gram_of(net, x, y, sigma=sigma)[:, 0])
    assert_close_in_float64(kernel(x)[2:, 1].reshape(-1), square[2:, 1])
    assert_close_in_float64(kernel(x, y) @ y, gram_of(net, x, y, sigma=sigma) @ y)
    one = kernel_of(net, sigma=sigma, normalize=True)(x).to_dense()
    assert_close_in_float64(one, square / torch.outer(square.diagonal(), square.diagonal()).sqrt())


def test_nothing_is_stored_and_nothing_is_trained(net):
    kernel, x = kernel_of(net), drawn(7, 6)
    matrix = kernel(x).evaluate_kernel()
    assert isinstance(matrix, own.NPKLinearOperator)
    assert len(matrix.representation()) == 2  # One side: the matrix is symmetric.
    assert not matrix.kernel_operator.stores
    assert (kernel.has_lengthscale, kernel.is_stationary) == (False, False)
    assert not any(parameter.requires_grad for parameter in kernel.parameters())
    assert all(parameter.requires_grad for parameter in net.parameters())
    before = kernel(x).to_dense()
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[0].weight.neg_()
    changed = own.NPKKernel(other)
    assert not torch.equal(changed.double()(x).to_dense(), before)
    with torch.no_grad():
        other[0].weight.zero_()  # The kernel has its own copy.
    stored = io.BytesIO()
    torch.save(kernel.state_dict(), stored)
    stored.seek(0)
    changed.load_state_dict(torch.load(stored))
    assert_same_bits(changed(x).to_dense(), before)


def test_float32_nets_take_float64_inputs(net):
    x = drawn(7, 6)
    kernel = own.NPKKernel(net)
    matrix = kernel(x).evaluate_kernel()
    assert matrix.dtype == torch.float64
    bits = gatedops.record_gates(net, x.float())
    assert_same_bits(kernel.record_gates(x).words, bits.words)
    assert_close_in_float64(matrix.to_dense(), gatedops.npk_gram(x, bits, dtype=torch.float64))
    assert kernel(x.float()).to_dense().dtype == torch.float32


def test_batches_and_active_dims(net):
    kernel, wide = kernel_of(net, active_dims=[0, 2, 3, 4, 6, 7]), drawn(3, 4, 8)
    x = wide[..., [0, 2, 3, 4, 6, 7]]
    assert_close_in_float64(kernel(wide).to_dense(), torch.stack([gram_of(net, one, one) for one in x]))
    y = drawn(5, 8, seed=1)
    expected = torch.stack([gram_of(net, one, y[:, [0, 2, 3, 4, 6, 7]]) for one in x])
    assert_close_in_float64(kernel(wide, y).to_dense(), expected)
    assert_close_in_float64(kernel(wide, diag=True), torch.stack([gram_of(net, one, one).diagonal() for one in x]))
    many = kernel_of(net, batch_shape=torch.Size([2]))
    assert_close_in_float64(many(x[0]).to_dense(), gram_of(net, x[0], x[0]).expand(2, 4, 4).contiguous())


def test_combinations_with_other_kernels(net):
    kernel, x, y = kernel_of(net), drawn(7, 6), drawn(5, 6, seed=1)
    rbf = gpytorch.kernels.RBFKernel().double()
    for left, right in ((x, x), (x, y)):
        gram, other = gram_of(net, left, right), rbf(left, right).to_dense()
        scaled = gpytorch.kernels.ScaleKernel(kernel).double()
        assert_close_in_float64(scaled(left, right).to_dense(), gram * scaled.outputscale)
        assert_close_in_float64((kernel + rbf)(left, right).to_dense(), gram + other)
        assert_close_in_float64((kernel * rbf)(left, right).to_dense(), gram * other)
    assert_close_in_float64((kernel + rbf)(x, diag=True), gram_of(net, x, x).diagonal() + 1)


@pytest.mark.parametrize("active", [None, list(range(6))])
def test_derivatives_are_those_with_fixed_gates(net, active):
    kernel = kernel_of(net, active_dims=active)
    x, y = drawn(3, 6).requires_grad_(), drawn(2, 6, seed=1).requires_grad_()
    assert gradcheck(lambda x, y: kernel(x, y).to_dense(), (x, y))
    assert gradcheck(lambda x: kernel(x).to_dense(), (x,))
    assert gradcheck(lambda x: kernel(x, diag=True), (x,))
    weights, fixed = drawn(3, 3, seed=2), x.detach().clone()
    ours, expected = (
        torch.autograd.grad((weights * gram).sum(), x)[0]
        for gram in (kernel(x, fixed).to_dense(), gram_of(net, x, fixed))
    )
    assert_close_in_float64(ours, expected)  # Equal inputs of which one side needs no gradient.


def test_lambda_has_zero_derivatives(net):
    x = drawn(3, 6).requires_grad_()
    kernel_of(net, sigma=False)(x).to_dense().sum().backward()
    assert_same_bits(x.grad, torch.zeros_like(x))


def conv_net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 6, 4), nn.ReLU(), nn.Linear(4, 1))


@pytest.mark.usefixtures("exported_once")
def test_convolutions(net):
    kernel, x, y = kernel_of(conv_net(), input_shape=(1, 3, 4)), drawn(6, 12), drawn(5, 12, seed=1)
    images = [side.reshape(-1, 1, 3, 4) for side in (x, y)]
    model = conv_net().double()
    square = gatedops.npk(model, images[0], dtype=torch.float64)
    across = gatedops.npk(model, *images, dtype=torch.float64)
    assert_close_in_float64(kernel(x).to_dense(), square)
    assert_close_in_float64(kernel(x, y).to_dense(), across)
    assert_close_in_float64(kernel(x) @ x, square @ x)
    assert_close_in_float64(kernel(x, diag=True), square.diagonal())
    assert isinstance(kernel(x).evaluate_kernel(), own.OpaqueLinearOperator)
    assert_close_in_float64(kernel(torch.stack([x, x]), y).to_dense(), across.expand(2, 6, 5).contiguous())
    with pytest.raises(ValueError, match="x: needs a gradient, and the kernel of a network with input_shape has none"):
        kernel(x.requires_grad_()).to_dense()
    dense = kernel_of(net, input_shape=[6])
    z = drawn(4, 6)
    assert_close_in_float64(dense(z).to_dense(), gatedops.npk(net.double(), z, dtype=torch.float64))
    net.float()


def test_bad_arguments(net):
    x = drawn(4, 6)
    wrong = [
        (lambda: own.NPKKernel("net"), TypeError, "net: got str, needs a torch.nn.Module"),
        (lambda: own.NPKKernel(net, input_shape=()), ValueError, r"input_shape: got \(\), needs whole numbers"),
        (lambda: own.NPKKernel(net, input_shape=6), ValueError, "input_shape: got 6, needs whole numbers of at least"),
        (lambda: own.NPKKernel(net, input_shape=(6,), sigma=False), ValueError, "input_shape: got one beside sigma"),
        (
            lambda: kernel_of(net)(x[:, :5]).to_dense(),
            ValueError,
            r"x1: net does not take inputs of shape \(4, 5\); giv",
        ),
        (lambda: own.NPKKernel(net, input_shape=(3,)), ValueError, r"input_shape: net does not take inputs of shape"),
        (lambda: kernel_of(net, input_shape=(6,))(x[:, :5]).to_dense(), ValueError, "x1: got 5 columns, needs 6, whi"),
        (lambda: kernel_of(net)(x.half()).to_dense(), TypeError, "x1: got torch.float16, needs torch.float32 or"),
        (lambda: kernel_of(net)(x.to("meta"), x).to_dense(), ValueError, "x1: is on meta, net is on cpu; move one"),
        (lambda: kernel_of(net)(x, x.float()).to_dense(), TypeError, "x2: got torch.float32, needs torch.float64 lik"),
        (lambda: own.NPKKernel(nn.Linear(6, 2)), ValueError, "net: calls no ReLU, so there are no gates: put one"),
        (lambda: own.NPKKernel(net[:2]), ValueError, r"net: ends with 1; path kernels need a Linear .* add one, as in"),
        (lambda: own.NPKKernel(nn.LazyLinear(2)), ValueError, "net: weight of a lazy layer has no size yet; call net"),
        (lambda: own.NPKKernel(net, cache="all"), ValueError, "cache: got 'all', needs 'auto', 'none' or a number of"),
        (lambda: own.NPKKernel(net, scale="all"), ValueError, "scale: got 'all', needs 'width', 'none' or one number"),
        (lambda: own.NPKKernel(net, scale=2.0), TypeError, "scale: got 2.0, needs 'width', 'none' or one number per"),
        (lambda: own.NPKKernel(net, scale=[1.0]), ValueError, "scale: got 1 numbers, needs one for each of 2 layers"),
        (lambda: own.NPKKernel(net, batch_size=0), ValueError, "batch_size: got 0, needs a whole number of at least"),
        (lambda: kernel_of(net).forward(x, x, last_dim_is_batch=True), NotImplementedError, "last_dim_is_batch: NPKK"),
    ]
    for call, error, message in wrong:
        with pytest.raises(error, match=message):
            call()


class WithSkip(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x):
        h = self.first(x).relu()
        return self.last(h + self.second(h).relu())


def test_networks_that_are_not_fully_connected_need_input_shape():
    """Their kernel is not that of all gates of each ReLU, which would be another one in silence."""
    torch.manual_seed(0)
    model, x = WithSkip().double(), drawn(5, 6)
    for options in ({}, {"sigma": False}, {"normalize": True}):
        with pytest.raises(ValueError, match=r"net: is not a chain of Linear .* give input_shape=\(6,\), or the shape"):
            own.NPKKernel(model, **options)(x).to_dense()
    kernel = own.NPKKernel(model, input_shape=(6,))
    assert_close_in_float64(kernel(x).to_dense(), gatedops.npk(model, x, dtype=torch.float64))
    reshaped = nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 1))
    with pytest.raises(
        ValueError, match=r"net: 0 moves numbers .*; if net first reshapes .* leave that out of net and"
    ):
        own.NPKKernel(reshaped)(x.float()).to_dense()


@pytest.mark.usefixtures("exported_once")
def test_the_net_is_examined_once(monkeypatch):
    seen, slopes_of = [], npk_kernel.slopes_of_dense
    monkeypatch.setattr(npk_kernel, "slopes_of_dense", lambda *given: seen.append(given) or slopes_of(*given))
    hidden = nn.Sequential(nn.Identity(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    for model in (hidden, hidden[1:]):
        kernel, x = own.NPKKernel(model), drawn(3, 6)
        kernel(x).to_dense(), kernel(x, x[:2]).to_dense(), copy.deepcopy(kernel)(x).to_dense()
        assert len(seen) == 1
        seen.clear()


@pytest.mark.usefixtures("exported_once")
@pytest.mark.parametrize("between", [nn.ReLU(), nn.LeakyReLU(0.3), nn.PReLU(init=-0.5)])
def test_npk_is_this_kernel_times_a_constant(between):
    torch.manual_seed(0)
    first = [nn.Linear(6, 5), nn.BatchNorm1d(5), between]
    model = nn.Sequential(*first, nn.Linear(5, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 1)).double()
    x, factor = drawn(6, 6), 5 / 8  # npk divides by the next power of 2 of each width.
    kernel = own.NPKKernel(model).train()
    npk = gatedops.npk(model.eval(), x, dtype=torch.float64)
    assert_close_in_float64(kernel(x).to_dense() * factor, npk)
    assert_close_in_float64(kernel(x)[:, :2].to_dense() * factor, npk[:, :2])
    assert_close_in_float64(kernel(x) @ x * factor, npk @ x)
    assert_close_in_float64(kernel(x, diag=True) * factor, npk.diagonal())


def test_slopes_that_are_parameters_are_loaded():
    torch.manual_seed(0)
    models, x = (
        [nn.Sequential(nn.Linear(6, 4), nn.PReLU(init=a), nn.Linear(4, 1)).double() for a in (0.1, 0.7)],
        drawn(4, 6),
    )
    kernel, other = map(own.NPKKernel, models)
    kernel(x).to_dense()
    kernel.load_state_dict(other.state_dict())
    assert_same_bits(kernel(x).to_dense(), other(x).to_dense())


def test_no_inputs(net):
    x = drawn(4, 6)
    for kernel in (kernel_of(net), kernel_of(net, input_shape=(6,)), kernel_of(net, batch_shape=torch.Size([2]))):
        batch = kernel.batch_shape
        assert kernel(x[:0], x).to_dense().shape == (*batch, 0, 4)
        assert kernel(x, x[:0]).to_dense().shape == (*batch, 4, 0)
        assert kernel(x[:0]).to_dense().shape == (*batch, 0, 0)
        assert kernel(x[:0], diag=True).shape == (*batch, 0)


@pytest.mark.usefixtures("exported_once")
def test_batch_norms_with_input_shape_have_their_running_statistics():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)).double(), drawn(5, 6)
    model(drawn(20, 6, seed=1))
    kernel = own.NPKKernel(model, input_shape=(6,)).train()
    assert_close_in_float64(kernel(x).to_dense(), gatedops.npk(model.eval(), x, dtype=torch.float64))


@pytest.mark.parametrize("missing", ["gpytorch", "linear_operator"])
def test_a_missing_package_is_named(missing, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    monkeypatch.delitem(sys.modules, "gatedops.gpytorch")
    message = f"gatedops.gpytorch needs {missing}, which is not installed: pip install 'gpytorch>=1.13'$"
    with pytest.raises(ModuleNotFoundError, match=message):
        importlib.import_module("gatedops.gpytorch")
