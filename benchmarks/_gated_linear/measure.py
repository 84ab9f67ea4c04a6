"""Times of one net: forward alone, and forward with backward; bytes kept for the backward; a check of the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from _common.gpu_timing import interleaved_gpu_medians
from _common.timing import Timing, interleaved_medians, readable_seconds
from torch import Tensor

from _gated_linear.cublaslt import CublasLtError, library
from _gated_linear.nets import KINDS, Cell, Net
from _gated_linear.two_calls import TwoCalls

OURS, EAGER, PRODUCTS, TWO_CALLS = "gatedops", "torch eager", "products alone", "cuBLASLt, two calls"
COMPILED = {"torch.compile": None, "torch.compile, max-autotune": "max-autotune"}
HEADER = ("net", "by", "forward", "of eager", "forward + backward", "of eager", "of limit", "saved bytes", "of eager")


@dataclass(frozen=True)
class Entry:
    """One contestant on one net; times are medians in seconds, `samples` those of forward and backward.

    speed         time of eager over this time, forward and backward
    forward_speed the same of the forward alone
    share         time of the matrix products alone over this time, forward and backward
    saved_bytes   kept for the backward beside parameters; None where torch.compile decides
    """

    kind: str
    batch: int
    width: int
    depth: int
    by: str
    forward_s: float
    training_s: float
    samples: tuple[float, ...]
    forward_speed: float
    speed: float
    share: float
    saved_bytes: int | None
    saved_of_eager: float | None

    def row(self) -> tuple[str, ...]:
        saved = ("-", "-") if self.saved_bytes is None else (f"{self.saved_bytes:,}", f"{self.saved_of_eager:.2f}x")
        return (
            f"{self.batch} x {self.width} x {self.depth}: {KINDS[self.kind]}",
            self.by,
            readable_seconds(self.forward_s),
            f"{self.forward_speed:.2f}x",
            readable_seconds(self.training_s),
            f"{self.speed:.2f}x",
            f"{self.share:.0%}",
            *saved,
        )

    def to_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Failure:
    """A contestant without times on one net; `reason` is the error."""

    kind: str
    batch: int
    width: int
    depth: int
    by: str
    reason: str

    def row(self) -> tuple[str, ...]:
        name = f"{self.batch} x {self.width} x {self.depth}: {KINDS[self.kind]}"
        return (name, self.by, "failed", *["-"] * (len(HEADER) - 3))

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def failure(kind: str, cell: Cell, by: str, error: Exception) -> Failure:
    return Failure(kind, cell.batch, cell.width, cell.depth, by, f"{type(error).__name__}: {error}")


def saved_bytes(net: Net, forward: Callable[[Tensor], tuple[Tensor, ...]]) -> int:
    """Bytes that autograd keeps of one forward; parameters, which are there anyway, are not counted, and what is
    kept twice is counted once."""
    parameters = {parameter.data_ptr() for parameter in net.parameters}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        results = forward(net.x)
    assert results[0].requires_grad
    return sum(kept.values())


# Of the largest result, over several layers; a product close to 0 may open a gate for one and not for the other, so
# in the halves a few results are left out of account.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}
LEFT_OUT = {torch.float32: 0.0, torch.bfloat16: 1e-3, torch.float16: 1e-3}


def check(net: Net, found: Sequence[Tensor], by: str) -> None:
    """RuntimeError where a contestant and eager torch differ: no speed is given for a wrong result."""
    with torch.no_grad():
        expected = net.eager(net.x)
    for ours, eager in zip(found, expected, strict=True):
        wrong = (ours.detach() - eager).abs() > TOLERANCE[eager.dtype] * (eager.abs() + eager.abs().max())
        if float(wrong.double().mean()) > LEFT_OUT[eager.dtype] or bool(ours.isnan().any()):
            raise RuntimeError(f"{by} is wrong: {KINDS[net.kind]}, {net.cell}")


def contestants(net: Net, compiled: bool) -> dict[str, Callable[[Tensor], tuple[Tensor, ...]]]:
    """What is timed; compiled ones are compiled here, for both kinds of run."""
    nets: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {OURS: net.ours, EAGER: net.eager}
    for name, mode in COMPILED.items() if compiled else ():
        torch._dynamo.reset()
        nets[name] = torch.compile(net.eager, fullgraph=True, dynamic=False, mode=mode)
        net.training(nets[name])()
        net.forward(nets[name])()
    return nets


def has_two_calls(net: Net) -> bool:
    """Whether the cuBLASLt baseline can be tried: on a GPU, with hard gates, where the library is reached."""
    return net.x.device.type == "cuda" and net.kind != "soft" and library() is not None


def two_calls(net: Net) -> dict[str, TwoCalls]:
    """The cuBLASLt baseline, checked."""
    planned = TwoCalls(net)
    planned.training()
    check(net, planned.results(), TWO_CALLS)
    return {TWO_CALLS: planned}


def measure(net: Net, repeats: int, *, compiled: bool) -> tuple[list[Entry], list[Failure]]:
    """Times of all contestants, and the baseline that has none because cuBLASLt refuses a product or is wrong."""
    check(net, net.ours(net.x), OURS)
    failures = []
    planned: dict[str, TwoCalls] = {}
    if has_two_calls(net):
        try:
            planned = two_calls(net)
        except (RuntimeError, ValueError) as error:
            failures.append(failure(net.kind, net.cell, TWO_CALLS, error))
    nets = contestants(net, compiled)
    try:
        return _timed(net, nets, planned, repeats), failures
    except CublasLtError as error:
        return _timed(net, nets, {}, repeats), [failure(net.kind, net.cell, TWO_CALLS, error)]


def _timed(
    net: Net, nets: dict[str, Callable[[Tensor], tuple[Tensor, ...]]], planned: dict[str, TwoCalls], repeats: int
) -> list[Entry]:
    label = f"{net.kind} {net.cell}"
    forward = {name: net.forward(f) for name, f in nets.items()} | {PRODUCTS: lambda: net.products(backward=False)}
    forward |= {name: one.forward for name, one in planned.items()}
    training = {name: net.training(f) for name, f in nets.items()} | {PRODUCTS: lambda: net.products(backward=True)}
    training |= {name: one.training for name, one in planned.items()}
    medians = interleaved_medians if net.x.device.type == "cpu" else interleaved_gpu_medians
    forwards = medians(forward, repeats, label=f"{label}, forward")
    trainings = medians(training, repeats, label=f"{label}, training")
    saved = {name: saved_bytes(net, nets[name]) for name in (OURS, EAGER)}
    return [_entry(net, name, forwards, trainings, saved) for name in forward]


def _entry(
    net: Net, name: str, forwards: dict[str, Timing], trainings: dict[str, Timing], saved: dict[str, int]
) -> Entry:
    cell = net.cell
    forward_s, training_s = forwards[name].median, trainings[name].median
    return Entry(
        net.kind,
        cell.batch,
        cell.width,
        cell.depth,
        name,
        forward_s,
        training_s,
        trainings[name].samples,
        forwards[EAGER].median / forward_s,
        trainings[EAGER].median / training_s,
        trainings[PRODUCTS].median / training_s,
        saved.get(name),
        saved[name] / saved[EAGER] if name in saved else None,
    )
