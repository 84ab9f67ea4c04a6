"""Compares ntk, the tangent kernel and its parts, with Jacobians that torch.autograd gives one by one."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import made, mlp
from tolerances import FLOAT64_SUMS, assert_as_good_as_torch, assert_close_in_float64, assert_same_bits
from torch import Tensor, nn

from gatedops import (
    DGN,
    DLGN,
    GateBits,
    GatedConv2d,
    GatedLinear,
    SoftReLU,
    gated_linear_pair,
    gated_twin,
    npk_gram,
    ntk,
)
from gatedops.nn import conv_spec, fc_spec
from gatedops.path_kernels.ntk import PARTS

# These are the beta and the gain of the soft gates.
WEIGHTS = (4.0, 0.7)


def jacobian(outputs: Tensor, parameters: list[Tensor]) -> Tensor:
    """Computes the derivatives ``(n, C, P)`` of the outputs ``(n, C)``, one by one."""
    rows = []
    for output in outputs.flatten():
        found = torch.autograd.grad(output, parameters, retain_graph=True, allow_unused=True)
        zeros = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
        rows.append(torch.cat([z.flatten() for z in zeros]))
    return torch.stack(rows).view(*outputs.shape, -1)


def kernel(a: Tensor, b: Tensor) -> Tensor:
    """Computes the kernel ``(n, m, C, C)`` of two Jacobians."""
    return torch.einsum("icp,jdp->ijcd", a, b)


def trace(full: Tensor) -> Tensor:
    return full.diagonal(dim1=2, dim2=3).sum(-1)


def trained(net: nn.Module) -> list[Tensor]:
    return [p for p in net.parameters() if p.requires_grad]


def soft_mlp(seed: int = 0) -> nn.Sequential:
    """Makes a float64 net with inputs (n, 6), two layers of soft gates and 3 outputs."""
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 5), SoftReLU(*WEIGHTS), nn.Linear(5, 7), SoftReLU(*WEIGHTS), nn.Linear(7, 3)]
    return nn.Sequential(*layers).double()


def split_jacobians(net: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    """Computes psi^V and psi^F ``(n, C, P)`` of soft_mlp from two copies of its weights, for values and for gates."""
    beta, gain = WEIGHTS
    copies = [[p.detach().clone().requires_grad_() for p in net.parameters()] for _ in range(2)]
    values, gates = (list(zip(copy[::2], copy[1::2], strict=True)) for copy in copies)
    z = h = x
    for (w_v, b_v), (w_f, b_f) in zip(values[:-1], gates[:-1], strict=True):
        q = h @ w_f.T + b_f
        gate = gain / (1 + torch.exp(-beta * q))
        h, z = q * gate, (z @ w_v.T + b_v) * gate
    outputs = z @ values[-1][0].T + values[-1][1]
    return jacobian(outputs, copies[0]), jacobian(outputs, copies[1])


class Pair(nn.Module):
    """A deep gated network by hand: two layers of gated_linear_pair and an output layer."""

    def __init__(self, gate: str) -> None:
        super().__init__()
        self.gate = gate
        self.feature = nn.ModuleList([nn.Linear(6, 9), nn.Linear(9, 4)])
        self.value = nn.ModuleList([nn.Linear(6, 9), nn.Linear(9, 4)])
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = z = x
        for f, v in zip(self.feature, self.value, strict=True):
            h, z, _ = gated_linear_pair(h, f.weight, f.bias, z, v.weight, v.bias, gate=self.gate)
        return self.head(z)


class OneOutput(nn.Module):
    """Returns one output without an axis for it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).squeeze(1).tanh()


def gated_layers() -> nn.Sequential:
    return nn.Sequential(GatedLinear(6, 33), GatedLinear(33, 5), nn.Linear(5, 3))


def gated_conv() -> nn.Sequential:
    return nn.Sequential(nn.Unflatten(1, (1, 2, 3)), GatedConv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(24, 3))


