"""`python -m gatedops` prints versions, what runs where, instruction sets, and what to do if something is missing."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator

import torch

from gatedops import backends
from gatedops._version import __version__
from gatedops.backends import choice, gpus, kernels, triton_package
from gatedops.backends.verdicts import Verdict


def _versions() -> Iterator[tuple[str, str]]:
    build = backends.build_report()
    yield "gatedops", __version__
    yield "torch", f"{torch.__version__} (gatedops._C loads on torch {build['torch_target']} or newer)"
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "triton", triton_package.version() or "not installed; only the Triton kernels for GPUs need it"
    yield "built with", f"{build['compiler']}, C++{build['c++']}, {build['architecture']}"


def _devices() -> Iterator[tuple[str, str]]:
    """Says what runs on which device."""
    portable_cpu = backends.forced_backend() == "portable"
    yield "CPU", _how("portable" if portable_cpu else "cpu")
    yield "GPUs", _on_gpus()
    yield "others", f"{_how('portable')}, on every other device of torch"
    for backend in kernels.KERNEL_BACKENDS:
        families = ", ".join(backend.families)
        yield backend.name, f"{_how(backend.name)} for {families}: {backend.missing() or 'can run here'}"


def _how(name: str) -> str:
    """Says how a backend is made, its name, and whether GATEDOPS_BACKEND asks for it."""
    how = next(backend.how for backend in backends.BACKENDS if backend.name == name)
    asked = "; GATEDOPS_BACKEND asks for it" if backends.forced_backend() == name else ""
    return f"{how} ({name}){asked}"


def _on_gpus() -> str:
    forced = backends.forced_backend()
    if forced is not None:
        return _how("portable" if forced == "cpu" else forced)
    return f"{_how('portable')}, and kernels where they proved themselves, below"


def _gpu_kernels() -> Iterator[tuple[str, str]]:
    """Lists the kinds of GPU, the backend of each family and why it was chosen, and the verdicts on all backends that
    have kernels for it."""
    found = gpus.gpus()
    if not found:
        yield "none", "torch sees no GPU here"
        return
    for gpu in found:
        capability = "{}.{}".format(*gpu.capability)
        yield gpu.device, f"{gpu.name}, compute capability {capability}, driver {gpu.driver}"
    known = {gpu.device: choice.known_of(gpu, kernels.KERNEL_BACKENDS, kernels.KERNEL_BACKENDS) for gpu in found}
    for family, chosen in choice.choices().items():
        yield family, f"{chosen.backend} ({chosen.why})"
        for backend in kernels.KERNEL_BACKENDS:
            if backend.ops_of(family):
                said = (
                    _known(device, verdicts.get(family, {}).get(backend.name)) for device, verdicts in known.items()
                )
                yield f"  {backend.name}", "; ".join(said)


def _known(device: str, verdict: Verdict | None) -> str:
    """Says what is known of kernels on a GPU, and since when."""
    return f"on {device} {choice.said_of(verdict)}" + (f", {verdict.date}" if verdict and verdict.date else "")


def _instruction_sets() -> Iterator[tuple[str, str]]:
    chosen, why = backends.chosen_isa()
    for isa in backends.INSTRUCTION_SETS:
        if isa == chosen:
            yield isa, f"used, {why}"
        elif isa in backends.available_isas():
            yield isa, f"available; GATEDOPS_CPU={isa} forces it"
        else:
            missing = ", ".join(backends.missing_flags(isa))
            yield isa, f"not on this machine (no {missing}); nothing to do, the kernels run without it"
    yield "CPU flags", " ".join(backends.cpu_features()) or "none that a kernel uses"
    yield "threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores; torch.set_num_threads changes it"


def main() -> None:
    """Prints the report."""
    sections = {
        "Versions": _versions(),
        "Devices": _devices(),
        "GPU kernels": _gpu_kernels(),
        "CPU": _instruction_sets(),
    }
    for title, found in sections.items():
        print(title)
        rows = list(found)
        width = max(11, *(len(name) + 1 for name, _ in rows))
        for name, value in rows:
            print(f"  {name:<{width}}{value}")
