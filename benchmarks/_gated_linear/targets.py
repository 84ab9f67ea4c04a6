"""The speeds that gated layers are held to, on a CPU with two threads and on an H200, and whether they are met."""

from __future__ import annotations

from collections.abc import Iterator

from _gram.targets import Target

from _gated_linear.measure import OURS, PRODUCTS, Entry


def targets(entries: list[Entry]) -> Iterator[Target]:
    """The kernels in C++."""
    for entry in entries:
        if entry.by != OURS:
            continue
        name = f"{entry.kind} {entry.batch} x {entry.width} x {entry.depth}"
        if entry.kind in ("layer", "value"):
            wanted = 0.98 if entry.batch >= 2048 and entry.width >= 256 else 0.85
        else:
            wanted = 1.15 if entry.batch <= 2048 and entry.width <= 512 else 1.0
        yield Target(f"{name}, eager / ours", wanted, entry.speed)
        if entry.kind == "value" and entry.width >= 256 and entry.saved_of_eager is not None:
            yield Target(f"{name}, saved bytes, ours / eager", 0.56, entry.saved_of_eager, at_least=False)


def portable_targets(entries: list[Entry]) -> Iterator[Target]:
    """The portable ops, which are torch's own operations too, cost little over eager torch, forward and backward."""
    for entry in entries:
        if entry.by == OURS:
            name = f"{entry.kind} {entry.batch} x {entry.width} x {entry.depth}"
            yield Target(f"{name}, eager / ours", 1 / 1.1, entry.speed)


def gpu_targets(entries: list[Entry]) -> Iterator[Target]:
    """A pair against the fastest baseline, forward and backward; saved bytes as on a CPU."""
    for entry in entries:
        if entry.by != OURS:
            continue
        size = (entry.batch, entry.width, entry.depth)
        name = f"{entry.kind} {' x '.join(map(str, size))}"
        peers = [e for e in entries if e.kind == entry.kind and (e.batch, e.width, e.depth) == size]
        best = min((e for e in peers if e.by not in (OURS, PRODUCTS)), key=lambda e: e.training_s)
        wanted = {1024: 1.3, 8192: 1.0}.get(entry.width)
        if entry.kind == "pair" and wanted is not None:
            yield Target(f"{name}, {best.by} / ours", wanted, best.training_s / entry.training_s)
        if entry.kind == "value" and entry.saved_of_eager is not None:
            yield Target(f"{name}, saved bytes, ours / eager", 0.56, entry.saved_of_eager, at_least=False)
