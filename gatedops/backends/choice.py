"""Decides once, when the first op runs on a GPU, which backend runs which family of ops there.

GATEDOPS_BACKEND comes first. Without it, kernels run a family if they proved themselves on every kind of GPU that torch
sees: right, and faster than the portable ops. They prove it in the self-test on this machine (verdict_files.py) or, if
that has no verdict, on a GPU of the project (proved.py). Otherwise the portable ops run the family.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from gatedops.backends import forced_backend, proved, verdict_files
from gatedops.backends.families import FAMILIES
from gatedops.backends.gpus import Gpu, gpus
from gatedops.backends.kernels import KERNEL_BACKENDS, KernelBackend
from gatedops.backends.verdict_files import Verdicts
from gatedops.backends.verdicts import Verdict, times

PORTABLE = "portable"
# For a value of GATEDOPS_BACKEND, the first of these backends that has kernels for a family runs it.
_FORCED = {"cuda": ("cuda", "triton"), "triton": ("triton",)}


@dataclass(frozen=True)
class Choice:
    """The backend for a family of ops, and why it was chosen."""

    backend: str
    why: str


def choices() -> dict[str, Choice]:
    """Returns the backend of each family on GPUs. It starts CUDA, unless GATEDOPS_BACKEND names a backend."""
    forced = forced_backend()
    return _proved_here() if forced is None else forced_choices(forced, able_backends(but=forced))


# _proved_here() fills it once in a process.
_decided: dict[str, Choice] = {}
_lock = threading.RLock()


def _proved_here() -> dict[str, Choice]:
    """Returns the choice when no backend is forced. If that fails, the portable ops run, and the log says why."""
    with _lock:
        if _decided:
            return _decided
        said: list[str] = []
        try:
            chosen = _decide(able_backends(), said)
        except Exception as error:
            said.append(
                f"gatedops cannot find out which kernels proved themselves here ({type(error).__name__}: {error}): "
                "torch's own operations run instead."
            )
            chosen = dict.fromkeys(FAMILIES, Choice(PORTABLE, "it cannot be found out which kernels proved themselves"))
        _decided.update(chosen)
    for line in said:
        logging.getLogger("gatedops").warning("%s", line)
    return _decided


def _decide(able: list[KernelBackend], said: list[str]) -> dict[str, Choice]:
    """Returns the choice by all that is known here; adds what the log should say to `said`."""
    found = gpus()
    known = [known_of(gpu, able, KERNEL_BACKENDS) for gpu in found]
    chosen = proved_choices(able, known)
    for backend in able:
        if any(choice.backend == backend.name for choice in chosen.values()):
            try:
                backend.load()
            except Exception as error:
                said.append(
                    f"The {backend.name} kernels of gatedops proved themselves but cannot be loaded now "
                    f"({type(error).__name__}: {error}), so others run instead: `python -m gatedops selftest` tests "
                    "them again."
                )
                return _decide([other for other in able if other is not backend], said)
    untried = untried_of(able, found, known)
    if untried:
        said.append(
            f"Some kernels of gatedops were not tested on this machine, so they are not used: {'; '.join(untried)}. "
            "`python -m gatedops selftest` tests them; those that are right and faster are used from then on. "
            "GATEDOPS_BACKEND=portable keeps torch's own operations and silences this message."
        )
    return chosen


def untried_of(backends: Sequence[KernelBackend], found: Sequence[Gpu], known: Sequence[Verdicts]) -> list[str]:
    """Describes what was never tested: for each kind of GPU the families of each backend."""
    untried = []
    for gpu, verdicts in zip(found, known, strict=True):
        for backend in backends:
            families = [family for family in backend.families if backend.name not in verdicts.get(family, {})]
            if families:
                untried.append(f"{', '.join(families)} in {backend.name} on {gpu.name}")
    return untried


def able_backends(but: str | None = None) -> list[KernelBackend]:
    """Returns the backends that can run here. `but` names one that was found able at import, so it is not checked."""
    return [backend for backend in KERNEL_BACKENDS if backend.name == but or backend.missing() is None]


def backend_of(device: torch.device | str, family: str) -> str:
    """Returns the name of the backend that runs a family of ops on a device."""
    kind, forced = torch.device(device).type, forced_backend()
    if kind == "cuda":
        return choices()[family].backend
    return "cpu" if kind == "cpu" and forced != PORTABLE else PORTABLE


def known_of(gpu: Gpu, able: Sequence[KernelBackend], backends: Sequence[KernelBackend]) -> Verdicts:
    """Returns the verdicts on a kind of GPU: those of the self-test, else those of the shipped table for the backends
    that are able to run. The table also gives the speed of kernels that were right here but could not be timed."""
    found = proved.proved_on(gpu, able)
    for family, by_backend in verdict_files.read(gpu, backends).items():
        shipped = found.setdefault(family, {})
        for name, verdict in by_backend.items():
            if verdict.is_right and not verdict.faster and name in shipped:
                verdict = replace(verdict, faster=shipped[name].faster)
            shipped[name] = verdict
    return found


def forced_choices(forced: str, backends: Sequence[KernelBackend]) -> dict[str, Choice]:
    """Returns the choice when GATEDOPS_BACKEND names a backend."""
    names = {backend.name: backend for backend in backends}
    chosen = {}
    for family in FAMILIES:
        wanted = [name for name in _FORCED.get(forced, ()) if name in names and names[name].ops_of(family)]
        if wanted:
            chosen[family] = Choice(wanted[0], "GATEDOPS_BACKEND asks for it")
        elif forced == PORTABLE:
            chosen[family] = Choice(PORTABLE, "GATEDOPS_BACKEND asks for it")
        else:
            chosen[family] = Choice(PORTABLE, f"GATEDOPS_BACKEND={forced} has no kernels for it")
    return chosen


def proved_choices(backends: Sequence[KernelBackend], known: Sequence[Verdicts]) -> dict[str, Choice]:
    """Returns the choice by the verdicts on each kind of GPU. A backend must be right and faster on all kinds. Among
    those, the one with the best speed on its slowest kind and size is chosen."""
    chosen = {}
    for family in FAMILIES:
        earned: dict[str, float] = {}
        for backend in backends:
            verdicts = [verdicts.get(family, {}).get(backend.name) for verdicts in known]
            if backend.ops_of(family) and verdicts and all(v is not None and v.is_chosen for v in verdicts):
                earned[backend.name] = min(min(v.faster) for v in verdicts if v is not None)
        if earned:
            best = max(earned, key=earned.__getitem__)
            chosen[family] = Choice(best, f"it proved itself, {earned[best]:.1f} times as fast or more")
        else:
            chosen[family] = Choice(PORTABLE, _why_portable(family, backends, known))
    return chosen


def _why_portable(family: str, backends: Sequence[KernelBackend], known: Sequence[Verdicts]) -> str:
    able = [backend.name for backend in backends if backend.ops_of(family)]
    if not able:
        return "no other kernels can run here"
    verdicts = [verdicts.get(family, {}).get(name) for verdicts in known for name in able]
    if all(verdict is None for verdict in verdicts):
        return "no other kernels were tried here"
    return "; ".join(
        f"{name}: {said_of(known_there.get(family, {}).get(name))}" for known_there in known for name in able
    )


def said_of(verdict: Verdict | None) -> str:
    """Puts a verdict in a few words."""
    if verdict is None:
        return "not tried"
    if not verdict.is_right:
        return verdict.outcome
    if not verdict.faster:
        return "right, not timed"
    return f"right, {' and '.join(map(times, verdict.faster))} as fast as the portable ops"
