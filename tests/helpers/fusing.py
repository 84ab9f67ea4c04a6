"""A check that the tests of fuse_relu share."""

from __future__ import annotations

import torch
from tolerances import assert_same_bits
from torch import Tensor, nn

from gatedops import fuse_relu


def kept(net: nn.Module) -> dict[str, str]:
    return dict(net.fuse_report.kept)


def assert_same_network(net: nn.Module, x: Tensor) -> nn.Module:
    """Fuses a network, checks that outputs, state_dict and gradients are those of `net`, and returns the fused one."""
    fused = fuse_relu(net, x)
    assert fused is not net
    with torch.no_grad():
        assert_same_bits(fused(x), net(x))
    expected, found = net.state_dict(), fused.state_dict()
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert_same_bits(found[key], value)
    output, ours = net(x), fused(x)
    assert_same_bits(ours, output)
    output.square().sum().backward()
    ours.square().sum().backward()
    for a, b in zip(fused.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
    net.zero_grad()
    return fused