def soft_conv() -> nn.Sequential:
    conv = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), SoftReLU(), nn.MaxPool2d((1, 3)))
    return nn.Sequential(nn.Unflatten(1, (1, 2, 3)), conv, nn.Flatten(), nn.Linear(8, 3))


SPEC = fc_spec(6, [7, 5], 3)
CONV_SPEC = conv_spec((1, 2, 3), [4, 3], [5], 3, "gap")

NETS: dict[str, Callable[[], nn.Module]] = {
    "relu": mlp,
    "soft relu": soft_mlp,
    "soft relu, convolution": soft_conv,
    "gated layers": gated_layers,
    "gated convolution": gated_conv,
    "hard pair": lambda: Pair("hard"),
    "soft pair": lambda: Pair("soft"),
    "hard twin": lambda: gated_twin(mlp()),
    "soft twin": lambda: gated_twin(mlp(), gate="soft", train_features=True),
    "twin with frozen soft gates": lambda: gated_twin(mlp(), gate="soft"),
    "twin of soft gates' own": lambda: gated_twin(nn.Sequential(mlp(), SoftReLU(), nn.Linear(3, 3))),
    "DGN": lambda: DGN(SPEC),
    "DGN, hard gates": lambda: DGN(SPEC, "FR-II"),
    "DGN, soft frozen gates": lambda: DGN(SPEC, "FR-II", gate="soft"),
    "DGN, other order, all ones": lambda: DGN(fc_spec(6, [7, 7], 3), order=[1, 0], value_input="ones"),
    "DGN, convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, 2, 3)), DGN(CONV_SPEC)),
    "DLGN": lambda: DLGN(SPEC),
    "DLGN, shallow": lambda: DLGN(SPEC, shallow=True),
    "no gates": lambda: nn.Linear(6, 3),
    "one output": OneOutput,
}


def net_and_inputs(name: str, n: int = 5, m: int = 3) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(1)
    return NETS[name]().double().eval(), torch.randn(n, 6).double(), torch.randn(m, 6).double()


# --- the kernel ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_the_parts_sum_to_the_kernel_of_the_jacobian(name):
    net, x, y = net_and_inputs(name)
    jx, jy = (jacobian(net(rows).view(len(rows), -1), trained(net)) for rows in (x, y))
    assert_close_in_float64(sum(ntk(net, x, y, outputs="full").values()), kernel(jx, jy))
    assert_close_in_float64(sum(ntk(net, x).values()), trace(kernel(jx, jx)))


@pytest.mark.parametrize("name", ["vgg", "resnet", "transformer", "every form"])
@pytest.mark.parametrize("twin", [False, True])
def test_networks_as_people_write_them(name, twin):
    net, x = made(name, 2)
    net = gated_twin(net, net) if twin and name != "every form" else net
    net, x = net.double().eval(), x.double()
    found = ntk(net, x)
    assert_close_in_float64(found["V"], trace(kernel(*[jacobian(net(x), trained(net))] * 2)))
    assert not found["F"].any()
    assert not found["CROSS"].any()


def test_soft_gates_of_a_net_of_its_own_have_all_three_parts():
    net, (x, y) = soft_mlp(), torch.randn(2, 5, 6).double()
    (vx, fx), (vy, fy) = split_jacobians(net, x), split_jacobians(net, y)
    found = ntk(net, x, y, outputs="full")
    assert tuple(found) == PARTS
    for part, expected in {
        "V": kernel(vx, vy),
        "F": kernel(fx, fy),
        "CROSS": kernel(vx, fy) + kernel(fx, vy),
    }.items():
        assert_close_in_float64(found[part], expected)
        assert expected.abs().max() > 1e-3
        assert_close_in_float64(ntk(net, x, y, outputs="full", parts=[part])[part], expected)


