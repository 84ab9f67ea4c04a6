"""`python -m gatedops`: versions, what runs where, instruction sets, and for what is missing, what to do."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import metadata, util

import torch

from gatedops import __version__, backends


def _triton_version() -> str:
    """triton's version, without importing it."""
    if util.find_spec("triton") is None:
        return "not installed; only the experimental kernels for NVIDIA GPUs need it"
    return metadata.version("triton")


def _versions() -> Iterator[tuple[str, str]]:
    build = backends.build_report()
    yield "gatedops", __version__
    yield "torch", f"{torch.__version__} (gatedops._C loads on torch {build['torch_target']} or newer)"
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "triton", _triton_version()
    yield "built with", f"{build['compiler']}, C++{build['c++']}, {build['architecture']}"


def _devices() -> Iterator[tuple[str, str]]:
    """What runs where."""
    yield "CPU", _runs_on("cpu")
    yield "NVIDIA GPU", _runs_on("cuda") + ("" if torch.cuda.is_available() else "; torch sees none here")
    yield "others", f"{_runs_on('mps')}, on every other device of torch"
    for backend in backends.BACKENDS:
        if backend.experimental and backends.forced_backend() != backend.name:
            yield backend.name, f"{backend.devices} (experimental): not chosen; {_how_to_choose(backend.name)}"


def _runs_on(device: str) -> str:
    name = backends.backend_of(device)
    backend = next(backend for backend in backends.BACKENDS if backend.name == name)
    asked = "; GATEDOPS_BACKEND asks for it" if backends.forced_backend() == name else ""
    return f"{backend.how} ({name}){asked}"


def _how_to_choose(backend: str) -> str:
    missing = backends.missing_for(backend)
    return f"GATEDOPS_BACKEND={backend} chooses it" if missing is None else f"it {missing}"


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
    yield "CPU flags", " ".join(backends.cpu_features()) or "none that a kernel asks for"
    yield "threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores; torch.set_num_threads changes it"


def main() -> None:
    """Prints the report."""
    sections = {"Versions": _versions(), "Devices": _devices(), "CPU": _instruction_sets()}
    for title, rows in sections.items():
        print(title)
        for name, value in rows:
            print(f"  {name:<11}{value}")


if __name__ == "__main__":
    main()
