"""torch's FlopCounterMode counts gated layers as it counts Linear and ReLU."""

from __future__ import annotations

import pytest
import torch
from forked import run_forked
from nets import mlp, vgg
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gatedops import GatedConv2d, GatedLinear, fuse_relu, gated_linear, gated_linear_pair


def flops(net: nn.Module, *inputs: Tensor) -> tuple[int, int]:
    """Returns the flops of a forward, and of a forward with its backward."""
    counts = []
    for backward in (False, True):
        with FlopCounterMode(display=False) as counter:
            output = net(*inputs)
            if backward:
                output.sum().backward()
        counts.append(counter.get_total_flops())
    return counts[0], counts[1]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    ("make", "shape"), [(mlp, (5, 6)), (mlp, (2, 3, 6)), (lambda: mlp(bias=False), (5, 6)), (vgg, (2, 3, 8, 8))]
)
def test_a_fused_net_counts_like_the_net(make, shape, grad):
    net, x = make(), torch.randn(shape, requires_grad=grad)
    fused = fuse_relu(net)
    assert fused.fuse_report.replaced
    assert flops(fused, x) == flops(net, x)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        fused(x)
    assert counter.get_total_flops() == flops(net, x)[0]


def test_frozen_layers_count_their_gradients_alone():
    net, x = mlp(), torch.randn(5, 6)
    net[0].requires_grad_(False)
    net[2].weight.requires_grad_(False)
    assert flops(fuse_relu(net), x) == flops(net, x)


def test_counts_by_hand():
    x = torch.randn(5, 6, requires_grad=True)
    product = 2 * 5 * 6 * 7
    assert flops(GatedLinear(6, 7), x) == (product, 3 * product)
    layer = GatedConv2d(2, 3, 2)
    image = torch.randn(4, 2, 5, 5, requires_grad=True)
    assert flops(layer, image) == flops(nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU()), image)


@pytest.mark.parametrize("gate", [torch.ones(5, 7, dtype=torch.bool), torch.rand(5, 7)], ids=["hard", "soft"])
@pytest.mark.parametrize("grads", [(False, True), (True, False), (True, True)])
def test_gates_from_outside(gate, grads):
    x, weight = torch.randn(5, 6, requires_grad=grads[0]), torch.randn(7, 6, requires_grad=grads[1])
    product = 2 * 5 * 6 * 7
    with FlopCounterMode(display=False) as counter:
        gated_linear(x, weight, None, gate).sum().backward()
    assert counter.get_total_flops() == product * (1 + sum(grads))


@pytest.mark.parametrize("trained", ["both", "value", "feature"])
@pytest.mark.parametrize("gate", ["hard", "soft"])
@pytest.mark.parametrize("feature", ["relu", "linear"])
def test_pairs(gate, feature, trained):
    h, z = torch.randn(5, 6), torch.randn(5, 4)
    w_f = torch.randn(7, 6, requires_grad=trained != "value")
    w_v = torch.randn(7, 4, requires_grad=trained != "feature")
    forward_f, forward_v = 2 * 5 * 6 * 7, 2 * 5 * 4 * 7
    with FlopCounterMode(display=False) as counter:
        h_next, z_next, _ = gated_linear_pair(h, w_f, None, z, w_v, None, gate=gate, feature=feature)
    assert counter.get_total_flops() == forward_f + forward_v
    with FlopCounterMode(display=False) as counter:
        (h_next.sum() + z_next.sum()).backward()
    assert counter.get_total_flops() == forward_f * (trained != "value") + forward_v * (trained != "feature")


def test_the_import_of_gatedops_does_not_import_the_counter():
    code = """
import sys, torch
alone = "torch.utils.flop_counter" in sys.modules
import gatedops
assert ("torch.utils.flop_counter" in sys.modules) == alone
finders = len(sys.meta_path)
from torch.utils.flop_counter import FlopCounterMode, flop_registry
assert torch.ops.gatedops.gated_linear in flop_registry
assert len(sys.meta_path) == finders - (not alone)
with FlopCounterMode(display=False) as counter:
    gatedops.GatedLinear(6, 7)(torch.zeros(5, 6))
assert counter.get_total_flops() == 420, counter.get_total_flops()
"""
    run_forked(code, imports="torch")