@pytest.mark.parametrize("name", ["soft twin", "hard twin", "twin with frozen soft gates", "DGN", "DLGN, shallow"])
def test_networks_of_their_own_have_kernels_of_their_own(name):
    net, x, y = net_and_inputs(name)
    found = ntk(net, x, y)
    for part, network in (("V", net.value), ("F", net.feature)):
        jx, jy = (jacobian(net(rows), trained(network)) if trained(network) else None for rows in (x, y))
        expected = torch.zeros(5, 3).double() if jx is None else trace(kernel(jx, jy))
        assert_close_in_float64(found[part], expected)
    assert not found["CROSS"].any()
    assert found["F"].any() == (name in ("soft twin", "DGN", "DLGN, shallow"))


def test_steep_soft_gates_are_hard_ones():
    net = mlp().double()
    soft = nn.Sequential(*(SoftReLU(1e9) if isinstance(layer, nn.ReLU) else layer for layer in net))
    x = torch.randn(4, 6).double()
    hard = ntk(net, x)
    assert not hard["F"].any()
    found = ntk(soft, x)
    assert_close_in_float64(found["V"], hard["V"])
    assert not found["F"].any()


def test_what_is_frozen_has_no_part():
    net, x = soft_mlp(), torch.randn(4, 6).double()
    net[0].requires_grad_(False)
    j = jacobian(net(x), trained(net))
    assert j.shape[2] == sum(p.numel() for p in net[2:].parameters())
    assert_close_in_float64(sum(ntk(net, x).values()), trace(kernel(j, j)))


# --- value weights drawn ------------------------------------------------------------------------------------


def hard_gated(sizes: list[int]) -> tuple[nn.Module, Tensor, Tensor]:
    """Makes a twin without biases, inputs (3, d_in), and d times the path kernel of its random gates."""
    torch.manual_seed(8)
    layers = [nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(sizes)]
    net = nn.Sequential(*itertools.chain(*((layer, nn.ReLU()) for layer in layers[:-1])), layers[-1]).double()
    x = torch.rand(3, sizes[0]).double()
    twin, gates, h = gated_twin(net), [], x
    for layer in layers[:-1]:
        q = h @ layer.weight.detach().T
        gates.append(q > 0)
        h = q.relu()
    h_kernel = npk_gram(x, GateBits.pack(gates), scale="none", dtype=torch.float64)
    assert h_kernel.count_nonzero() > 3
    return twin, x, len(layers) * h_kernel


@pytest.mark.parametrize("sizes", [[2, 2, 2], [1, 2, 2, 1]])
def test_mean_over_all_signs_of_the_value_weights_is_d_times_the_path_kernel(sizes):
    twin, x, expected = hard_gated(sizes)
    weights = list(twin.value.parameters())
    count, total = sum(w.numel() for w in weights), 0.0
    for signs in itertools.product((-1.0, 1.0), repeat=count):
        nn.utils.vector_to_parameters(torch.tensor(signs).double(), weights)
        total = total + ntk(twin, x, parts=["V"], outputs="full")["V"]
    assert_close_in_float64(total / 2**count, expected[:, :, None, None] * torch.eye(sizes[-1]).double())


def test_mean_over_drawn_value_weights_is_d_times_the_path_kernel():
    twin, x, expected = hard_gated([4, 12, 12, 12, 1])
    generator, sigma, draws = torch.Generator().manual_seed(0), 0.6, 200
    kernels = []
    for _ in range(draws):
        for weight in twin.value.parameters():
            weight.data.normal_(std=sigma, generator=generator)
        kernels.append(ntk(twin, x, parts=["V"])["V"])
    found = torch.stack(kernels)
    z = (found.mean(0) - sigma**6 * expected) / (found.std(0) / draws**0.5)
    assert z.abs().max() < 4


