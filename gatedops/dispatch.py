"""Gives torch the kernels of every device, once, when gatedops is imported.

Ops on CPU tensors run in C++. On every other device the portable ops run, which are composites of torch's own
operations. On CUDA GPUs the kernels of all ops are looked up when the first op runs there
(gatedops/backends/choice.py), so importing gatedops does not start CUDA.
"""

from __future__ import annotations

import logging
import warnings
from functools import wraps
from typing import Any

import torch

from gatedops import backends
from gatedops.backends.families import FAMILY_OF
from gatedops.backends.kernels import KERNEL_BACKENDS, Kernel, KernelBackend
from gatedops.portable.register import OPS

# Kernels stay registered as long as this object lives.
_library = torch.library.Library("gatedops", "IMPL")


def register_kernels() -> None:
    """Registers the portable ops for all devices, and for CUDA GPUs a function that looks up the chosen kernel. If
    GATEDOPS_BACKEND is "portable", the portable ops also replace the kernels of the CPU."""
    for name, op in OPS.items():
        _library.impl(name, as_kernel(op), "CompositeExplicitAutograd")
        _library.impl(name, as_kernel(_chosen_kernel(name)), "CUDA")
    forced = backends.forced_backend()
    if forced in ("triton", "cuda"):
        _load_forced(forced)
    if forced == "portable":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)
            for name, op in OPS.items():
                _library.impl(name, as_kernel(op), "CPU")


def _load_forced(forced: str) -> None:
    """Looks the kernels up now, so that a backend that cannot be loaded is an error at import."""
    try:
        _look_up_kernels()
    except Exception as error:
        raise ValueError(f"GATEDOPS_BACKEND: got {forced!r}, whose kernels cannot be loaded: {error}") from error


def as_kernel(op: Kernel) -> Kernel:
    """Returns the op as torch runs a kernel: without autocast and without recording for a backward.

    The wrappers have applied autocast already; applied again, it would turn the products inside the op to half
    precision.
    """

    @wraps(op)
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._DisableAutocast(), torch._C._AutoDispatchBelowAutograd():
            return op(*args, **kwargs)

    return run


def _chosen_kernel(name: str) -> Kernel:
    """Returns a function that runs the kernel that is chosen for an op on GPUs."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return (_gpu_kernels or _look_up_kernels())[name](*args, **kwargs)

    return run


# The kernel of every op; empty until the kernels are looked up.
_gpu_kernels: dict[str, Kernel] = {}


def _look_up_kernels() -> dict[str, Kernel]:
    from gatedops.backends.choice import choices

    chosen = {family: choice.backend for family, choice in choices().items()}
    _gpu_kernels.update(kernels_of(chosen, backends.forced_backend()))
    return _gpu_kernels


def kernels_of(chosen: dict[str, str], forced: str | None) -> dict[str, Kernel]:
    """Returns the kernel of every op. `chosen` names the backend of each family.

    If the backend has no kernel for an op, the portable op is returned. Unless a backend is forced, the portable op
    also takes each call that the kernel refuses or fails.
    """
    loaded = {backend.name: _loaded(backend, forced) for backend in KERNEL_BACKENDS if backend.name in chosen.values()}
    found = {}
    for name, portable in OPS.items():
        kernel = loaded.get(chosen[FAMILY_OF[name]], {}).get(name)
        if kernel is None:
            found[name] = portable
        else:
            found[name] = kernel if forced else _or_portable(name, kernel, portable)
    return found


def _loaded(backend: KernelBackend, forced: str | None) -> dict[str, Kernel]:
    """Returns the kernels of a backend; warns and returns none if they do not load and another backend is forced."""
    try:
        return backend.load()
    except Exception as error:
        if forced in (None, backend.name):
            raise
        logging.getLogger("gatedops").warning(
            "gatedops cannot load its %s kernels (%s), so torch's own operations run beside its %s kernels.",
            backend.name,
            error,
            forced,
        )
        return {}


def _or_portable(name: str, kernel: Kernel, portable: Kernel) -> Kernel:
    """Returns the kernel with the portable op behind it.

    The kernel refuses a call by a ValueError, before any work. The portable op then takes the call: it accepts every
    valid call and raises its own error for the rest. After any other error, for example if the kernel cannot be
    compiled here, the portable op runs from then on. Running out of memory is raised, because the portable op needs
    memory too.
    """
    failed = False

    @wraps(kernel)
    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal failed
        if failed:
            return portable(*args, **kwargs)
        try:
            return kernel(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except ValueError:
            return portable(*args, **kwargs)
        except Exception as error:
            failed = True
            logging.getLogger("gatedops").warning(
                "The kernel of %s passed its self-test but failed now (%s: %s): from now on torch's own operations "
                "replace it. `python -m gatedops selftest` tests it again.",
                name,
                type(error).__name__,
                error,
            )
            return portable(*args, **kwargs)

    return run
