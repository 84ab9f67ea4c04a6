"""Functions that trace.steps understands, each with the kinds of its steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Weights(nn.Module):
    """Holds the tensors that the functions below use."""

    def __init__(self) -> None:
        super().__init__()
        self.number, self.slopes = nn.Parameter(torch.rand(1)), nn.Parameter(torch.rand(4))
        self.per_channel = nn.Parameter(torch.rand(4, 1, 1) + 0.5)
        self.register_buffer("ones", torch.ones(4, 1, 1))
        self.register_buffer("order", torch.tensor([2, 0, 3]))
        self.conv1, self.conv2 = nn.Conv1d(4, 3, 3), nn.Conv2d(4, 3, 3)


Form = tuple[Callable[[Weights, Any], Tensor], list[str]]
MOVED = ["Rearrange"]


def shuffled(x: Tensor) -> Tensor:
    """A channel shuffle by hand."""
    return x.view(len(x), 2, 2, *x.shape[2:]).transpose(1, 2).contiguous().view(x.shape)


def set_to_zero(x: Tensor) -> Tensor:
    x = x.clone()
    x[x <= 0] = 0
    return x


MOVEMENTS_OF_IMAGES: dict[str, Form] = {
    "chunk": (lambda net, x: x.chunk(2, 1)[1], MOVED),
    "chunk, unequal": (lambda net, x: x.chunk(3, 1)[-1], MOVED),
    "split": (lambda net, x: x.split([1, 3], 1)[1], MOVED),
    "split, one size": (lambda net, x: torch.split(x, 3, 3)[0], MOVED),
    "tensor_split": (lambda net, x: x.tensor_split(3, 2)[1], MOVED),
    "unbind": (lambda net, x: x.unbind(1)[2], MOVED),
    "slice": (lambda net, x: x[:, 1:3], MOVED),
    "slice with a step": (lambda net, x: x[:, 1::2, ::3, :-1], MOVED),
    "select": (lambda net, x: x[:, 0], MOVED),
    "narrow": (lambda net, x: x.narrow(2, 1, 3), MOVED),
    "index_select": (lambda net, x: x.index_select(1, net.order), MOVED),
    "a list": (lambda net, x: x[:, [3, 0]], MOVED),
    "a buffer of indices": (lambda net, x: x[:, net.order], MOVED),
    "gather": (lambda net, x: x.gather(3, torch.tensor([1, 0]).expand(len(x), 4, 5, 2)), MOVED),
    "take_along_dim": (lambda net, x: torch.take_along_dim(x, torch.tensor([[[[2, 0]]]]), 3), MOVED),
    "flip": (lambda net, x: x.flip(1, 3), MOVED),
    "fliplr": (lambda net, x: torch.fliplr(x), MOVED),
    "rot90": (lambda net, x: torch.rot90(x, 1, (2, 3)), MOVED),
    "roll": (lambda net, x: x.roll((1, -2), (1, 2)), MOVED),
    "channel shuffle by hand": (lambda net, x: shuffled(x), MOVED),
    "channel_shuffle": (lambda net, x: F.channel_shuffle(x, 2), MOVED),
    "native_channel_shuffle": (lambda net, x: torch.native_channel_shuffle(x, 2), MOVED),
    "ChannelShuffle": (lambda net, x: nn.ChannelShuffle(2)(x), MOVED),
    "permute": (lambda net, x: x.permute(0, 2, 3, 1), MOVED),
    "transpose": (lambda net, x: x.transpose(1, -1), MOVED),
    "movedim": (lambda net, x: x.movedim(1, -1), MOVED),
    "swapaxes": (lambda net, x: x.swapaxes(1, 2), MOVED),
    "unflatten": (lambda net, x: x.unflatten(1, (2, 2)), MOVED),
    "flatten some": (lambda net, x: x.flatten(2), MOVED),
    "unsqueeze": (lambda net, x: x[:, None], MOVED),
    "squeeze": (lambda net, x: x[:, :1].squeeze(1), MOVED),
    "pixel_shuffle": (lambda net, x: F.pixel_shuffle(x, 2), MOVED),
    "pixel_unshuffle": (lambda net, x: F.pixel_unshuffle(x[:, :, :4], 2), MOVED),
    "expand": (lambda net, x: x[:, :1].expand(-1, 3, -1, -1), MOVED),
    "repeat": (lambda net, x: x.repeat(1, 2, 1, 1), MOVED),
    "tile": (lambda net, x: x.tile(1, 1, 2, 1), MOVED),
    "repeat_interleave": (lambda net, x: x.repeat_interleave(2, 1), MOVED),
    "diagonal": (lambda net, x: x.diagonal(0, 1, 2), MOVED),
    "tril": (lambda net, x: x.tril(), MOVED),
    "triu": (lambda net, x: x.triu(1), MOVED),
    "unfold": (lambda net, x: x.unfold(2, 2, 1), MOVED),
    "F.unfold": (lambda net, x: F.unfold(x, 2, padding=1), MOVED),
    "reflect": (lambda net, x: F.pad(x, (1, 2, 0, 1), "reflect"), MOVED),
    "ReflectionPad2d": (lambda net, x: nn.ReflectionPad2d(1)(x), MOVED),
    "replicate": (lambda net, x: F.pad(x, (3, 0, 1, 2), "replicate"), MOVED),
    "circular": (lambda net, x: F.pad(x, (1, 0, 2, 1), "circular"), MOVED),
    "zeros": (lambda net, x: F.pad(x, (1, 0, 2, 1)), MOVED),
    "ZeroPad2d": (lambda net, x: nn.ZeroPad2d(1)(x), MOVED),
    "zeros for channels": (lambda net, x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2)), MOVED),
    "a crop": (lambda net, x: F.pad(x, (-1, 1, 0, -2)), MOVED),
    "zeros, then a crop": (lambda net, x: F.pad(x, (2, 2))[..., 1:-1], MOVED),
    "nearest": (lambda net, x: F.interpolate(x, scale_factor=2), MOVED),
    "nearest by size": (lambda net, x: F.interpolate(x, size=(3, 11)), MOVED),
    "nearest-exact": (lambda net, x: F.interpolate(x, size=(3, 11), mode="nearest-exact"), MOVED),
    "Upsample": (lambda net, x: nn.Upsample(scale_factor=1.5)(x), MOVED),
    "there and back": (lambda net, x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), []),
    "split and back": (lambda net, x: torch.cat(x.split(2, 1), 1), ["Rearrange", "Rearrange", "Concat"]),
    "flatten in another order": (lambda net, x: x.transpose(1, 3).flatten(1), MOVED),
    "flatten, then a part": (lambda net, x: x.flatten(1)[:, 3:], MOVED),
    "the parts of one chunk": (
        lambda net, x: sum(x.chunk(2, 1)),
        ["Rearrange", "Rearrange", "Add"],
    ),
    "a layer between": (
        lambda net, x: F.pad(net.conv2(F.pad(x, (1, 1, 1, 1), "reflect")), (1, 1)),
        ["Rearrange", "Conv2d", "Rearrange"],
    ),
}
MOVEMENTS_OF_SEQUENCES: dict[str, Form] = {
    "reflect": (lambda net, x: F.pad(x, (1, 2), "reflect"), MOVED),
    "replicate": (lambda net, x: nn.ReplicationPad1d(2)(x), MOVED),
    "nearest": (lambda net, x: F.interpolate(x, scale_factor=2), MOVED),
    "nearest-exact": (lambda net, x: F.interpolate(x, size=5, mode="nearest-exact"), MOVED),
    "transpose": (lambda net, x: x.mT, MOVED),
    "a channel's flip": (lambda net, x: x.flip(1), MOVED),
    "conv1d": (lambda net, x: net.conv1(x), ["Conv2d"]),
    "zeros and conv1d": (lambda net, x: net.conv1(F.pad(x, (2, 1))), ["Conv2d"]),
    "circular and conv1d": (lambda net, x: net.conv1(F.pad(x, (2, 1), "circular")), ["Conv2d"]),
    "circular, then zeros": (
        lambda net, x: F.conv1d(F.pad(x, (1, 1), "circular"), net.conv1.weight, padding=1),
        ["Rearrange", "Conv2d"],
    ),
    "zeros and reflect and conv1d": (
        lambda net, x: net.conv1(F.pad(F.pad(x, (1, 1)), (2, 2), "reflect")),
        ["Rearrange", "Conv2d"],
    ),
    "zeros twice and conv1d": (lambda net, x: net.conv1(F.pad(F.pad(x, (1, 1)), (2, 2))), ["Rearrange", "Conv2d"]),
    "a matrix product": (lambda net, x: x @ net.slopes.expand(6, 4), ["Linear"]),
    "linear": (lambda net, x: F.linear(x, net.slopes.expand(2, 4).repeat(1, 2)[:, :6]), ["Linear"]),
    "max_pool1d": (lambda net, x: F.max_pool1d(x, 3, 2, 1), ["MaxPool"]),
    "conv_transpose1d": (
        lambda net, x: F.conv_transpose1d(x, net.conv1.weight.transpose(0, 1)[:, :2], None, 2, 1, 1, 2),
        ["Rearrange", "Conv2d"],
    ),
    "avg_pool1d": (lambda net, x: F.avg_pool1d(x, 3, 2, 1, True, False), ["AvgPool"]),
    "adaptive_avg_pool1d": (lambda net, x: F.adaptive_avg_pool1d(x, 2), ["AvgPool"]),
    "uneven adaptive_avg_pool1d": (lambda net, x: F.adaptive_avg_pool1d(x, 4), ["Resample"]),
    "linear interpolation": (lambda net, x: F.interpolate(x, size=9, mode="linear"), ["Resample"]),
    "area": (lambda net, x: F.interpolate(x, size=4, mode="area"), ["Resample"]),
    "batch norm": (lambda net, x: F.batch_norm(x, net.slopes.detach(), net.slopes.detach()), ["BatchNorm"]),
    "conv1d with a stride": (
        lambda net, x: F.conv1d(x, net.conv1.weight[:2, :2], None, 2, 2, 2, groups=2),
        ["Conv2d"],
    ),
    "conv1d, same": (lambda net, x: F.conv1d(x, net.conv1.weight[..., :2], padding="same"), ["Conv2d"]),
    "a pool by way of images": (
        lambda net, x: F.max_pool2d(x.unsqueeze(2), (1, 2)).squeeze(2),
        ["Rearrange", "MaxPool", "Rearrange"],
    ),
}
SUMS: dict[str, Form] = {
    "cat": (lambda net, x: torch.cat([x, x.relu()], 1), ["Gate", "Concat"]),
    "cat of rows": (lambda net, x: torch.concat([x, x[:, :, :2], x], 2), ["Rearrange", "Concat"]),
    "cat of columns": (lambda net, x: torch.concatenate([x.relu(), x], -1), ["Gate", "Concat"]),
    "cat of one twice": (lambda net, x: torch.cat([x, x], 1), ["Concat"]),
    "cat of one": (lambda net, x: torch.cat([x.relu()], 1), ["Gate"]),
    "sum over rows": (lambda net, x: x.sum(-1), ["Mean", "Scale"]),
    "times a number": (lambda net, x: x * 3, ["Scale"]),
    "a number times": (lambda net, x: 0.5 * x, ["Scale"]),
    "torch.multiply": (lambda net, x: torch.multiply(x, 2), ["Scale"]),
    "times a parameter": (lambda net, x: net.per_channel * x, ["Scale"]),
    "times a parameter of one number": (lambda net, x: x * net.number, ["Scale"]),
    "times a row for all inputs": (lambda net, x: x * net.per_channel[None], ["Scale"]),
    "times 1": (lambda net, x: x * 1 * net.ones / 1, []),
    "in place": (lambda net, x: x.relu().mul_(2).add_(x), ["Gate", "Scale", "Add"]),
    "divided by a number": (lambda net, x: x / 3, ["Scale"]),
    "divided by a parameter": (lambda net, x: torch.div(x, net.per_channel), ["Scale"]),
    "true_divide": (lambda net, x: torch.true_divide(x, 3), ["Scale"]),
    "torch.divide": (lambda net, x: torch.divide(x, 3), ["Scale"]),
    "divided without rounding": (lambda net, x: torch.div(x, 3, rounding_mode=None), ["Scale"]),
    "the negative": (lambda net, x: -x, ["Scale"]),
    "torch.negative": (lambda net, x: torch.negative(x), ["Scale"]),
    "a difference": (lambda net, x: x - x.relu(), ["Gate", "Scale", "Add"]),
    "torch.subtract": (lambda net, x: torch.subtract(x, x.relu(), alpha=2), ["Gate", "Scale", "Add"]),
    "a sum with alpha": (lambda net, x: torch.add(x, x.relu(), alpha=2), ["Gate", "Scale", "Add"]),
    "a number minus": (lambda net, x: 1 - x, ["Scale", "AddConstant"]),
    "a parameter minus": (lambda net, x: net.per_channel - x, ["Scale", "AddConstant"]),
    "0 minus": (lambda net, x: 0 - x, ["Scale"]),
    "torch.rsub": (lambda net, x: torch.rsub(x, net.per_channel, alpha=2), ["Scale", "AddConstant"]),
    "a constant with alpha": (lambda net, x: torch.add(net.per_channel, x, alpha=2), ["Scale", "AddConstant"]),
    "normalised": (lambda net, x: (x - 0.5) / 0.25, ["AddConstant", "Scale"]),
    "a first power": (lambda net, x: x**1, []),
    "a broadcast sum": (
        lambda net, x: x + x.mean((2, 3), keepdim=True).expand_as(x),
        ["Mean", "Rearrange", "Add"],
    ),
    "a broadcast difference": (
        lambda net, x: x - x.mean((2, 3), keepdim=True),
        ["Mean", "Scale", "Rearrange", "Add"],
    ),
    "a sum of a row and a column": (
        lambda net, x: x.mean(2, True) + x.mean(3, True),
        ["Mean", "Mean", "Rearrange", "Rearrange", "Add"],
    ),
}
RESAMPLED: dict[str, Form] = {
    "uneven adaptive pool": (lambda net, x: F.adaptive_avg_pool2d(x, (3, 4)), ["Resample"]),
    "adaptive pool that repeats": (lambda net, x: F.adaptive_avg_pool2d(x, 7), ["Resample"]),
    "bilinear": (lambda net, x: F.interpolate(x, size=(4, 9), mode="bilinear"), ["Resample"]),
    "bilinear, corners": (
        lambda net, x: F.interpolate(x, scale_factor=1.5, mode="bilinear", align_corners=True),
        ["Resample"],
    ),
    "bilinear, antialiased": (
        lambda net, x: F.interpolate(x, size=(3, 3), mode="bilinear", antialias=True),
        ["Resample"],
    ),
    "bicubic": (lambda net, x: F.interpolate(x, size=(3, 8), mode="bicubic"), ["Resample"]),
    "bicubic, antialiased": (
        lambda net, x: F.interpolate(x, size=(3, 3), mode="bicubic", antialias=True),
        ["Resample"],
    ),
    "area": (lambda net, x: F.interpolate(x, size=(4, 4), mode="area"), ["Resample"]),
    "UpsamplingBilinear2d": (lambda net, x: nn.UpsamplingBilinear2d(scale_factor=2)(x), ["Resample"]),
}
# Each entry is a ReLU; record_gates sees them all.
RELUS: dict[str, Callable[[Weights, Tensor], Tensor]] = {
    "relu": lambda net, q: q.relu(),
    "relu_": lambda net, q: (2 * q).relu_(),
    "clamp": lambda net, q: q.clamp(min=0),
    "clamp_": lambda net, q: (2 * q).clamp_(0),
    "clamp to infinity": lambda net, q: torch.clamp(q, 0.0, float("inf")),
    "clamp, a tensor": lambda net, q: q.clamp(min=torch.tensor(0.0, dtype=q.dtype)),
    "clip": lambda net, q: q.clip(0),
    "clamp_min": lambda net, q: torch.clamp_min(q, 0.0),
    "clamp_min, a tensor": lambda net, q: torch.clamp_min(q, torch.zeros((), dtype=q.dtype)),
    "clip, a tensor": lambda net, q: torch.clip(q, torch.zeros((), dtype=q.dtype)),
    "threshold": lambda net, q: F.threshold(q, 0, 0),
    "threshold, in place": lambda net, q: F.threshold(2 * q, 0, 0, inplace=True),
    "hardtanh": lambda net, q: F.hardtanh(q, 0, float("inf")),
    "leaky_relu": lambda net, q: F.leaky_relu(q, 0.0),
    "maximum": lambda net, q: torch.maximum(q, torch.zeros_like(q)),
    "maximum with a number": lambda net, q: torch.maximum(torch.tensor(0.0, dtype=q.dtype), q),
    "max": lambda net, q: torch.max(q, q.new_zeros(1)),
    "fmax": lambda net, q: torch.fmax(q, torch.zeros_like(q)),
    "where": lambda net, q: torch.where(q > 0, q, torch.zeros_like(q)),
    "where with a number": lambda net, q: torch.where(q >= 0, q, 0.0),
    "where not": lambda net, q: torch.where(q <= 0, 0.0, q),
    "where, turned": lambda net, q: torch.where(q.new_zeros(()) < q, q, 0.0),
    "where, a tensor less": lambda net, q: torch.where(torch.gt(torch.zeros_like(q), q), 0.0, q),
    "where, methods": lambda net, q: q.where(q.greater_equal(0), 0.0),
    "where less": lambda net, q: torch.where(torch.less(q, 0), 0.0, q),
    "where ~": lambda net, q: torch.where(~(q > 0), 0.0, q),
    "where logical_not": lambda net, q: torch.where(torch.logical_not(q < 0), q, 0.0),
    "a mask": lambda net, q: q * (q > 0),
    "a mask of numbers": lambda net, q: (q >= 0).to(q.dtype) * q,
    "a mask of floats": lambda net, q: q * (q > 0).type_as(q),
    "a mask, detached": lambda net, q: q * (q.detach() > 0),
    "1 - a mask": lambda net, q: q * (1 - (q <= 0).to(q.dtype)),
    "torch.multiply": lambda net, q: torch.multiply(q, torch.greater(q, 0)),
    "heaviside": lambda net, q: q * torch.heaviside(q, torch.zeros((), dtype=q.dtype)),
    "masked_fill": lambda net, q: q.masked_fill(q <= 0, 0),
    "masked_fill_": lambda net, q: q.clone().masked_fill_(q < 0, 0.0),
    "an assignment": lambda net, q: set_to_zero(q),
    "nn.Threshold": lambda net, q: nn.Threshold(0, 0)(q),
}
# Each entry has the slope and the bounds of its gate; PReLU's slopes are those of the module Weights.
SLOPES: dict[str, tuple[Callable[[Weights, Tensor], Tensor], Any, Any]] = {
    "leaky_relu": (lambda net, q: F.leaky_relu(q, 0.2), 0.2, None),
    "leaky_relu_": (lambda net, q: F.leaky_relu_(2 * q, 0.3), 0.3, None),
    "LeakyReLU": (lambda net, q: nn.LeakyReLU(0.125)(q), 0.125, None),
    "prelu": (lambda net, q: F.prelu(q, net.number), "number", None),
    "prelu for each channel": (lambda net, q: F.prelu(q, net.slopes), "slopes", None),
    "rrelu": (lambda net, q: F.rrelu(q, 0.25, 0.75), 0.5, None),
    "RReLU": (lambda net, q: nn.RReLU(0.5, 1.0).eval()(q), 0.75, None),
    "abs": (lambda net, q: q.abs(), -1.0, None),
    "absolute": (lambda net, q: torch.absolute(q), -1.0, None),
    "relu6": (lambda net, q: F.relu6(q), 0.0, (0.0, 6.0)),
    "ReLU6": (lambda net, q: nn.ReLU6(inplace=True)(4 * q), 0.0, (0.0, 6.0)),
    "hardtanh": (lambda net, q: F.hardtanh(q), 0.0, (-1.0, 1.0)),
    "Hardtanh": (lambda net, q: nn.Hardtanh(-0.5, 0.25)(q), 0.0, (-0.5, 0.25)),
    "clamp": (lambda net, q: q.clamp(-1, 0.5), 0.0, (-1.0, 0.5)),
    "clip_": (lambda net, q: (2 * q).clip_(0, 1), 0.0, (0.0, 1.0)),
    "clamp, tensors": (
        lambda net, q: q.clamp(torch.tensor(-1.0, dtype=q.dtype), torch.tensor(0.5, dtype=q.dtype)),
        0.0,
        (-1.0, 0.5),
    ),
}