# --- batches, types, modes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["soft relu", "soft twin", "gated layers"])
@pytest.mark.parametrize("outputs", ["trace", "full"])
def test_blocks_change_nothing(name, outputs):
    net, x, y = net_and_inputs(name, 7, 5)
    whole = ntk(net, x, y, outputs=outputs), ntk(net, x, outputs=outputs)
    for size in (2, 3, 7):
        for expected, second in zip(whole, (y, None), strict=True):
            found = ntk(net, x, second, outputs=outputs, batch_size=size)
            for part in PARTS:
                assert (found[part] - expected[part]).abs().max() <= FLOAT64_SUMS * expected["V"].abs().max()


@settings(max_examples=12)
@given(n=st.integers(1, 5), m=st.integers(1, 5), size=st.integers(1, 4), seed=st.integers(0, 2**20))
def test_any_number_of_rows(n, m, size, seed):
    net, (x, y) = soft_mlp(seed), torch.randn(n + m, 6).double().split([n, m])
    jx, jy = (jacobian(net(rows), trained(net)) for rows in (x, y))
    found = ntk(net, x, y, batch_size=size, parts=("CROSS", "V", "F"))
    assert tuple(found) == ("CROSS", "V", "F")
    assert_close_in_float64(sum(found.values()), trace(kernel(jx, jy)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [3, None])
def test_symmetric_to_the_last_bit(dtype, size):
    net, x = soft_mlp(), torch.randn(7, 6)
    for part in ntk(net, x, dtype=dtype, batch_size=size).values():
        assert part.dtype == dtype
        assert_same_bits(part, part.T.contiguous())
    for part in ntk(net, x, dtype=dtype, batch_size=size, outputs="full").values():
        assert_same_bits(part, part.permute(1, 0, 3, 2).contiguous())


def test_each_unordered_pair_of_blocks_once():
    net, x = mlp(), torch.randn(6, 6)
    rows: list[int] = []
    net[0].register_forward_hook(lambda _, args, output: rows.append(1))
    # 3 outputs have 3 + 2 + 1 blocks each, with one call for all rows of a block; two calls try a row first.
    ntk(net, x, batch_size=2)
    assert len(rows) == 2 + 3 * (3 + 2 + 1)


def test_dtypes():
    net, x = soft_mlp(), torch.randn(4, 6)
    exact = ntk(net, x.double())
    assert_same_bits(ntk(net, x)["V"], exact["V"])
    assert net[0].weight.dtype == torch.float64
    narrow, (v, f) = ntk(net.float(), x), split_jacobians(net.float(), x)
    for part, expected in {"V": kernel(v, v), "F": kernel(f, f), "CROSS": kernel(v, f) + kernel(f, v)}.items():
        assert_as_good_as_torch(narrow[part], trace(expected), exact[part])
    assert ntk(net.bfloat16(), x, dtype=torch.float32)["F"].dtype == torch.float32


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_inside_any_gradient_mode(context):
    net, x, _ = net_and_inputs("soft twin")
    expected = ntk(net, x)
    with context():
        found = ntk(net, x.requires_grad_() if context is torch.enable_grad else x)
    for part in PARTS:
        assert_same_bits(found[part], expected[part])
        assert not found[part].requires_grad


def test_compiled_models():
    net, x = soft_mlp(), torch.randn(4, 6).double()
    expected, found = ntk(net, x), ntk(torch.compile(net, backend="eager"), x)
    for part in PARTS:
        assert_same_bits(found[part], expected[part])


def test_other_strides():
    net, x = soft_mlp(), torch.randn(6, 8).double().T[:, :6]
    assert_same_bits(ntk(net, x)["F"], ntk(net, x.contiguous())["F"])


def test_the_model_stays_as_it_was():
    net, x = soft_mlp(), torch.randn(4, 6).double()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    ntk(net, x)
    with pytest.raises(ValueError, match="x: the model does not take inputs of shape"):
        ntk(nn.Sequential(net, nn.Linear(4, 4)), x)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())


