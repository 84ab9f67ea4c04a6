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


@pytest.mark.parametrize("name", ["npk_gram", "npk_gram_out", "npk_gram_backward", "npk_matvec", "npk_diag"])
def test_a_launcher_refuses_slopes_before_any_work(name):
    """The dispatcher then gives the call to the portable op."""
    words, there = torch.zeros(3, 8, dtype=torch.int32), torch.zeros(3, 3)
    layers, slopes = ([0], [0], [1], [1.0]), ([0.5], [9])
    args, outs = {
        "npk_gram": ((None, words, None, None, None, None, *layers, torch.float32), {}),
        "npk_gram_out": ((None, words, None, None, None, None, *layers), {"out": there}),
        "npk_gram_backward": ((there, words, there, None, *layers), {}),
        "npk_matvec": ((None, words, None, None, there, *layers), {}),
        "npk_diag": ((words, *layers[1:], torch.float32), {}),
    }[name]
    with pytest.raises(ValueError, match=r"^slope: the Triton kernels take slope 0 alone; .* take the call$"):
        LAUNCHERS[name](*args, *slopes, **outs)


def test_the_backend_knows_its_ops_without_loading_them():
    assert set(TRITON.ops) == set(LAUNCHERS) == set(TRITON.load())
