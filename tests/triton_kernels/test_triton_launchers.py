"""The launchers that can become CUDA kernels take the arguments of their ops' schemas."""

from __future__ import annotations

import inspect

import pytest
import torch

pytest.importorskip("triton")

from gatedops.backends.kernels import TRITON
from gatedops.triton.launchers import LAUNCHERS


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_takes_what_its_schema_says(name):
    schema = getattr(torch.ops.gatedops, name).default._schema
    parameters = inspect.signature(LAUNCHERS[name]).parameters.values()
    assert [p.name for p in parameters] == [argument.name for argument in schema.arguments]
    assert [p.kind is p.KEYWORD_ONLY for p in parameters] == [argument.kwarg_only for argument in schema.arguments]


def test_the_backend_knows_its_ops_without_loading_them():
    assert set(TRITON.ops) == set(LAUNCHERS) == set(TRITON.load())
