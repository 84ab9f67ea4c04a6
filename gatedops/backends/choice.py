"""Which backend runs which family of ops on a GPU: decided once, at the first tensor there.

What GATEDOPS_BACKEND asks for comes first. Else a family goes to kernels that proved themselves, right and faster than
the portable ops, on every kind of GPU that torch sees: in the self-test on this machine (verdict_files.py), or, where
it said nothing, on a GPU of the project (proved.py). Else the portable ops run it.
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
# The backends that a value of GATEDOPS_BACKEND takes for a family, the first that has kernels for it.
_FORCED = {"cuda": ("cuda", "triton"), "triton": ("triton",)}


@dataclass(frozen=True)
class Choice:
    """A backend for a family of ops, and why."""

    backend: str
    why: str


def choices() -> dict[str, Choice]:
    """The backend of each family on GPUs. Starts CUDA, unless GATEDOPS_BACKEND names one."""
    forced = forced_backend()
    return _proved_here() if forced is None else forced_choices(forced, able_backends(but=forced))


_decided: dict[str, Choice] = {}  # by _proved_here(), once in a process
_lock = threading.RLock()


def _proved_here() -> dict[str, Choice]:
    """What nothing forces. Whatever goes wrong on the way, the portable ops run, and a line says what it was."""
    with _lock:
        if _decided:
            return _decided
        said: list[str] = []
        try:
            chosen = _decide(able_backends(), said)
        except Exception as error:
            said.append(
                f"Which kernels of gatedops proved themselves here cannot be told ({type(error).__name__}: {error}): "
                "torch's own operations run instead."
            )
            chosen = dict.fromkeys(FAMILIES, Choice(PORTABLE, "what proved itself cannot be told"))
        _decided.update(chosen)
    for line in said:
        logging.getLogger("gatedops").warning("%s", line)
    return _decided


def _decide(able: list[KernelBackend], said: list[str]) -> dict[str, Choice]:
    """The choice by all that is known here; adds to what is to be said of it."""
    found = gpus()
    known = [known_of(gpu, able, KERNEL_BACKENDS) for gpu in found]
    chosen = proved_choices(able, known)
    for backend in able:
        if any(choice.backend == backend.name for choice in chosen.values()):
            try:
                backend.load()
            except Exception as error:
                said.append(
                    f"The kernels of gatedops in {backend.name} proved themselves and cannot be loaded now "
                    f"({type(error).__name__}: {error}), so others run instead: `python -m gatedops selftest` tries "
                    "them again."
                )
                return _decide([other for other in able if other is not backend], said)
    untried = untried_of(able, found, known)
    if untried:
        said.append(
            f"Kernels of gatedops have not been tried here, and torch's own operations run where no others were: "
            f"{'; '.join(untried)}. `python -m gatedops selftest` tries them; from then on those that are right and "
            "faster run. GATEDOPS_BACKEND=portable keeps torch's and ends this line."
        )
    return chosen


def untried_of(backends: Sequence[KernelBackend], found: Sequence[Gpu], known: Sequence[Verdicts]) -> list[str]:
    """What nothing is known of, in words: for each kind of GPU the families of each backend."""
    untried = []
    for gpu, verdicts in zip(found, known, strict=True):
        for backend in backends:
            families = [family for family in backend.families if backend.name not in verdicts.get(family, {})]
            if families:
                untried.append(f"{', '.join(families)} in {backend.name} on {gpu.name}")
    return untried


def able_backends(but: str | None = None) -> list[KernelBackend]:
    """The backends that can run here; `but` is one that was found able at the import."""
    return [backend for backend in KERNEL_BACKENDS if backend.name == but or backend.missing() is None]


def backend_of(device: torch.device | str, family: str) -> str:
    """The name of the backend that runs a family of ops on a device."""
    kind, forced = torch.device(device).type, forced_backend()
    if kind == "cuda":
        return choices()[family].backend
    return "cpu" if kind == "cpu" and forced != PORTABLE else PORTABLE


def known_of(gpu: Gpu, able: Sequence[KernelBackend], backends: Sequence[KernelBackend]) -> Verdicts:
    """What is known, on a kind of GPU, of those backends that are able to run: what the self-test found, else what the
    table says. The table also gives the speed of kernels that were right here and could not be timed."""
    found = proved.proved_on(gpu, able)
    for family, by_backend in verdict_files.read(gpu, backends).items():
        shipped = found.setdefault(family, {})
        for name, verdict in by_backend.items():
            if verdict.is_right and not verdict.faster and name in shipped:
                verdict = replace(verdict, faster=shipped[name].faster)
            shipped[name] = verdict
    return found


def forced_choices(forced: str, backends: Sequence[KernelBackend]) -> dict[str, Choice]:
    """The choice where GATEDOPS_BACKEND names a backend."""
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
    """The choice by what is known of the backends on each kind of GPU: of those that earned it on all of them, the one
    that is faster where it is slowest."""
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
    """A verdict in a few words."""
    if verdict is None:
        return "not tried"
    if not verdict.is_right:
        return verdict.outcome
    if not verdict.faster:
        return "right, not timed"
    return f"right, {' and '.join(map(times, verdict.faster))} as fast as the portable ops"
