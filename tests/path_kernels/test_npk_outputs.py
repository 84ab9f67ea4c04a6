"""npk, npf and npv of networks whose outputs are squeezed, padded with channels of zeros, or several."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_close_in_float64
from torch import Tensor, nn

from gatedops import npf, npk, npv


class Net(nn.Module):
    """A function as a network, with layers to use."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.fc, self.one, self.other, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 1)
        self.small, self.conv, self.last = nn.Linear(3, 1), nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 1, 2)

    def forward(self, x: Tensor):
        return self.function(self, x)


def heads(net: Net, x: Tensor) -> dict[str, Tensor]:
    h = net.fc(x).relu()
    return {"policy": net.head(net.one(h).relu()), "value": net.small(net.other(h).relu()).squeeze(1)}


def shortcut(net: Net, x: Tensor) -> Tensor:
    """The shortcut of a ResNet for CIFAR: every other pixel, and channels of zeros on both sides."""
    return net.last((net.conv(x).relu() + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))).relu()).squeeze()


VECTORS, IMAGES = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, 4, 4, dtype=torch.float64)
CASES = {
    "squeeze": (lambda net, x: net.head(net.fc(x).relu()).squeeze(-1), VECTORS, None),
    "view": (lambda net, x: net.head(net.fc(x).relu()).view(-1), VECTORS, None),
    "one column": (lambda net, x: net.head(net.fc(x).relu())[:, 0], VECTORS, None),
    "images": (lambda net, x: net.last(net.conv(x).relu()).squeeze(), IMAGES, None),
    "channels of zeros": (shortcut, IMAGES, None),
    "softmax": (lambda net, x: net.one(net.fc(x).relu()).log_softmax(1), VECTORS, None),
    "sigmoid, then view": (lambda net, x: net.head(net.fc(x).relu()).sigmoid().view(-1, 1).squeeze(1), VECTORS, None),
    "sum of pixels": (lambda net, x: net.head(net.conv(x).relu().sum((2, 3))), IMAGES, None),
    "first of two": (heads, VECTORS, "policy"),
    "second of two": (heads, VECTORS, "value"),
}


@pytest.mark.parametrize("name", CASES)
def test_kernels_features_and_values(name):
    torch.manual_seed(0)
    function, x, output = CASES[name]
    net = Net(function).double().eval()
    gram, exponent = npk(net, x, dtype=torch.float64, return_exponent=True, output=output)
    phi = npf(net, x, bias="ignore", output=output)
    assert_close_in_float64(gram * 2.0**exponent, phi @ phi.T)
    with torch.no_grad():
        outputs = net(x) if output is None else net(x)[output]
        made = npf(net, x, output=output) @ npv(net, x, output=output)
    made = made.log_softmax(1) if name == "softmax" else made.sigmoid() if "sigmoid" in name else made
    assert_close_in_float64(made.flatten(), outputs.flatten())


def test_a_gate_that_no_output_needs_is_refused():
    """Its name would be taken for that of another gate."""

    def dead(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = net.fc(x)
        F.relu(hidden)
        return net.head(F.relu(net.one(hidden))), net.head(hidden)

    with pytest.raises(
        ValueError, match=r"calls the activations and max-pools .*; path kernels need a network without"
    ):
        npk(Net(dead).double().eval(), VECTORS, output=0)
