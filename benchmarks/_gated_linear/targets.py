"""The speeds that gated layers are held to on a CPU with two threads, and whether this run reaches them."""

from __future__ import annotations

from collections.abc import Iterator

from _gram.targets import Target

from _gated_linear.measure import OURS, Entry


def targets(entries: list[Entry]) -> Iterator[Target]:
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
