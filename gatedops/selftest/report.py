"""What the self-test found: a table for people, and JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from gatedops._version import __version__
from gatedops.backends import forced_backend, triton_package, verdict_files
from gatedops.backends.choice import PORTABLE, Choice, proved_choices
from gatedops.backends.gpus import Gpu
from gatedops.backends.kernels import KernelBackend
from gatedops.backends.verdict_files import Verdicts
from gatedops.backends.verdicts import Verdict, times

_HEAD = ("family", "backend", "verdict", "times as fast, small / large", "choice", "")


@dataclass(frozen=True)
class GpuResult:
    """What was found on one kind of GPU.

    Attributes:
        gpu: the kind.
        device: the one of this kind that was tested, as torch names it.
        verdicts: by family, then by backend.
        missing: what the backends that were not tried need.
        kept: the file of the verdicts, None where it could not be written.
        not_kept: why it could not, or empty.
    """

    gpu: Gpu
    device: str
    verdicts: Verdicts
    missing: dict[str, str]
    kept: str | None
    not_kept: str = ""

    @property
    def is_right(self) -> bool:
        """Whether all that was tried is right."""
        return all(verdict.is_right for by_backend in self.verdicts.values() for verdict in by_backend.values())


def text_of(tested: Sequence[GpuResult], backends: Sequence[KernelBackend]) -> str:
    """For each kind of GPU a table and where its verdicts are kept."""
    chosen = _choices(tested, backends)
    parts = [_text_of_one(found, chosen) for found in tested]
    if forced_backend():
        parts.append(f"GATEDOPS_BACKEND={forced_backend()} is set, and it chooses, whatever the verdicts are.")
    return "\n\n".join(parts)


def _text_of_one(found: GpuResult, chosen: dict[str, Choice]) -> str:
    gpu = found.gpu
    capability = "{}.{}".format(*gpu.capability)
    head = f"{gpu.name}, compute capability {capability}, driver {gpu.driver}, tested on {found.device}"
    table = [f"  {line}" for line in _aligned([_HEAD, *_rows(found, chosen)])]
    return "\n".join([head, *table, _where_kept(found)])


def json_of(tested: Sequence[GpuResult], backends: Sequence[KernelBackend]) -> str:
    """All that was found, timings included, and what it holds for."""
    chosen = _choices(tested, backends)
    return json.dumps(
        {
            "gatedops": __version__,
            "torch": str(torch.__version__),
            "triton": triton_package.version(),
            "backends": {b.name: {"build": b.build(), "sources": b.sources()} for b in backends},
            "gpus": [_as_json(found) for found in tested],
            "chosen": {family: choice.backend for family, choice in chosen.items()},
        },
        indent=1,
    )


def _as_json(found: GpuResult) -> dict[str, Any]:
    return {
        "name": found.gpu.name,
        "capability": "{}.{}".format(*found.gpu.capability),
        "driver": found.gpu.driver,
        "device": found.device,
        "families": {
            family: {name: asdict(verdict) for name, verdict in by_backend.items()}
            for family, by_backend in found.verdicts.items()
        },
        "missing": found.missing,
        "kept": found.kept,
        "not_kept": found.not_kept,
    }


def _choices(tested: Sequence[GpuResult], backends: Sequence[KernelBackend]) -> dict[str, Choice]:
    """The choice for each family that was tested, made of what was found now on all GPUs."""
    choices = proved_choices(backends, [found.verdicts for found in tested])
    return {family: choice for family, choice in choices.items() if any(family in t.verdicts for t in tested)}


def _rows(found: GpuResult, chosen: dict[str, Choice]) -> list[tuple[str, ...]]:
    rows = [
        _row(family, name, verdict, chosen[family].backend)
        for family, by_backend in found.verdicts.items()
        for name, verdict in by_backend.items()
    ]
    return rows + [("-", name, "not tried", "-", "-", missing) for name, missing in found.missing.items()]


def _row(family: str, name: str, verdict: Verdict, chosen: str) -> tuple[str, ...]:
    said = f"right in {verdict.cases} cases" if verdict.is_right else verdict.outcome
    ratios = " / ".join(map(times, verdict.faster)) or "-"
    why = verdict.why
    if verdict.faster and not verdict.is_chosen:
        why = "the portable ops are faster"
    elif verdict.is_chosen and chosen != name:
        why = f"{chosen} is faster" if chosen != PORTABLE else "not chosen: the other GPUs need it right and faster too"
    return (family, name, said, ratios, "chosen" if chosen == name else "-", why)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _where_kept(found: GpuResult) -> str:
    if found.kept is not None:
        return f"The verdicts are kept in {found.kept}."
    return (
        f"The cache folder {verdict_files.folder_in_words()} cannot be written ({found.not_kept}): the verdicts are "
        "not kept, so they do not change which kernels run. GATEDOPS_CACHE names another folder."
    )