def test_the_bar(capsys, monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr("gatedops.progress._DELAY", 0.0)
    for progress, word in ((None, ""), (False, ""), (True, "tangent kernel")):
        ntk(mlp(), torch.randn(4, 6), batch_size=1, progress=progress)
        error = capsys.readouterr().err
        assert word in error
        assert bool(error) == bool(word)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    ntk(mlp(), torch.randn(2, 6))
    with pytest.raises(ModuleNotFoundError, match="pip install tqdm"):
        ntk(mlp(), torch.randn(2, 6), progress=True)


# --- SoftReLU -----------------------------------------------------------------------------------------------


def test_soft_relu_is_its_formula():
    q = torch.linspace(-3, 3, 13).double()
    layer = SoftReLU(2.0, 1.1)
    assert_close_in_float64(layer(q), q * 1.1 / (1 + torch.exp(-2 * q)))
    assert_close_in_float64(layer.gate(q), 1.1 / (1 + torch.exp(-2 * q)))
    assert repr(layer) == "SoftReLU(beta=2.0, gain=1.1)"
    assert torch.autograd.gradcheck(layer, q.requires_grad_())


@pytest.mark.parametrize("wrong", [{"beta": 0}, {"gain": -1.0}, {"beta": float("nan")}, {"gain": float("inf")}])
def test_soft_relu_refuses(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: got .* needs a positive number"):
        SoftReLU(**wrong)


# --- errors -------------------------------------------------------------------------------------------------

ROWS = torch.randn(4, 6)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).view(-1, 2, 3)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc(x), x


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "model: got builtin_function_or_method, needs a torch.nn.Module", {"model": torch.relu}),
        (ValueError, "model: has no parameters that require a gradient", {"model": nn.ReLU()}),
        (ValueError, "model: has no parameters", {"model": mlp().requires_grad_(False)}),
        (
            ValueError,
            r"model: 1 \(BatchNorm1d\) is in training mode",
            {"model": nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))},
        ),
        (
            ValueError,
            r"model: 1 \(BatchNorm1d\) keeps no running statistics",
            {"model": nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3, track_running_stats=False)).eval()},
        ),
        (
            ValueError,
            r"model: 1 \(Dropout\) is in training mode; call model.eval\(\) first",
            {"model": nn.Sequential(nn.Linear(6, 3), nn.Dropout())},
        ),
        (ValueError, r"model: gives \(1, 2, 3\) for one input, needs \(1, C\)", {"model": Tokens()}),
        (ValueError, "model: gives tuple for one input", {"model": Twice()}),
        (TypeError, "x: got list, needs a tensor", {"x": [1.0]}),
        (ValueError, r"x: got shape \(0, 6\), needs at least one row", {"x": ROWS[:0]}),
        (ValueError, r"y: got shape \(\), needs at least one row", {"y": torch.tensor(1.0)}),
        (ValueError, r"y: got rows \(5,\), those of x are \(6,\)", {"y": ROWS[:, :5]}),
        (ValueError, "x: is on meta, the model is on cpu", {"x": ROWS.to("meta")}),
        (TypeError, "parts: got 'CROSS', needs a tuple such as", {"parts": "CROSS"}),
        (ValueError, r"parts: got \('V', 'W'\), needs some of \('V', 'F', 'CROSS'\)", {"parts": ["V", "W"]}),
        (ValueError, r"parts: got \(\)", {"parts": ()}),
        (ValueError, "outputs: got 'mean', needs 'trace' or 'full'", {"outputs": "mean"}),
        (ValueError, "batch_size: got 0", {"batch_size": 0}),
        (ValueError, "batch_size: got 2.5", {"batch_size": 2.5}),
        (TypeError, "dtype: got torch.float16, needs torch.float32 or torch.float64", {"dtype": torch.float16}),
        (TypeError, "dtype: the model is torch.bfloat16; give", {"model": mlp().bfloat16()}),
    ],
)
def test_errors(error, message, arguments):
    arguments = {"model": mlp(), "x": ROWS} | arguments
    with pytest.raises(error, match=message):
        ntk(arguments.pop("model"), arguments.pop("x"), **arguments)
