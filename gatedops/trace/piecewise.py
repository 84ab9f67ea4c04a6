"""Recognises activations of two slopes that are not ReLUs: LeakyReLU, PReLU, RReLU and abs, and ReLU6, hardtanh and
clamp, which are flat outside two bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gatedops.trace.mode import PIECEWISE, Call, Intercept
from gatedops.trace.rectifiers import Arguments, Form, Keywords, Masks, argument, forms_of

Bounds = tuple[Any, Any]


def _pre_activation(args: Arguments, kwargs: Keywords, masks: Masks) -> Tensor | None:
    return argument(args, kwargs, 0, "input", "self")


def _clamp_bounds(args: Arguments, kwargs: Keywords) -> Bounds:
    return argument(args, kwargs, 1, "min"), argument(args, kwargs, 2, "max")


def _hardtanh_bounds(args: Arguments, kwargs: Keywords) -> Bounds:
    return argument(args, kwargs, 1, "min_val", default=-1.0), argument(args, kwargs, 2, "max_val", default=1.0)


def _relu6_bounds(args: Arguments, kwargs: Keywords) -> Bounds:
    return 0.0, 6.0


def _between(read: Callable[[Arguments, Keywords], Bounds]) -> Form:
    """Returns the form of the functions whose bounds `read` reads: the call must have two, and both must be finite."""

    def form(args: Arguments, kwargs: Keywords, masks: Masks) -> Tensor | None:
        q = argument(args, kwargs, 0, "input", "self")
        return q if all(masks.is_finite(bound) and _fits(bound, q) for bound in read(args, kwargs)) else None

    return form


def _fits(bound: Any, q: Any) -> bool:
    """Whether a bound leaves the shape of q as it is."""
    if not isinstance(bound, Tensor):
        return True
    return bound.dim() <= q.dim() and torch.broadcast_shapes(q.shape, bound.shape) == q.shape


_BOUNDS: dict[Any, Callable[[Arguments, Keywords], Bounds]] = {
    **dict.fromkeys(forms_of("clamp", "clamp_", "clip", "clip_"), _clamp_bounds),
    **dict.fromkeys(forms_of("hardtanh", "hardtanh_"), _hardtanh_bounds),
    **dict.fromkeys(forms_of("relu6"), _relu6_bounds),
}
_RRELU = ("rrelu", "rrelu_")
_RRELU_WITH_NOISE = ("rrelu_with_noise", "rrelu_with_noise_", "rrelu_with_noise_functional")
# Maps each function that can be an activation of two slopes to the form that finds its pre-activation, or None if the
# call is another function. Some of these calls are ReLUs: look the call up in rectifiers.FORMS first.
PIECEWISE_FORMS: dict[Any, Form] = {
    **dict.fromkeys(forms_of("leaky_relu", "leaky_relu_", "prelu", "_prelu_kernel"), _pre_activation),
    **dict.fromkeys(forms_of("abs", "abs_", "absolute", "absolute_", "__abs__"), _pre_activation),
    **dict.fromkeys(forms_of(*_RRELU, *_RRELU_WITH_NOISE), _pre_activation),
    **{func: _between(read) for func, read in _BOUNDS.items()},
}
# Gives the place of `training` among the arguments of each RReLU.
_TRAINING = {**dict.fromkeys(forms_of(*_RRELU), 3), **dict.fromkeys(forms_of(*_RRELU_WITH_NOISE), 4)}


class PiecewiseIntercept(Intercept):
    """An Intercept that also knows calls of the kind PIECEWISE: activations of two slopes that are not ReLUs."""

    def _call(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Call | None:
        call = super()._call(func, args, kwargs)
        form = PIECEWISE_FORMS.get(func)
        if call is not None or form is None or "out" in kwargs:
            return call
        q = form(args, kwargs, self._masks)
        # A clamp of whole numbers clamps indices or lengths and makes no gate.
        if not isinstance(q, Tensor) or not q.is_floating_point():
            return None
        return Call(PIECEWISE, func, args, kwargs, q)


def on(call: Call) -> Tensor:
    """A tensor of the shape of the pre-activation that is greater than 0 where the gates of a PIECEWISE call are on:
    strictly between its two bounds, or, if it has none, where the pre-activation is greater than 0."""
    read = _BOUNDS.get(call.func)
    if read is None:
        return call.input
    low, high = read(call.args, call.kwargs)
    return (call.input > low) & (call.input < high)


def is_random(call: Call) -> bool:
    """Whether a call is an RReLU in training mode, which draws its slopes."""
    place = _TRAINING.get(call.func)
    return place is not None and bool(argument(call.args, call.kwargs, place, "training", default=False))
