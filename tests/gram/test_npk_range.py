"""npk is right over many layers, in float32, for fully connected networks, and under rotations of images."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from architectures import NETWORKS, conv, fc, relu
from nets import made, mlp
from recipes import Recipe, op
from tolerances import FLOAT32_KERNEL, FLOAT32_ROTATIONS, assert_close_in_float64, assert_same_bits
from torch import Tensor, nn

from gatedops import npk, npk_gram, record_gates
from gatedops import progress as progress_module

pytestmark = pytest.mark.usefixtures("exported_once")


def cosines(gram: Tensor) -> Tensor:
    gram = gram.double()
    return gram / (gram.diag()[:, None] * gram.diag()).sqrt()


def chain(layers: int) -> Recipe:
    made = [conv("c0", "x", out=32), relu("g0", "c0")]
    for i in range(1, layers):
        made += [conv(f"c{i}", f"g{i - 1}", out=32), relu(f"g{i}", f"c{i}")]
    return Recipe([*made, op("m", "mean", f"g{layers - 1}"), fc("o", "m")], (3, 4, 4))


def residual(blocks: int) -> Recipe:
    made = [conv("c", "x", out=32), relu("r", "c")]
    last = "r"
    for i in range(blocks):
        made += [conv(f"a{i}", last, out=32), relu(f"b{i}", f"a{i}"), conv(f"c{i}", f"b{i}", out=32)]
        made += [op(f"s{i}", "add", f"c{i}", last), relu(f"r{i}", f"s{i}")]
        last = f"r{i}"
    return Recipe([*made, op("m", "mean", last), fc("o", "m")], (3, 4, 4))


@pytest.mark.parametrize("kernel", ["npk", "ntk"])
@pytest.mark.parametrize("net", [chain(20), residual(10)], ids=["chain", "residual"])
def test_twenty_layers_stay_in_the_range_of_float32(net, kernel):
    x = net.inputs(4)
    for sigma, bias in ((1.0, "ignore"), (1 / 17, "path")):
        options = {"kernel": kernel, "sigma": sigma, "bias": bias, "return_exponent": True}
        truth, exponent = npk(net, x, dtype=torch.float64, **options)
        ours, same_exponent = npk(net, x, **options)
        assert exponent == same_exponent
        assert (ours.diag() > torch.finfo(torch.float32).tiny).all()
        assert (cosines(ours) - cosines(truth)).abs().max() < FLOAT32_KERNEL
    largest, exponent = npk(net, x, dtype=torch.float64, kernel=kernel, return_exponent=True)
    assert largest.max().log2() + exponent > 128, "beyond float32 without the exponent"


def test_one_exponent_for_all_inputs():
    net, x = made("resnet", 6)
    whole, exponent = npk(net, x, return_exponent=True)
    for a, b in ((slice(0, 2), slice(2, 6)), (slice(3, 6), slice(0, 6))):
        part, same = npk(net, 1e3 * x[a], 1e3 * x[b], return_exponent=True)
        assert same == exponent
        assert part.shape == whole[a, b].shape
    part = npk(net, x[:2], x[2:], batch_size=1)
    assert (part - whole[:2, 2:]).abs().max() < FLOAT32_KERNEL * whole.max()
    assert not whole.requires_grad
    assert whole.dtype == torch.float32
    assert_same_bits(whole, npk(net, x.requires_grad_()))


@pytest.mark.parametrize("sigma", [1.0, 0.01, [0.5, 3.0, 2.0]])
def test_fully_connected_networks_go_to_npk_gram(sigma):
    net, x = mlp().double(), torch.randn(5, 6, dtype=torch.float64)
    bits = record_gates(net, x)
    variances = [s**2 for s in (sigma if isinstance(sigma, list) else [sigma] * 3)]
    paths = npk_gram(x, bits, scale="none", dtype=torch.float64)
    expected = paths * variances[0] * variances[1] * variances[2]
    ours, exponent = npk(net, x, sigma=sigma, dtype=torch.float64, return_exponent=True)
    assert_close_in_float64(ours * 2.0**exponent, expected)
    tangent, exponent = npk(net, x, kernel="ntk", sigma=sigma, dtype=torch.float64, return_exponent=True)
    assert_close_in_float64(tangent * 2.0**exponent, expected * sum(1 / v for v in variances))


def test_a_chain_has_a_tangent_kernel_that_is_a_multiple_of_its_npk():
    net = Recipe(*NETWORKS["mean"])
    x = net.inputs(4)
    paths, exponent = npk(net, x, dtype=torch.float64, return_exponent=True)
    tangent, other = npk(net, x, kernel="ntk", sigma=0.5, dtype=torch.float64, return_exponent=True)
    assert_close_in_float64(tangent * 2.0**other, paths * 2.0**exponent * 3 * 0.5**4)


def circular(head: str) -> nn.Sequential:
    torch.manual_seed(0)
    convs = []
    for inside, outside in ((3, 8), (8, 8), (8, 8)):
        convs += [nn.Conv2d(inside, outside, 3, padding=1, padding_mode="circular"), nn.ReLU()]
    if head == "flatten":
        return nn.Sequential(*convs, nn.Flatten(), nn.Linear(8 * 30, 2))
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


ROTATIONS = [(0, 1), (3, 0), (2, 4)]


def test_circular_padding_and_a_mean_make_it_invariant_to_rotations():
    net, x = circular("mean"), torch.randn(4, 3, 5, 6)
    gram = npk(net, x, x)
    for shift in ROTATIONS:
        turned = npk(net, x, x.roll(shift, (2, 3)))
        assert (turned - gram).abs().max() < FLOAT32_ROTATIONS * gram.max()
    zeros = copy.deepcopy(net)
    for index in (0, 2, 4):
        zeros[index].padding_mode = "zeros"
    turned = npk(zeros, x, x.roll((2, 4), (2, 3)))
    assert (turned - npk(zeros, x, x)).abs().max() > 0.01 * turned.max(), "and zero padding does not"


def test_a_mean_averages_the_kernel_of_flattened_images_over_rotations():
    x = torch.randn(3, 3, 5, 6, dtype=torch.float64)
    mean, exponent = npk(circular("mean").double(), x, x, dtype=torch.float64, return_exponent=True)
    flat = circular("flatten").double()
    turned = torch.cat([x.roll((i, j), (2, 3)) for i in range(5) for j in range(6)])
    grams, other = npk(flat, x, turned, dtype=torch.float64, return_exponent=True)
    assert_close_in_float64(mean * 2.0**exponent, grams.view(3, 30, 3).sum(1) * 2.0**other / 30**2)


def test_blocks_of_the_gram_and_their_bar(capsys, monkeypatch):
    net = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1))
    x = torch.randn(300, 1, 2, 2)
    pytest.importorskip("tqdm")
    monkeypatch.setattr(progress_module, "_DELAY", 0.0)
    gram = npk(net, x, progress=True)
    assert "kernel" in capsys.readouterr().err
    assert_same_bits(gram, gram.T.contiguous())
    assert_same_bits(gram[:130, 130:], npk(net, x[:130], x[130:], progress=False))
    assert capsys.readouterr().err == ""


def mostly_off(layers: int, kind: str) -> nn.Sequential:
    """Makes a deep net in which one gate of 16 is on in every layer."""
    modules: list[nn.Module] = []
    for index in range(layers):
        width = 1 if index == 0 else 16
        layer = nn.Conv2d(width, 16, 1) if kind == "conv" else nn.Linear(width, 16)
        with torch.no_grad():
            layer.bias.copy_(torch.where(torch.arange(16) == 3, 1e6, -1e6))
            layer.weight.mul_(0)
        modules += [layer, nn.ReLU()]
    return nn.Sequential(*modules, *([nn.Flatten()] if kind == "conv" else []), nn.Linear(16, 1))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["npk", "ntk"])
@pytest.mark.parametrize("kind", ["conv", "dense"])
def test_one_warning_where_a_kernel_vanishes(kind, kernel):
    net, x = mostly_off(40, kind), torch.ones(3, 1, 1, 1) if kind == "conv" else torch.ones(3, 1)
    message = "the kernel of row 0 of x has numbers of at most 1e-.*vanish in torch.float32; use dtype=torch.float64$"
    for sides in ((x,), (x, x[:2])):
        with pytest.warns(UserWarning, match=message) as found:
            npk(net, *sides, kernel=kernel)
        assert [warning.filename for warning in found] == [__file__]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            gram, exponent = npk(net, *sides, kernel=kernel, dtype=torch.float64, return_exponent=True)
        expected = 1.0 if kernel == "npk" else 41.0
        assert_close_in_float64(gram * 2.0**exponent, torch.full_like(gram, expected))
    deep = mostly_off(280, kind)
    with pytest.warns(UserWarning, match="vanish in torch.float64; multiply the inputs by a constant"):
        npk(deep, x, kernel=kernel, dtype=torch.float64)


def test_no_warning_where_a_kernel_is_0():
    net = mostly_off(2, "dense")
    nn.init.constant_(net[2].bias, -1e6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not npk(net, torch.ones(2, 1)).any()
        assert not npk(net, torch.zeros(2, 1)).any()
