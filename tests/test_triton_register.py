"""The launchers that become CUDA kernels take the arguments of their ops' schemas, in processes of their own."""

from __future__ import annotations

import inspect

import pytest
import torch
from test_backends import run_python

pytest.importorskip("triton")

from gatedops.triton import register


@pytest.mark.parametrize("name", register.LAUNCHERS)
def test_a_launcher_takes_what_its_schema_says(name):
    schema = getattr(torch.ops.gatedops, name).default._schema
    parameters = inspect.signature(register.LAUNCHERS[name]).parameters.values()
    assert [p.name for p in parameters] == [argument.name for argument in schema.arguments]
    assert [p.kind is p.KEYWORD_ONLY for p in parameters] == [argument.kwarg_only for argument in schema.arguments]


def test_registering_gives_the_ops_cuda_kernels():
    code = (
        "import torch\n"
        "import gatedops\n"
        "from gatedops.triton import register\n"
        "has = lambda name: torch._C._dispatch_has_kernel_for_dispatch_key(f'gatedops::{name}', 'CUDA')\n"
        "before = [name for name in register.LAUNCHERS if has(name)]\n"
        "register.register()\n"
        "print(before, all(has(name) for name in register.LAUNCHERS), has('soft_npk_gram'))\n"
    )
    done = run_python("-c", code)
    assert done.stdout == "[] True False\n", done.stderr
