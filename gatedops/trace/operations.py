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
# These give the same numbers in another order, only a part of them, some of them several times, or zeros among them.
# split, split_with_sizes and unbind give several tensors.
REARRANGEMENTS = frozenset(
    [
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.movedim.intlist,
        aten.expand.default,
        aten.repeat.default,
        aten.tile.default,
        aten.repeat_interleave.self_int,
        aten.slice.Tensor,
        aten.select.int,
        aten.diagonal.default,
        aten.unfold.default,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.unbind.int,
        aten.index.Tensor,
        aten.index_select.default,
        aten.gather.default,
        aten.take_along_dim.default,
        aten.flip.default,
        aten.fliplr.default,
        aten.rot90.default,
        aten.roll.default,
        aten.tril.default,
        aten.triu.default,
        aten.pixel_shuffle.default,
        aten.pixel_unshuffle.default,
        aten.channel_shuffle.default,
        aten.native_channel_shuffle.default,
    ]
)
PADDING = frozenset([aten.pad.default, aten.constant_pad_nd.default])
# These do the same; torch has them, or some of their modes, for floating point numbers only.
REARRANGEMENTS_OF_FLOATS = PADDING | {
    aten.im2col.default,
    aten.upsample_nearest1d.vec,
    aten.upsample_nearest2d.vec,
    aten._upsample_nearest_exact1d.vec,
    aten._upsample_nearest_exact2d.vec,
}
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
