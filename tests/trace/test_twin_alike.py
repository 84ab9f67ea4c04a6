"""Both networks of a twin get the same inputs, random numbers and Python numbers; caches need inputs as rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatedops import GateCache, gated_twin


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.t = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(1, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


class Writes(Net):
    def forward(self, x: Tensor) -> Tensor:
        x -= 1.0
        return super().forward(x)


class Pops(Net):
    def forward(self, given: dict[str, Tensor]) -> Tensor:
        return super().forward(given.pop("x"))


class Masked(Net):
    """Keeps two tokens of each input, chosen at random."""

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.rand(x.shape[:2]).argsort(1)[:, :2, None].expand(-1, -1, x.shape[2])
        return super().forward(x.gather(1, kept))


class Timed(Net):
    """Takes a time as a number or as a tensor."""

    def forward(self, x: Tensor, time: float | Tensor) -> Tensor:
        if not isinstance(time, Tensor):
            time = torch.full((len(x), 1), float(time))
        return self.b(F.relu(self.a(x) + F.relu(self.t(time))))


class TokensFirst(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(0, 1)).mean(0)


class Sorted(Net):
    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        return super().forward(x[order])[order.argsort()]


def test_a_model_that_writes_into_its_inputs_is_refused():
    with pytest.raises(ValueError, match=r"writes into its inputs, which its twin takes twice.*x\.clone"):
        gated_twin(Writes())(torch.randn(4, 5))


def test_a_model_that_empties_its_inputs_finds_them_twice():
    net, x = Pops(), torch.randn(4, 5)
    given = {"x": x}
    assert torch.equal(gated_twin(net, net)(given), net({"x": x}))


def test_both_networks_draw_the_same_random_numbers():
    net, x = Masked(), torch.randn(4, 6, 5)
    torch.manual_seed(0)
    found, after = gated_twin(net, net)(x), torch.rand(())
    torch.manual_seed(0)
    assert torch.equal(found, net(x))
    assert torch.equal(after, torch.rand(()))


def test_a_number_is_an_input_too():
    twin, x = gated_twin(Timed()), torch.randn(4, 5)
    assert torch.equal(twin(x, 3), twin(x, torch.full((4, 1), 3.0)))


@pytest.mark.parametrize(("net", "shape"), [(TokensFirst(), (8, 4, 5)), (Sorted(), (8, 5))])
def test_a_cache_whose_rows_are_not_the_inputs_is_refused(net, shape):
    torch.manual_seed(0)
    with pytest.raises(
        ValueError,
        match=r"the inputs are not the first axis of the tensors that its ReLUs work on|sorts, shuffles or mixes",
    ):
        GateCache.build(gated_twin(net).eval(), torch.randn(shape), batch_size=4)
