"""Finds which machine code the launches of Triton kernels ask for, without a GPU: nothing is compiled or run."""

from __future__ import annotations

from collections import defaultdict

import pytest
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime import jit

TARGET = GPUTarget("cuda", 90, 32)


def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, set]:
    """Maps each kernel to the variants that its launches from now on need. A variant is what the compiler is told of
    the arguments: types, constants, which integers are 1, and which are multiples of 16. No kernel runs, so results do
    not change."""
    found = defaultdict(set)
    backend, binders = make_backend(TARGET), {}

    def run(self, *args, grid, warmup, **kwargs):
        if self not in binders:
            binders[self] = jit.create_function_from_signature(self.signature, self.params, backend)
        bound, specialization, options = binders[self](*args, **kwargs)
        _, *told = self._pack_args(backend, kwargs, bound, specialization, options)
        found[self.__name__].add(str((told, kwargs)))

    monkeypatch.setattr(jit.JITFunction, "run", run)
    return found
