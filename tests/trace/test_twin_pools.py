"""The value network of a twin takes what the feature network's max-pools chose, of every kind; masks of choices."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatedops import GateCache, gated_twin, record_gates
from gatedops.trace import Window

X1, X2, X3 = (torch.randn(3, 2, *[9] * axes) for axes in (1, 2, 3))
ATEN, NN = torch.ops.aten, torch._C._nn


class Pooling(nn.Module):
    """Runs a ReLU, a convolution without bias and a pool: negated weights give the negated input of the pool."""

    def __init__(self, pool, axes: int) -> None:
        super().__init__()
        self.conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](2, 3, 2, bias=False)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv(F.relu(x)))


def unpooled(z: Tensor) -> Tensor:
    maxima, index = F.max_pool2d(z, 2, return_indices=True)
    return F.max_unpool2d(maxima, index, 2)


# Lists every way to call a max-pool, with the inputs of the network.
POOLS = {
    "MaxPool1d": (nn.MaxPool1d(3, 2, 1), X1),
    "MaxPool2d": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), X2),
    "MaxPool3d": (nn.MaxPool3d(2, dilation=2), X3),
    "AdaptiveMaxPool1d": (nn.AdaptiveMaxPool1d(3), X1),
    "AdaptiveMaxPool2d": (nn.AdaptiveMaxPool2d((3, None)), X2),
    "AdaptiveMaxPool3d": (nn.AdaptiveMaxPool3d(3), X3),
    "FractionalMaxPool2d": (nn.FractionalMaxPool2d(2, output_ratio=0.6), X2),
    "FractionalMaxPool3d": (nn.FractionalMaxPool3d(2, output_size=3), X3),
    "with indices": (lambda z: F.max_pool2d(z, 2, return_indices=True)[0], X2),
    "adaptive with indices": (lambda z: F.adaptive_max_pool2d(z, 2, True)[0], X2),
    "fractional with indices": (lambda z: F.fractional_max_pool2d_with_indices(z, 2, 3)[0], X2),
    "unpooled": (unpooled, X2),
    "torch.max_pool1d": (lambda z: torch.max_pool1d(z, 2), X1),
    "torch.max_pool1d_with_indices": (lambda z: torch.max_pool1d_with_indices(z, 2)[0], X1),
    "torch.max_pool3d": (lambda z: torch.max_pool3d(z, 2), X3),
    "torch.adaptive_max_pool1d": (lambda z: torch.adaptive_max_pool1d(z, 2)[0], X1),
    "torch._C._nn": (lambda z: NN.max_pool2d_with_indices(z, [2, 2])[0], X2),
    "aten": (lambda z: ATEN.max_pool2d(z, [2, 2]), X2),
    "aten, by name": (lambda z: ATEN.max_pool2d.default(self=z, kernel_size=[2, 2]), X2),
    "aten adaptive": (lambda z: ATEN.adaptive_max_pool2d.default(z, [2, 3])[0], X2),
    "aten with indices": (lambda z: ATEN.max_pool3d_with_indices.default(z, [2, 2, 2])[0], X3),
    "in channels_last": (lambda z: F.max_pool2d(z.to(memory_format=torch.channels_last), 2), X2),
    "one input of 1-d": (nn.MaxPool1d(2), X1[0]),
    "one input of 2-d": (nn.MaxPool2d(3), X2[0]),
    "one input, adaptive": (nn.AdaptiveMaxPool2d(2), X2[0]),
    "one input of 3-d": (nn.MaxPool3d(2), X3[0]),
}


@pytest.mark.parametrize("kind", POOLS)
def test_the_value_network_takes_what_the_feature_network_chose(kind):
    pool, x = POOLS[kind]
    net = Pooling(pool, x.shape.count(9))
    twin = gated_twin(net)
    with torch.no_grad():
        twin.value.conv.weight.copy_(-net.conv.weight)
    torch.manual_seed(0)
    expected = -net(x)
    torch.manual_seed(0)
    output = twin(x)
    assert torch.equal(output, expected)
    torch.manual_seed(0)
    own = gated_twin(net, twin.value, pool="value")(x)
    assert not torch.equal(own, expected)
    weight = twin.value.conv.weight
    torch.manual_seed(0)
    (expected_grad,) = torch.autograd.grad((net(x) ** 3).sum(), net.conv.weight)
    (grad,) = torch.autograd.grad((output**3).sum(), weight)
    torch.testing.assert_close(grad, expected_grad)
    torch.manual_seed(0)
    expected = net(x)
    torch.manual_seed(0)
    assert torch.equal(gated_twin(net, net)(x), expected)


@pytest.mark.parametrize("kind", ["max", "amax", "method"])
def test_a_maximum_that_is_no_max_pool_call_is_the_value_networks_own_and_is_told(kind):
    pool = {
        "max": lambda z: torch.max(z, -1)[0],
        "amax": lambda z: torch.amax(z, (2, 3)),
        "method": lambda z: z.flatten(2).max(2, keepdim=True).values,
    }[kind]
    net = nn.Sequential(Pooling(pool, 2), nn.Identity())
    twin = gated_twin(net)
    with torch.no_grad():
        twin.value[0].conv.weight.copy_(-net[0].conv.weight)
    with pytest.warns(UserWarning, match=r"value: 0\.a?max takes the value network's own largest.*adaptive_max_pool"):
        output = twin(X2)
    assert torch.equal(output, pool(-net[0].conv(X2.relu())))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(gated_twin(net, twin.value, pool="value")(X2), output)


def test_pools_of_another_size_are_refused():
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv2d(2, 3, 1, bias=False), nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            z = self.conv(F.relu(x))
            return self.pool(z if self.conv.weight.sum() > 0 else z[:1])

    net = Cut()
    twin = gated_twin(net)
    with torch.no_grad():
        twin.feature.conv.weight.fill_(1.0)
        twin.value.conv.weight.fill_(-1.0)
    with pytest.raises(ValueError, match=r"value: pool pools \(1, 3, 9, 9\), in the feature network \(3, 3, 9, 9\)"):
        twin(X2)


# --- masks ------------------------------------------------------------------------------------------------------

WINDOWS = [
    Window((2, 2), (2, 2), (0, 0), (1, 1)),
    Window((3, 3), (2, 2), (1, 1), (1, 1), True),
    Window((3, 2), (1, 3), (1, 0), (2, 1)),
]


def chosen_by_hand(z: Tensor, window: Window) -> Tensor:
    """Returns, for each output, the flat index of the largest input, the first in row order among equal ones."""
    height, width = F.max_pool2d(
        z, window.kernel, window.stride, window.padding, window.dilation, window.ceil_mode
    ).shape[-2:]
    found = torch.zeros(*z.shape[:2], height, width, dtype=torch.int64)
    for n, c, i, j in torch.cartesian_prod(*[torch.arange(size) for size in found.shape]).tolist():
        best = None
        for u in range(window.kernel[0]):
            for v in range(window.kernel[1]):
                row = i * window.stride[0] - window.padding[0] + u * window.dilation[0]
                column = j * window.stride[1] - window.padding[1] + v * window.dilation[1]
                if 0 <= row < z.shape[2] and 0 <= column < z.shape[3]:
                    value = z[n, c, row, column].item()
                    if best is None or value > best:
                        best, found[n, c, i, j] = value, row * z.shape[3] + column
    return found


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_first_of_equal_inputs_is_chosen_and_masks_hold_it(window, layout):
    torch.manual_seed(0)
    for z in (torch.zeros(2, 3, 7, 8), torch.randint(-1, 2, (2, 3, 7, 8)).float(), torch.randn(2, 3, 7, 8)):
        index = window.chosen(z.to(memory_format=layout))
        assert torch.equal(index, chosen_by_hand(z, window))
        masks = window.masks(index, 8)
        assert (masks.sum(1) == 1).all()
        assert torch.equal(window.index(masks, 8), index)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_choices_of_an_image_do_not_depend_on_its_batch(before, layout):
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 2, 3, bias=False)
    tail = (nn.MaxPool2d(2), nn.ReLU()) if before else (nn.ReLU(), nn.MaxPool2d(2))
    net = nn.Sequential(conv, *tail).to(memory_format=layout)
    x = torch.randn(4, 1, 8, 8)
    x[1] = 0.0
    x[2] = -x[2].abs()
    bits = [record_gates(net, x, size, max_pool=True) for size in (1, 2, 4)]
    assert bits[0] == bits[1] == bits[2]
    masks = next(m for m in bits[0].unpack() if m.dim() == 5)
    assert masks[0].any()
    assert not masks[1].any()  # no gate of this image is on
    cached = [GateCache.build(gated_twin(net), x, size).bits for size in (1, 4)]
    assert cached[0] == cached[1]
