"""On the device "meta" every public function gives the shapes, dtypes and strides that it gives on the CPU."""

from __future__ import annotations

import copy

import pytest
from architectures import network
from dgns import HARD, VARIANTS, inputs_of, model_of
from nets import INPUTS, made
from public_calls import CALLS, FLOAT32, FLOAT64, Things, fields, gradients
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gatedops import GateCache, fuse_relu, gated_twin, npf, npk, npv, ntk, record_gates

HERE = {dtype: Things(dtype) for dtype in (FLOAT32, FLOAT64)}


def assert_shaped_alike(found, expected, *, strides=True):
    ours, theirs = pytree.tree_leaves(fields(found)), pytree.tree_leaves(fields(expected))
    for one, other in zip(ours, theirs, strict=True):
        if isinstance(other, Tensor):
            assert one.is_meta
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            assert not strides or one.stride() == other.stride()
        else:
            assert one == other


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", HERE, ids=str)
def test_function_and_its_gradients(name, dtype):
    here, there = HERE[dtype], HERE[dtype].on("meta")
    found, expected = CALLS[name](there), CALLS[name](here)
    assert_shaped_alike(found, expected)
    assert_shaped_alike(gradients(found, there.numbers()), gradients(expected, here.numbers()), strides=False)


def on_meta(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    return copy.deepcopy(model).to("meta"), x.to("meta")


@pytest.mark.parametrize("variant", VARIANTS)
def test_dgn(variant):
    model, x = model_of("gconv", variant), inputs_of("gconv", 6)
    twin, inputs = on_meta(model, x)
    y = twin(inputs)
    assert_shaped_alike(y, model(x))
    y.sum().backward()
    assert all(p.grad.is_meta for p in twin.value.parameters())
    if variant in HARD:
        cache = GateCache.build(twin, inputs, 4)
        assert cache.bits.layers == model.gates(x).layers
        assert_shaped_alike(twin(inputs[:2], gates=cache[:2]), y[:2])


@pytest.mark.parametrize("name", INPUTS)
def test_nets_of_others(name):
    net, x = made(name, 5)
    twin, inputs = on_meta(net, x)
    for max_pool in (False, True):
        found, expected = (record_gates(*of, 2, max_pool=max_pool) for of in ((twin, inputs), (net, x)))
        assert_shaped_alike(found, expected)
        assert found.layers == expected.layers
    for kind in ({"gate": "hard"}, {"gate": "soft", "train_features": True}):
        assert gated_twin(twin, **kind)(inputs).shape == net(x).shape
    assert fuse_relu(twin, inputs)(inputs).shape == net(x).shape


@pytest.mark.usefixtures("exported_once")
@pytest.mark.parametrize("name", ["fully connected", "residual, strided shortcut", "overlapping max-pool with padding"])
def test_kernels_of_nets(name):
    net = network(name)
    x, y = net.inputs(5), net.inputs(3)
    twin, inputs = on_meta(net, x)
    for kernel in ("npk", "ntk"):
        found = npk(twin, inputs, y.to("meta"), kernel=kernel, return_exponent=True)
        assert_shaped_alike(found, npk(net, x, y, kernel=kernel, return_exponent=True))
    assert_shaped_alike(ntk(twin, inputs), ntk(net, x))
    assert_shaped_alike([npf(twin, inputs), npv(twin, inputs)], [npf(net, x), npv(net, x)], strides=False)
