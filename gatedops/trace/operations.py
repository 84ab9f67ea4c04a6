"""Operations of an exported graph that StepBuilder treats by what they do to its numbers, whatever step they become."""

from __future__ import annotations

import torch

aten = torch.ops.aten

BATCH_NORM = aten._native_batch_norm_legit_no_training.default
ASSERTION = aten._assert_tensor_metadata.default  # of a dtype, beside a conversion; has no result
GATED_LINEAR = torch.ops.gatedops.gated_linear_relu.default
IDENTITIES = frozenset([aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default])
# What gives the same numbers in another shape, and in another order or in part.
RESHAPES = frozenset(
    [
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.view.default,
        aten._unsafe_view.default,
        aten.reshape.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.unsqueeze.default,
    ]
)
REARRANGEMENTS = frozenset(
    [
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.movedim.intlist,
        aten.expand.default,
        aten.slice.Tensor,
    ]
)
# What makes a tensor of a given shape whose numbers do not come from the tensor that it resembles.
FRESH = frozenset(
    [
        aten.zeros_like.default,
        aten.ones_like.default,
        aten.full_like.default,
        aten.new_zeros.default,
        aten.new_ones.default,
        aten.new_full.default,
    ]
)
