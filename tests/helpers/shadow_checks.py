"""Checks the device "shadow" itself (shadow.py); test_shadow.py runs this in a process of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import shadow
import torch
from torch import Tensor, nn

shadow.setup()

DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.uint8,
    torch.int8,
    torch.int32,
    torch.int64,
)


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype, device="shadow")


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bool], ids=str)
def test_tensors_go_there_and_back(dtype):
    x = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)
    y = x.to("shadow")
    assert (y.device, y.dtype, y.shape) == (torch.device("shadow:0"), dtype, x.shape)
    assert torch.equal(y.cpu(), x)
    assert torch.equal(y.t().contiguous().cpu(), x.t())
    assert torch.equal(torch.empty(2, 3, dtype=dtype, device="shadow").copy_(y).cpu(), x)
    assert y.to(torch.float64).sum().item() == 4


def test_views_share_the_memory_of_their_base():
    x = torch.arange(12.0).view(3, 4).to("shadow")
    views = [
        x[1:, ::2],
        x.t(),
        x.view(torch.int32),
        x.as_strided((2,), (5,), 1),
        x.unflatten(1, (2, 2)),
        x[0].expand(2, 4),
    ]
    assert {v.untyped_storage().data_ptr() for v in views} == {x.untyped_storage().data_ptr()}
    x[1:, ::2].t().mul_(10)
    x.view(torch.int32)[0, 0] = 0x3F800000
    x.unflatten(1, (2, 2))[0, 1, 1] = 77
    x.as_strided((2,), (5,), 1).zero_()
    assert x.cpu().tolist() == [[1, 0, 2, 77], [40, 5, 0, 7], [80, 9, 100, 11]]


def test_both_devices_can_lie_in_one_memory():
    here = torch.arange(6.0).view(2, 3)
    there = shadow.to_shadow(here[:, 1:])
    there.mul_(10)
    assert here.tolist() == [[0, 10, 20], [3, 40, 50]]
    shadow.to_cpu(there)[0] = 7
    assert there.cpu().tolist() == [[7, 7], [40, 50]]


def test_results_go_to_out():
    x, out, rows = ones(2, 2), torch.empty(0, device="shadow"), torch.zeros(4, 2, device="shadow")
    assert torch.mm(x, x, out=out) is out
    torch.mm(x, x, out=rows[1:3])
    assert out.cpu().tolist() == [[2, 2], [2, 2]]
    assert rows.cpu().tolist() == [[0, 0], [2, 2], [2, 2], [0, 0]]
    with pytest.raises(RuntimeError, match="single memory location"):
        torch.add(rows[:-1], 1, out=rows[1:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("number", [3, 0.1], ids=str)
def test_numbers_count_as_on_the_cpu(dtype, number):
    x = torch.tensor([1, 2, 5]).to(dtype)
    ops: list[Callable[[Tensor], Tensor]] = [
        lambda t: t + number, lambda t: number - t, lambda t: number / t, lambda t: torch.where(t > 1, t, number),
        lambda t: t.remainder(number), lambda t: torch.xlogy(t, number),
    ]  # fmt: skip
    if isinstance(number, int) and not dtype.is_floating_point:
        ops += [lambda t: t & number, lambda t: t >> number, lambda t: number << t]
    for op in ops:
        for t in (x, x[1]):
            torch.testing.assert_close(op(t.to("shadow")).cpu(), op(t), rtol=0, atol=0)


def train(device: str) -> list[Tensor]:
    torch.manual_seed(0)
    conv = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )
    net, x = copy.deepcopy(conv.to(device)), torch.rand(5, 1, 8, 8).to(device)
    optimizer = torch.optim.Adam(net.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), torch.arange(5, device=device) % 3).backward()
        optimizer.step()
    return [p.detach().cpu() for p in net.parameters()]


def test_nets_are_trained():
    for there, here in zip(train("shadow"), train("cpu"), strict=True):
        torch.testing.assert_close(there, here)


def test_functions_are_transformed():
    x = torch.rand(3, 4).to("shadow")
    mapped = torch.func.vmap(torch.func.grad(lambda row: (row**3).sum()))(x)
    assert mapped.device.type == "shadow"
    torch.testing.assert_close(mapped.cpu(), 3 * x.cpu() ** 2)
    value, tangent = torch.func.jvp(lambda t: (t * t).sum(), (x,), (x,))
    torch.testing.assert_close(tangent.cpu(), 2 * value.cpu())


def test_autocast_lowers_products():
    layer, x = nn.Linear(4, 2).to("shadow"), ones(3, 4)
    with torch.autocast("shadow", dtype=torch.bfloat16):
        y = layer(x)
        assert (y.dtype, (x + 1).dtype, (x.double() @ x.double().t()).dtype) == (torch.bfloat16, x.dtype, torch.float64)
    y.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    "mix",
    [
        lambda x, c: x + c, lambda x, c: c + x, lambda x, c: x.mul_(c), lambda x, c: c @ x, lambda x, c: c[x.long()],
        lambda x, c: torch.cat([x, c]), lambda x, c: nn.functional.linear(x, c[None]), lambda x, c: x.where(c > 0, x),
        lambda x, c: torch.add(x, x, out=c), lambda x, c: torch.sum(x, 0, out=torch.tensor(0.0)),
    ],
)  # fmt: skip
def test_other_devices_are_refused(mix):
    with pytest.raises(RuntimeError, match="same device"):
        mix(ones(3), torch.ones(3))


def test_single_numbers_and_indices_may_be_on_the_cpu():
    x = ones(3)
    assert (x + torch.tensor(2.0)).tolist() == [3, 3, 3]
    x[torch.tensor([0, 2])] = 5
    assert x[torch.tensor([0, 1])].tolist() == [5, 1]


@pytest.mark.parametrize(
    ("name", "wait"),
    [
        ("_local_scalar_dense", lambda x, c: x[0].item()), ("_local_scalar_dense", lambda x, c: bool(x[0] > 0)),
        ("_copy_from", lambda x, c: x.cpu()), ("_copy_from", lambda x, c: x.to("cpu")),
        ("_copy_from", lambda x, c: c.to("shadow")), ("_copy_from", lambda x, c: c.copy_(x)),
        ("_copy_from", lambda x, c: torch.tensor([1.0], device="shadow")), ("_copy_from", lambda x, c: x[[0, 1]]),
        ("nonzero", lambda x, c: x[x > 0]), ("nonzero", lambda x, c: x.nonzero()),
        ("equal", lambda x, c: x.equal(x)), ("masked_select", lambda x, c: x.masked_select(x > 0)),
        ("_index_put_impl_", lambda x, c: x.index_put_((x > 0,), x + 1)),
        ("repeat_interleave", lambda x, c: x.repeat_interleave(x.int())),
        ("_local_scalar_dense", lambda x, c: Waits.apply(x.requires_grad_()).sum().backward()),
    ],
)  # fmt: skip
def test_waiting_is_forbidden(name, wait):
    x, c = ones(3), torch.ones(3)
    with pytest.raises(AssertionError, match=f"aten::{name}"), shadow.no_host_copies():
        wait(x, c)
    with shadow.no_host_copies(forbid=False) as seen:
        wait(ones(3), c)
    assert name in seen[0]


class Waits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * grad[0].item()


def test_work_on_the_device_is_no_waiting():
    x, rows = ones(3), torch.zeros(2, dtype=torch.long, device="shadow")
    with shadow.no_host_copies() as seen, shadow.record() as counts:
        y = (x * 2 + torch.tensor(1.0)).masked_fill_(x > 1, 0.0)[rows]
        y[1:] = 2
        torch.empty(0).to("shadow")
        nn.Linear(2, 2, device="shadow")(y.repeat_interleave(rows + 2, output_size=4)[:2]).sum().backward()
    assert seen == []
    assert counts["aten::masked_fill_.Scalar"] + counts["aten::masked_fill_.Tensor"] == 1


@pytest.mark.parametrize(
    "compute",
    [
        lambda x, c: torch.ones(2, dtype=torch.float64, device="shadow"), lambda x, c: x.double(),
        lambda x, c: x.sum(dtype=torch.float64), lambda x, c: c.to("shadow"), lambda x, c: x.view(torch.float64),
    ],
)  # fmt: skip
def test_float64_can_be_missing(compute):
    x, c, old = ones(4), torch.ones(4, dtype=torch.float64), ones(4, dtype=torch.float64)
    with shadow.without_float64():
        with pytest.raises(TypeError, match="framework doesn't support float64"):
            compute(x, c)
        with pytest.raises(TypeError, match="framework doesn't support float64"):
            old.add_(1)
        assert (x / c[0]).dtype == torch.float32
    assert compute(x, c).dtype == torch.float64


@pytest.fixture
def library() -> Iterator[torch.library.Library]:
    with torch.library._scoped_library("shadow_checks", "DEF") as library:
        library.define("add_(Tensor(a!) x, Tensor? y, int[] n) -> ()")
        library.define("twice(Tensor x) -> Tensor")
        yield library


def test_ops_of_others_reach_their_composite_kernels(library):
    def add_(x: Tensor, y: Tensor | None, n: list[int]) -> None:
        x.add_(sum(n) if y is None else y * sum(n))

    library.impl("add_", add_, "CompositeExplicitAutograd")
    library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
    torch.library.register_autograd("shadow_checks::twice", lambda ctx, grad: grad * 20, lib=library)
    x = ones(3)
    with shadow.record() as counts:
        torch.ops.shadow_checks.add_(x[1:], None, [1, 2])
        torch.ops.shadow_checks.add_(x[:1], x[1:2], [1])
        torch.ops.shadow_checks.twice(x.requires_grad_()).sum().backward()
    assert all(name.startswith("aten::") for name in counts)
    assert x.tolist() == [5, 4, 4]
    assert x.grad.tolist() == [20, 20, 20]


def test_ops_of_others_need_a_kernel(library):
    library.impl("twice", lambda x: x * 2, "CPU")
    with pytest.raises(NotImplementedError, match="shadow_checks::twice"):
        torch.ops.shadow_checks.twice(ones(3))
