"""Packing by Triton in the interpreter agrees with the C++ kernels."""

import pytest
import torch

from gatedops.triton import gates

SHAPES = [(5, 1, 300), (1, 1, 1), (0, 1, 40), (3, 6, 70), (2, 9, 64), (2, 4, 33), (2, 40, 20), (3, 5, 48)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bool])
@pytest.mark.parametrize("turned", [False, True])
def test_packs_and_unpacks_like_the_cpu(shape, dtype, turned):
    q = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    q.view(-1)[::7] = 0.0
    q.view(-1)[3::11] = torch.nan
    q = (q > 0) if dtype == torch.bool else q.to(dtype)
    if turned:  # In NCHW, positions are contiguous and channels apart.
        q = q.transpose(1, 2).contiguous().transpose(1, 2)
    words = gates.pack_gates(q)
    assert torch.equal(words, torch.ops.gatedops.pack_gates(q))
    assert torch.equal(gates.unpack_gates(words, *shape[1:]), q > 0)
