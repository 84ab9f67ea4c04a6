"""Lists operations of an exported graph by what they do to numbers; StepBuilder treats all of a kind alike."""

from __future__ import annotations

import torch

aten = torch.ops.aten

BATCH_NORM = aten._native_batch_norm_legit_no_training.default
# torch.export puts this beside a conversion to assert the dtype; it has no result.
ASSERTION = aten._assert_tensor_metadata.default
GATED_LINEAR = torch.ops.gatedops.gated_linear_relu.default
IDENTITIES = frozenset([aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default])
# These give the same numbers in the same order and another shape.
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
# These give the same numbers in another order, or only a part of them.
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
# These make a tensor of a given shape; its numbers do not come from the tensor that it resembles.
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
