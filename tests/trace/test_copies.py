"""Copies of models keep the tensors of a training pass as constants, and errors name a part that cannot be copied."""

from __future__ import annotations

import threading
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune, spectral_norm, weight_norm

from gatedops.trace.copies import copied


class Keeps(nn.Module):
    """Keeps what it computes: as an attribute, in a list, in a dict, as a view, and as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)
        self.register_buffer("state", torch.zeros(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.h = self.fc(x)
        self.all, self.by_name, self.row = [self.h, x], {"h": self.h * 2}, self.h[0]
        self.state = self.h + self.state
        return self.h


def test_what_a_training_pass_left_is_copied_without_its_graph():
    net = nn.Sequential(Keeps(), nn.ReLU())
    net(torch.randn(2, 3))
    copy = copied(net)
    for ours, theirs in [
        (copy[0].h, net[0].h),
        (copy[0].by_name["h"], net[0].by_name["h"]),
        (copy[0].row, net[0].row),
        (copy[0].state, net[0].state),
    ]:
        assert torch.equal(ours, theirs)
        assert not ours.requires_grad
        assert ours.data_ptr() != theirs.data_ptr()
    assert copy[0].all[0] is copy[0].h
    assert copy[0].row.untyped_storage().data_ptr() == copy[0].h.untyped_storage().data_ptr()
    assert net[0].h.requires_grad
    assert [p.requires_grad for p in copy.parameters()] == [True, True]
    net[0].h.sum().backward()
    x = torch.randn(2, 3)
    copy[0].state, net[0].state = torch.zeros(2, 4), torch.zeros(2, 4)
    assert torch.equal(copy(x), net(x))


@pytest.mark.parametrize(
    "wrap", [weight_norm, spectral_norm, lambda layer: prune.l1_unstructured(layer, "weight", 0.5)]
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_weights_that_are_computed_in_a_hook(wrap):
    net = nn.Sequential(wrap(nn.Linear(3, 4)), nn.ReLU())
    x = torch.randn(2, 3)
    net(x).sum().backward()
    copy = copied(net)
    net.eval(), copy.eval()
    assert torch.equal(copy(x), net(x))
    copy(x).sum().backward()
    parameter = next(copy.parameters())
    with torch.no_grad():
        for p in copy.parameters():
            p.mul_(2.0)
    assert parameter.grad is not None
    assert not torch.equal(copy(x), net(x))


def test_weak_references_to_parts_refer_to_the_copys_parts():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    other = nn.Linear(2, 2)
    net[1].behind, net[1].elsewhere = weakref.ref(net[0]), weakref.ref(other)
    copy = copied(net)
    assert copy[1].behind() is copy[0]
    assert copy[1].elsewhere() is other
    assert net[1].behind() is net[0]


class Numbers(nn.Module):
    def __deepcopy__(self, memo: dict) -> Numbers:
        raise RuntimeError("never")


@pytest.mark.parametrize(
    ("attribute", "value", "text"),
    [
        ("lock", threading.Lock(), r"'lock' of 1 \(ReLU\), a lock, cannot be copied \(cannot pickle '_thread.lock'"),
        ("rows", (i for i in range(3)), "'rows' of 1 .ReLU., a generator, cannot be copied"),
        ("kept", {"deep": [threading.Lock()]}, "'kept' of 1 .ReLU., a dict, cannot be copied"),
        ("node", torch.ones(1, requires_grad=True).exp().grad_fn, "'node' of 1 .ReLU., a ExpBackward0, cannot be"),
        ("own", Numbers(), r"1.own \(Numbers\), by its own way of copying, cannot be copied \(never\)"),
    ],
)
def test_what_cannot_be_copied_is_named(attribute, value, text):
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    setattr(net[1], attribute, value)
    with pytest.raises(ValueError, match=f"^net: {text}.*set it to None.*, or pass inplace=True$"):
        copied(net, "net", ", or pass inplace=True")


def test_functions_that_hold_a_part_of_the_model_are_refused():
    class Closure(nn.Module):
        def __init__(self, by_default: bool) -> None:
            super().__init__()
            self.fc = fc = nn.Linear(2, 2)
            self.call = (lambda x, layer=fc: layer(x)) if by_default else (lambda x: fc(x))
            self.square = lambda x: x * x

    for by_default in (False, True):
        with pytest.raises(ValueError, match=r"model: 'call' of 0 \(Closure\) is a function that holds a part of"):
            copied(nn.Sequential(Closure(by_default)))


def test_a_patched_forward_that_calls_the_original_is_refused():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    plain = net[0].forward
    net[0].forward = lambda x: plain(x) * 2
    with pytest.raises(ValueError, match=r"model: 'forward' of 0 \(Linear\) is a function that holds a part of"):
        copied(net)


def test_a_compiled_model_is_copied():
    net = torch.compile(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), backend="eager")
    copy = copied(net)
    assert copy._orig_mod[0] is not net._orig_mod[0]
    x = torch.randn(3, 2)
    assert torch.equal(copy(x), net(x))
