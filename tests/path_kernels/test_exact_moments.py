"""npk's programs give the second moments of networks over random weights, which helpers/exact_moments.py propagates as
dense matrices, without any of the rules of docs/math.md, section 13."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from random_steps import FLOAT64, StepNet, random_net
from strategies import examples
from tolerances import assert_close_in_float64

from gatedops import trace


class Refused(Exception):
    """Path kernels do not cover a network."""


def assert_exact(net: StepNet, *, biases: bool = False, seed: int = 0) -> None:
    x = torch.randn(3, *net.shape(0), dtype=FLOAT64, generator=torch.Generator().manual_seed(seed))
    outputs = net.outputs(x)
    for tangent in (False, True):
        options = {"biases": biases, "tangent": tangent}
        try:
            kernel = net.kernel(x, outputs, **options)
        except ValueError as error:
            raise Refused(str(error)) from error
        assert_close_in_float64(kernel, net.exact(x, outputs, **options))


def depthwise() -> StepNet:
    net = StepNet((2, 5, 4))
    net.conv(4)
    net.gate()
    net.conv(8, groups=4, stride=2)
    net.gate()
    net.conv(3, 1)
    net.gate()
    return net.head()


def depthwise_twice() -> StepNet:
    net = StepNet((2, 5, 4))
    net.conv(4)
    net.gate()
    net.conv(4, groups=4)
    net.gate()
    net.conv(4, groups=4, stride=2)
    net.gate()
    net.conv(2)
    return net.head()


def depthwise_of_the_input() -> StepNet:
    net = StepNet((3, 5, 4))
    net.conv(3, groups=3)
    net.gate()
    net.conv(6, groups=3, stride=2)
    net.gate()
    net.conv(2)
    return net.head()


def groups() -> StepNet:
    net = StepNet((4, 4, 4))
    net.conv(6, groups=2)
    net.gate()
    net.conv(6, groups=3)
    net.gate()
    net.conv(4, 1)
    net.gate()
    return net.head()


def dense_block() -> StepNet:
    net = StepNet((2, 4, 4))
    net.conv(3)
    first = net.gate()
    net.cat(net.conv(4), first)
    second = net.gate()
    net.cat(net.conv(5), second, 0)
    net.gate()
    net.conv(3)
    return net.head()


def shuffled() -> StepNet:
    net = StepNet((2, 4, 4))
    net.conv(6)
    whole = net.gate()
    left = net.moved(lambda x: x[:, :3], whole)
    right = net.moved(lambda x: x[:, 3:], whole)
    net.conv(3, groups=3, of=right)
    net.gate()
    net.cat(left, net.conv(3, 1))
    net.moved(lambda x: F.channel_shuffle(x, 2))
    net.conv(4, groups=2)
    net.gate()
    return net.head()


def pools_in_a_row() -> StepNet:
    net = StepNet((2, 8, 8))
    net.conv(4)
    net.gate()
    net.max_pool(3, 2)
    net.max_pool(3, 1)
    net.conv(3)
    net.gate()
    return net.head()


def depthwise_behind_a_max_pool() -> StepNet:
    net = StepNet((2, 6, 6))
    net.conv(4)
    net.gate()
    net.max_pool(3, 2)
    net.conv(4, groups=4)
    net.gate()
    net.conv(2)
    return net.head()


def slopes() -> StepNet:
    net = StepNet((2, 5, 4))
    net.conv(3)
    net.gate(slope=-1.0)
    net.max_pool(2, 2)
    net.conv(4)
    net.gate(slope=torch.tensor([0.1, 0.3, 0.1, 0.0], dtype=FLOAT64))
    net.conv(4, groups=4)
    net.gate(slope=0.2)
    net.conv(4)
    net.gate(inside=(0.0, 1.0))
    return net.head()


def slopes_of_a_sum() -> StepNet:
    net = StepNet((2, 4, 4))
    net.conv(3)
    first = net.gate(slope=0.2)
    net.add(trace.Add, first, net.conv(3))
    net.gate(slope=0.3)
    net.conv(2)
    net.gate()
    return net.head()


def tokens() -> StepNet:
    net = StepNet((5, 3))
    net.linear(4)
    net.gate()
    net.linear(6)
    net.gate()
    net.add(trace.Mean, axes=(0,), keepdim=False)
    net.linear(2)
    return net


def one_token() -> StepNet:
    net = StepNet((5, 3))
    net.linear(4)
    net.gate()
    net.moved(lambda x: x[:, 0])
    net.linear(2)
    return net


def sequence() -> StepNet:
    net = StepNet((3, 7))
    net.conv(4)
    net.gate()
    net.conv(4, groups=2)
    net.gate()
    net.add(trace.Mean, axes=(1,), keepdim=False)
    net.linear(2)
    return net


def moved_pixels() -> StepNet:
    net = StepNet((2, 4, 4))
    net.moved(lambda x: F.pad(x, (1, 1, 1, 1), "reflect"))
    net.conv(3, pad=0)
    net.gate()
    net.moved(lambda x: F.pad(x, (1, 1, 1, 1), "replicate"))
    net.conv(3, pad=0, groups=3)
    net.gate()
    net.conv(3, 1)
    net.gate()
    net.moved(lambda x: F.interpolate(x, scale_factor=2))
    net.gate()
    net.conv(2)
    return net.head()


def uneven_averages() -> StepNet:
    net = StepNet((2, 5, 4))
    net.conv(3)
    net.gate()
    net.adaptive(3)
    net.conv(3)
    net.adaptive(2)
    net.gate()
    return net.head()


def scaled() -> StepNet:
    net = StepNet((2, 4, 4))
    net.add(trace.Scale, factor=torch.tensor([0.3, -2.0], dtype=FLOAT64).view(2, 1, 1))
    net.conv(3)
    branch = net.add(trace.Scale, factor=torch.tensor(-0.3, dtype=FLOAT64))
    net.add(trace.Add, branch, net.conv(3, of=0))
    net.gate()
    return net.head()


def channels_last() -> StepNet:
    net = StepNet((4, 3, 2))
    net.moved(lambda x: x.permute(0, 3, 1, 2))
    net.conv(3)
    net.gate()
    net.moved(lambda x: x.flatten(2).mT)
    net.linear(5)
    net.gate()
    return net.head()


NETWORKS = [
    *(depthwise, depthwise_twice, depthwise_of_the_input, groups, dense_block, shuffled, pools_in_a_row),
    *(depthwise_behind_a_max_pool, slopes, slopes_of_a_sum, tokens, one_token, sequence, moved_pixels),
    *(uneven_averages, scaled, channels_last),
]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)
def test_kernels_are_the_exact_moments(network):
    assert_exact(network())


def test_biases_start_paths_in_groups_and_depthwise_layers():
    net = StepNet((2, 4, 4))
    net.conv(4, bias=True)
    net.gate()
    net.conv(4, groups=4, bias=True)
    net.gate()
    net.conv(4, groups=2, bias=True)
    net.add(trace.AddConstant, constant=net.normal(4, 1, 1))
    net.gate()
    assert_exact(net.head(), biases=True)
    assert_exact(net, biases=False)


@examples(60)
@given(st.integers(0, 2**31), st.booleans())
def test_random_networks(seed, biases):
    net = random_net(seed)
    # Some of these networks are refused, such as h + h.
    with suppress(Refused):
        assert_exact(net, biases=biases, seed=seed)
