"""Twins refuse networks that run a part a second time for the gradients, and the way that errors name works."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from gatedops import gated_twin

pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")

FORMS = {"reentrant": True, "non-reentrant": False}
LEARNT = {"gate": "soft", "train_features": True}


class Block(nn.Module):
    def __init__(self, drop: float) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(6, 6), nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(F.relu(self.norm(self.b(F.relu(self.a(x))))))


class Net(nn.Module):
    """Has two blocks and a head; `how` says how the blocks are checkpointed."""

    def __init__(self, how=None, drop: float = 0.0) -> None:
        super().__init__()
        self.first, self.second, self.head = Block(drop), Block(drop), nn.Linear(6, 3)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        for block in (self.first, self.second):
            x = block(x) if self.how is None else self.how(block, x)
        return self.head(x)


def nested(reentrant: bool):
    def run(block: nn.Module, x: Tensor) -> Tensor:
        inner = lambda x: checkpoint(block, x, use_reentrant=reentrant)  # noqa: E731
        return checkpoint(inner, x, use_reentrant=reentrant)

    return run


HOWS = {
    "checkpoint": lambda reentrant: lambda block, x: checkpoint(block, x, use_reentrant=reentrant),
    "a function": lambda reentrant: lambda block, x: checkpoint(lambda y: block(y) + y, x, use_reentrant=reentrant),
    "nested": nested,
    "sequential": lambda reentrant: (
        lambda block, x: checkpoint_sequential([nn.Identity(), block, nn.Identity()], 2, x, use_reentrant=reentrant)
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", HOWS)
def test_a_checkpoint_in_the_model_is_refused_by_layer_and_nothing_is_left(how, form):
    x = torch.randn(4, 6, requires_grad=True)
    net = Net(HOWS[how](FORMS[form]))
    for given, role in (({}, "value"), (LEARNT, "model")):
        twin = gated_twin(net, **given)
        with pytest.raises(
            ValueError, match=rf"{role}: first\.relu runs under torch.utils.checkpoint.*turn checkpoint"
        ):
            twin(x)
        assert not torch._C._len_torch_function_stack()
        assert torch.is_grad_enabled()
        with torch.no_grad():  # without gradients nothing runs twice
            plain = Net()
            plain.load_state_dict(net.state_dict())
            expected = gated_twin(plain, **given).eval()
            expected.load_state_dict(twin.state_dict())
            output = twin.eval()(x)
            assert how == "a function" or torch.equal(output, expected(x))


@pytest.mark.parametrize("kind", ["value", "feature", "off"])
def test_batch_norms_and_pools_under_a_checkpoint_are_refused_only_if_they_are_replayed(kind):
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.head = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(self.norm, F.relu(self.a(x)), use_reentrant=False))

    twin, x = gated_twin(Normed(), batch_norm=kind).eval(), torch.randn(4, 6)
    if kind != "value":
        with pytest.raises(ValueError, match=r"value: norm runs under torch\.utils\.checkpoint"):
            twin(x)
        return
    z = twin.value.a(x) * (twin.feature.a(x) > 0)
    expected = torch.autograd.grad(twin.value.head(twin.value.norm(z)).sum(), twin.value.a.weight)[0]
    (found,) = torch.autograd.grad(twin(x).sum(), twin.value.a.weight)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("given", [{}, LEARNT], ids=["hard", "learnt"])
def test_a_checkpoint_around_the_twin_gives_its_gradients(form, given):
    x = torch.randn(4, 6, requires_grad=True)
    twin = gated_twin(Net(drop=0.5), **given).train()
    found = []
    for run in (twin, lambda x: checkpoint(twin, x, use_reentrant=FORMS[form])):
        twin.zero_grad()
        torch.manual_seed(0)
        run(x).square().sum().backward()
        found.append([None if p.grad is None else p.grad.clone() for p in twin.parameters()])
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)


def test_layers_under_a_checkpoint_that_call_no_relu_are_fine():
    class Free(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(lambda y: torch.tanh(self.b(y)), F.relu(self.a(x)), use_reentrant=True)

    twin, x = gated_twin(Free()), torch.randn(4, 6)
    twin(x).sum().backward()
    z = (twin.value.a(x) * (twin.feature.a(x) > 0)).detach()
    expected = torch.autograd.grad(torch.tanh(twin.value.b(z)).sum(), twin.value.b.weight)[0]
    torch.testing.assert_close(twin.value.b.weight.grad, expected)


class OwnRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * (ctx.saved_tensors[0] > 0)


def test_a_relu_inside_an_autograd_function_is_refused():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return OwnRelu.apply(self.a(x))

    twin = gated_twin(nn.Sequential(Own()))
    with pytest.raises(ValueError, match=r"value: 0\.clamp runs inside the autograd function OwnRelu.*F\.relu"):
        twin(torch.randn(4, 6))
    with torch.no_grad():
        twin(torch.randn(4, 6))


def test_a_part_without_gradients_is_fine():
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                z = F.relu(self.a(x))
            return self.b(z)

    twin, x = gated_twin(Frozen()), torch.randn(4, 6)
    torch.testing.assert_close(twin(x), twin.value.b(twin.value.a(x) * (twin.feature.a(x) > 0)))
