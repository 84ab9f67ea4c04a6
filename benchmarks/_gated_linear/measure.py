"""Times of one net: forward alone, and forward with backward; bytes kept for the backward; a check of the results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from _common.timing import Timing, interleaved_medians, readable_seconds
from torch import Tensor

from _gated_linear.nets import KINDS, Net

OURS, EAGER, PRODUCTS = "gatedops", "torch eager", "products alone"
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


def check(net: Net) -> None:
    """RuntimeError where gatedops and eager torch differ: no speed is given for a wrong result."""
    found, expected = ([r.detach() for r in f(net.x)] for f in (net.ours, net.eager))
    for ours, eager in zip(found, expected, strict=True):
        if not torch.allclose(ours, eager, rtol=1e-4, atol=1e-4 * float(eager.abs().max())):
            raise RuntimeError(f"gatedops is wrong: {KINDS[net.kind]}, {net.cell}")


def contestants(net: Net, compiled: bool) -> dict[str, Callable[[Tensor], tuple[Tensor, ...]]]:
    """What is timed; compiled ones are compiled here, for both kinds of run."""
    nets: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {OURS: net.ours, EAGER: net.eager}
    for name, mode in COMPILED.items() if compiled else ():
        torch._dynamo.reset()
        nets[name] = torch.compile(net.eager, fullgraph=True, dynamic=False, mode=mode)
        net.training(nets[name])()
        net.forward(nets[name])()
    return nets


def measure(net: Net, repeats: int, *, compiled: bool) -> list[Entry]:
    check(net)
    nets = contestants(net, compiled)
    label = f"{net.kind} {net.cell}"
    forward = {name: net.forward(f) for name, f in nets.items()} | {PRODUCTS: lambda: net.products(backward=False)}
    training = {name: net.training(f) for name, f in nets.items()} | {PRODUCTS: lambda: net.products(backward=True)}
    forwards = interleaved_medians(forward, repeats, label=f"{label}, forward")
    trainings = interleaved_medians(training, repeats, label=f"{label}, training")
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
