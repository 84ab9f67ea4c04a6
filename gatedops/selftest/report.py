"""Shows what the self-test found: a table for people, and JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from gatedops._version import __version__
from gatedops.backends import forced_backend, triton_package, verdict_files
from gatedops.backends.choice import PORTABLE, Choice
from gatedops.backends.gpus import Gpu
from gatedops.backends.kernels import KernelBackend
from gatedops.backends.verdict_files import Verdicts
from gatedops.backends.verdicts import FASTER, Verdict, times
from gatedops.tables import aligned

_HEAD = ("family", "backend", "verdict", "times as fast, small / large", "choice", "")


@dataclass(frozen=True)
class GpuResult:
    """What the self-test found on one kind of GPU.

    Attributes:
        gpu: the kind of GPU.
        device: the GPU of this kind that was tested, as torch names it.
        verdicts: the verdicts by family, then by backend.
        missing: what the backends that were not tested need.
        kept: the file of the verdicts, or None if it could not be written.
        not_kept: why it could not be written, or empty.
    """

    gpu: Gpu
    device: str
    verdicts: Verdicts
    missing: dict[str, str]
    kept: str | None
    not_kept: str = ""

    @property
    def is_right(self) -> bool:
        """Whether all that was tested is right."""
        return all(verdict.is_right for by_backend in self.verdicts.values() for verdict in by_backend.values())


def text_of(tested: Sequence[GpuResult], chosen: dict[str, Choice]) -> str:
    """Returns, for each kind of GPU, a table and a line that says where its verdicts are kept. `chosen` says what
    runs each family from now on."""
    parts = [_text_of_one(found, chosen) for found in tested]
    if forced_backend():
        parts.append(f"GATEDOPS_BACKEND={forced_backend()} is set, so it chooses, whatever the verdicts are.")
    return "\n\n".join(parts)


def _text_of_one(found: GpuResult, chosen: dict[str, Choice]) -> str:
    gpu = found.gpu
    capability = "{}.{}".format(*gpu.capability)
    head = f"{gpu.name}, compute capability {capability}, driver {gpu.driver}, tested on {found.device}"
    table = [f"  {line}" for line in aligned([_HEAD, *_rows(found, chosen)])]
    return "\n".join([head, *table, _where_kept(found)])


def json_of(tested: Sequence[GpuResult], backends: Sequence[KernelBackend], chosen: dict[str, Choice]) -> str:
    """Returns all that was found with the timings, and what it holds for. `chosen` says what runs each family from now
    on."""
    families = dict.fromkeys(family for found in tested for family in found.verdicts)
    return json.dumps(
        {
            "gatedops": __version__,
            "torch": str(torch.__version__),
            "triton": triton_package.version(),
            "backends": {b.name: {"build": b.build(), "sources": b.sources()} for b in backends},
            "gpus": [_as_json(found) for found in tested],
            "chosen": {family: chosen[family].backend for family in families},
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


def _rows(found: GpuResult, chosen: dict[str, Choice]) -> list[tuple[str, ...]]:
    rows = [
        _row(found, family, name, chosen[family].backend)
        for family, by_backend in found.verdicts.items()
        for name in by_backend
    ]
    return rows + [("-", name, "not tried", "-", "-", missing) for name, missing in found.missing.items()]


def _row(found: GpuResult, family: str, name: str, chosen: str) -> tuple[str, ...]:
    verdict = found.verdicts[family][name]
    said = f"right in {verdict.cases} cases" if verdict.is_right else verdict.outcome
    ratios = " / ".join(map(times, verdict.faster)) or "-"
    if chosen == name:
        return (family, name, said, ratios, "chosen", "")
    return (family, name, said, ratios, "-", verdict.why or _why_not(found, verdict, chosen))


def _why_not(found: GpuResult, verdict: Verdict, chosen: str) -> str:
    """Says why kernels that are right are not chosen."""
    if verdict.faster and min(verdict.faster) <= FASTER:
        return "not faster at both sizes"
    if not verdict.is_chosen:
        return "a call that was timed is slower"
    if found.kept is None:
        return "right and faster, but not kept"
    return f"{chosen} is faster" if chosen != PORTABLE else "right and faster here, but must be on the other GPUs too"


def _where_kept(found: GpuResult) -> str:
    if found.kept is not None:
        return f"The verdicts are kept in {found.kept}."
    return (
        f"The verdicts cannot be kept in {verdict_files.folder_in_words()} ({found.not_kept}), so they do not change "
        "which kernels run. GATEDOPS_CACHE names another folder."
    )
