"""`python -m gatedops`: versions, backends, instruction sets, and for what is missing, what to do."""

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


def _backends() -> Iterator[tuple[str, str]]:
    chosen, why = backends.chosen_backend()
    for backend in backends.BACKENDS:
        kind = f"{backend.devices} (experimental)" if backend.experimental else backend.devices
        if backend.name == chosen:
            yield backend.name, f"{kind}: chosen, {why}"
        elif backend.name == "triton":
            yield backend.name, f"{kind}: not chosen; {_how_to_choose_triton()}"
        elif backend.exists:
            yield backend.name, f"{kind}: available"
        else:
            yield backend.name, f"{backend.devices}: no kernels in this version; keep tensors on the CPU"


def _how_to_choose_triton() -> str:
    missing = backends.missing_for_triton()
    return "GATEDOPS_BACKEND=triton chooses it" if missing is None else f"it {missing}"


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
    sections = {"Versions": _versions(), "Backends": _backends(), "CPU": _instruction_sets()}
    for title, rows in sections.items():
        print(title)
        for name, value in rows:
            print(f"  {name:<11}{value}")


if __name__ == "__main__":
    main()
