"""Gives torch the kernels of every device, once, when gatedops is imported.

Tensors on the CPU run in C++. On every other device the portable ops run, which are composites of torch's own
operations. On GPUs the kernel of an op is looked up when the first tensor there comes (gatedops/backends/choice.py): no
import starts CUDA.
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

_library = torch.library.Library("gatedops", "IMPL")  # kernels stay registered as long as it lives


def register_kernels() -> None:
    """Registers the portable ops for all devices, over them for GPUs what looks up the kernel, and, where
    GATEDOPS_BACKEND asks for it, the portable ops in place of the CPU's kernels."""
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
    """Looks the kernels up now, so that a backend that cannot be had is an error at the import."""
    try:
        _look_up_kernels()
    except Exception as error:
        raise ValueError(f"GATEDOPS_BACKEND: got {forced!r}, whose kernels cannot be loaded: {error}") from error


def as_kernel(op: Kernel) -> Kernel:
    """The op as torch runs a kernel: without autocast, which would turn the products inside it to half precision and
    which the wrappers have applied already, and without a record of what it does for a backward."""

    @wraps(op)
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._DisableAutocast(), torch._C._AutoDispatchBelowAutograd():
            return op(*args, **kwargs)

    return run


def _chosen_kernel(name: str) -> Kernel:
    """Runs the kernel that is chosen for an op on GPUs."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return (_gpu_kernels or _look_up_kernels())[name](*args, **kwargs)

    return run


_gpu_kernels: dict[str, Kernel] = {}  # of every op, once they are looked up


def _look_up_kernels() -> dict[str, Kernel]:
    from gatedops.backends.choice import choices

    chosen = {family: choice.backend for family, choice in choices().items()}
    _gpu_kernels.update(kernels_of(chosen, backends.forced_backend()))
    return _gpu_kernels


def kernels_of(chosen: dict[str, str], forced: str | None) -> dict[str, Kernel]:
    """The kernel of every op, where each family has the backend of this name. What a backend has no kernel for is
    portable, and so is, unless a backend is forced, a call that a kernel fails."""
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
    """Its kernels. Where another backend is forced, those beside it may be missing."""
    try:
        return backend.load()
    except Exception as error:
        if forced in (None, backend.name):
            raise
        logging.getLogger("gatedops").warning(
            "The kernels of gatedops in %s cannot be loaded (%s), so torch's own operations run beside those in %s.",
            backend.name,
            error,
            forced,
        )
        return {}


def _or_portable(name: str, kernel: Kernel, portable: Kernel) -> Kernel:
    """A call that the kernel refuses by a ValueError, which it does before any work, goes to the portable op: that one
    takes all that makes sense, and has its own words for the rest. After any other error, as when nothing here can
    compile the kernel, the portable op runs for good. Where memory is short, it would be no better off."""
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
                "The kernel of %s proved itself and failed now (%s: %s): from here on torch's own operations run in "
                "its place. `python -m gatedops selftest` tries it again.",
                name,
                type(error).__name__,
                error,
            )
            return portable(*args, **kwargs)

    return run
