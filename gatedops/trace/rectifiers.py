"""Recognises ReLU under all its names: calls that compute ``q`` where ``q > 0`` and 0 elsewhere, and their tensor q."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Arguments = tuple[Any, ...]
Keywords = dict[str, Any]


def forms_of(*names: str) -> Iterator[Any]:
    """Yields every object that torch has under one of these names: functions, methods, operators of ATen."""
    for name in names:
        for home in (torch, F, Tensor, torch._C._nn):
            if hasattr(home, name):
                yield getattr(home, name)
        packet = getattr(torch.ops.aten, name, None)
        if isinstance(packet, torch._ops.OpOverloadPacket):
            yield packet
            yield from (getattr(packet, overload) for overload in packet.overloads())


# --- masks: whether a number is greater than 0 -------------------------------------------------------------------


@dataclass(frozen=True)
class _Mask:
    """Describes a tensor of truth values (or of 0 and 1). It is on where q > 0 if `positive`, else where q <= 0.

    version is that of q at the time of the comparison.
    """

    q: Tensor
    version: int
    positive: bool


class Masks:
    """Follows the calls of a pass and knows which tensors tell where another tensor is greater than 0."""

    def __init__(self, is_constant: Callable[[Tensor], bool]) -> None:
        self._is_constant = is_constant
        # A dict compares tensors as objects, not by their numbers.
        self._known: dict[Tensor, _Mask] = {}
        # Maps each tensor that was made as zeros to its version at that time.
        self._zeros: dict[Tensor, int] = {}

    def see(self, func: Any, args: Arguments, kwargs: Keywords, result: Any) -> None:
        """Takes note of a call that was made."""
        if func in _ZEROS:
            self._zeros[result] = _version(result)
        elif func in _COMPARISONS:
            compared = self._compared(_COMPARISONS[func], *args, **kwargs)
            if compared is not None and isinstance(result, Tensor):
                q, positive = compared
                self._known[result] = _Mask(q, _version(q), positive)
        elif self._known and isinstance(result, Tensor) and (func in _COPIES or _is_contrary(func, args)):
            source = args[0] if args else kwargs.get("input")
            known = self._known.get(source) if isinstance(source, Tensor) else None
            if known is not None:
                positive = known.positive != (func not in _COPIES or func in _NEGATIONS)
                self._known[result] = _Mask(known.q, known.version, positive)

    def says(self, mask: Any, q: Any, positive: bool) -> bool:
        """Whether the mask is on exactly where q is greater than 0 (positive), or exactly where it is not."""
        if not isinstance(mask, Tensor) or not isinstance(q, Tensor):
            return False
        known = self._known.get(mask)
        if known is None or known.positive != positive:
            return False
        return known.version == _version(known.q) and _same(known.q, q)

    def is_zero(self, value: Any) -> bool:
        """Whether a number or tensor is 0 everywhere, for all inputs."""
        if not isinstance(value, Tensor):
            return _is_zero(value)
        if value in self._zeros:
            return self._zeros[value] == _version(value)
        return (value.numel() == 1 or self._is_constant(value)) and _is_zero(value)

    def is_finite(self, value: Any) -> bool:
        """Whether a number or tensor is finite everywhere, for all inputs."""
        if not isinstance(value, Tensor):
            return isinstance(value, Real) and math.isfinite(value)
        return (value.numel() == 1 or self._is_constant(value)) and _is_finite(value)

    def _compared(
        self, order: str, left: Any = None, right: Any = None, *_: Any, **named: Any
    ) -> tuple[Tensor, bool] | None:
        """The tensor that a comparison compares with 0, and whether the result is on where that tensor is greater."""
        left, right = named.get("input", named.get("self", left)), named.get("other", named.get("values", right))
        if isinstance(left, Tensor) and self.is_zero(right):
            return left, order in ("gt", "ge")
        if isinstance(right, Tensor) and self.is_zero(left):
            return right, order in ("lt", "le")
        return None


def _is_contrary(func: Any, args: Arguments) -> bool:
    """Whether a call is 1 - mask."""
    return func in _REVERSED and len(args) > 1 and not isinstance(args[1], Tensor) and args[1] == 1


def _is_zero(value: Any) -> bool:
    """Whether a number or tensor is 0 everywhere."""
    if isinstance(value, Tensor):
        if value.numel() == 0 or value.is_meta:
            return False
        try:
            return not bool(value.detach().any())
        except RuntimeError:  # inside transformations of functions a tensor has no values
            return False
    return isinstance(value, (int, float)) and value == 0


def _is_finite(value: Tensor) -> bool:
    """Whether a tensor is finite everywhere. We do not call torch.isfinite, because a Watch would see abs inside it."""
    if value.is_meta:
        return False
    try:
        return all(map(math.isfinite, value.detach().flatten().tolist()))
    except RuntimeError:  # inside transformations of functions a tensor has no values
        return False


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same object or hold the same numbers, as a tensor and its copy do."""
    if a is b:
        return True
    if torch.compiler.is_compiling() or a.is_meta or a.shape != b.shape or a.device != b.device:
        return False
    try:
        return torch.equal(a.detach(), b.detach().to(a.dtype))
    except RuntimeError:  # inside transformations of functions a tensor has no values
        return False


def _version(tensor: Tensor) -> int:
    """A number that grows when the tensor is written to."""
    if torch.compiler.is_compiling():
        return 0
    try:
        return int(tensor._version)
    except RuntimeError:  # a tensor that was made in inference mode has no version
        return 0


_COMPARISONS: dict[Any, str] = {
    **dict.fromkeys(forms_of("gt", "greater", "__gt__", "heaviside"), "gt"),
    **dict.fromkeys(forms_of("ge", "greater_equal", "__ge__"), "ge"),
    **dict.fromkeys(forms_of("lt", "less", "__lt__"), "lt"),
    **dict.fromkeys(forms_of("le", "less_equal", "__le__"), "le"),
}
_NEGATIONS = frozenset(forms_of("logical_not", "bitwise_not", "__invert__"))
_COPIES = _NEGATIONS.union(
    forms_of("to", "type", "type_as", "float", "double", "half", "bfloat16", "detach", "clone", "contiguous", "bool"),
    forms_of("int", "long", "byte", "short", "char", "_to_copy", "alias"),
)
_REVERSED = frozenset(forms_of("rsub", "__rsub__"))
_ZEROS = frozenset(forms_of("zeros", "zeros_like", "new_zeros"))


# --- the forms of a ReLU -----------------------------------------------------------------------------------------


def _first(args: Arguments, kwargs: Keywords, masks: Masks) -> Tensor | None:
    return argument(args, kwargs, 0, "input", "self")


def _clamp(args: Arguments, kwargs: Keywords, masks: Masks) -> Tensor | None:
    """Recognises clamp(q, 0) and clamp(q, 0, inf)."""
    least, most = argument(args, kwargs, 1, "min"), argument(args, kwargs, 2, "max")
    unlimited = most is None or (isinstance(most, (int, float)) and most == math.inf)
    return argument(args, kwargs, 0, "input", "self") if masks.is_zero(least) and unlimited else None


def _threshold(args: Arguments, kwargs: Keywords, masks: Masks) -> Tensor | None:
    both = (argument(args, kwargs, 1, "threshold"), argument(args, kwargs, 2, "value"))
    return argument(args, kwargs, 0, "input", "self") if all(masks.is_zero(value) for value in both) else None


def _hardtanh(args: Arguments, kwargs: Keywords, masks: Masks) -> Tensor | None:
    least = argument(args, kwargs, 1, "min_val", default=-1.0)
    most = argument(args, kwargs, 2, "max_val", default=1.0)
    return argument(args, kwargs, 0, "input", "self") if masks.is_zero(least) and most == math.inf else None


def _leaky_relu(args: Arguments, kwargs: Keywords, masks: Masks) -> Tensor | None:
    slope = argument(args, kwargs, 1, "negative_slope", default=0.01)
    return argument(args, kwargs, 0, "input", "self") if masks.is_zero(slope) else None


def _maximum(args: Arguments, kwargs: Keywords, masks: Masks) -> Tensor | None:
    """Recognises the larger of q and 0; torch.max(q, dim=0) is another function."""
    left, right = argument(args, kwargs, 0, "input", "self"), argument(args, kwargs, 1, "other")
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return None
    for q, zero in ((left, right), (right, left)):
        if zero.dim() <= q.dim() and torch.broadcast_shapes(q.shape, zero.shape) == q.shape and masks.is_zero(zero):
            return q
    return None


def _where(args: Arguments, kwargs: Keywords, masks: Masks) -> Tensor | None:
    """Recognises where(q > 0, q, 0) and where(q <= 0, 0, q). The method where(q, mask, 0) has another order of
    arguments."""
    given = [argument(args, kwargs, index, *names) for index, names in enumerate((("condition",), ("input", "self")))]
    mask, chosen, other = *given, argument(args, kwargs, 2, "other")
    if isinstance(mask, Tensor) and mask.dtype != torch.bool:
        mask, chosen = chosen, mask
    for q, zero, positive in ((chosen, other, True), (other, chosen, False)):
        if masks.says(mask, q, positive) and masks.is_zero(zero):
            return q if isinstance(q, Tensor) else None
    return None


def _product(args: Arguments, kwargs: Keywords, masks: Masks) -> Tensor | None:
    """Recognises q times (q > 0)."""
    left, right = argument(args, kwargs, 0, "input", "self"), argument(args, kwargs, 1, "other")
    for q, mask in ((left, right), (right, left)):
        if masks.says(mask, q, True):
            return q if isinstance(q, Tensor) else None
    return None


def _filled(args: Arguments, kwargs: Keywords, masks: Masks) -> Tensor | None:
    """Recognises q.masked_fill(q <= 0, 0) and q[q <= 0] = 0."""
    q, mask = argument(args, kwargs, 0, "input", "self"), argument(args, kwargs, 1, "mask")
    value = argument(args, kwargs, 2, "value")
    return q if masks.says(mask, q, False) and masks.is_zero(value) and isinstance(q, Tensor) else None


def argument(args: Arguments, kwargs: Keywords, index: int, *names: str, default: Any = None) -> Any:
    """The argument at a place, or under one of its names."""
    if index < len(args):
        return args[index]
    return next((kwargs[name] for name in names if name in kwargs), default)


def _clamp_above(args: Arguments, kwargs: Keywords, masks: Masks) -> Tensor | None:
    """Recognises clamp_max(q, 0)."""
    return argument(args, kwargs, 0, "input", "self") if masks.is_zero(argument(args, kwargs, 1, "max")) else None


def _clamp_below_none(args: Arguments, kwargs: Keywords, masks: Masks) -> Tensor | None:
    """Recognises clamp(q, None, 0)."""
    least, most = argument(args, kwargs, 1, "min"), argument(args, kwargs, 2, "max")
    return argument(args, kwargs, 0, "input", "self") if least is None and masks.is_zero(most) else None


Form = Callable[[Arguments, Keywords, Masks], Tensor | None]

# Maps each function that can be a ReLU to the form that finds its pre-activation, or None if the call is not a ReLU.
FORMS: dict[Any, Form] = {
    **dict.fromkeys(forms_of("relu", "relu_"), _first),
    **dict.fromkeys(forms_of("clamp", "clamp_", "clip", "clip_", "clamp_min", "clamp_min_"), _clamp),
    **dict.fromkeys(forms_of("threshold", "threshold_", "_threshold"), _threshold),
    **dict.fromkeys(forms_of("hardtanh", "hardtanh_"), _hardtanh),
    **dict.fromkeys(forms_of("leaky_relu", "leaky_relu_"), _leaky_relu),
    **dict.fromkeys(forms_of("maximum", "fmax", "max"), _maximum),
    **dict.fromkeys(forms_of("where"), _where),
    **dict.fromkeys(forms_of("mul", "mul_", "multiply", "multiply_", "__mul__", "__rmul__", "__imul__"), _product),
    **dict.fromkeys(forms_of("masked_fill", "masked_fill_", "__setitem__"), _filled),
}
_IN_PLACE = frozenset(
    forms_of(
        *["relu_", "clamp_", "clip_", "clamp_min_", "threshold_", "hardtanh_", "leaky_relu_"],
        *["mul_", "multiply_", "__imul__", "masked_fill_", "__setitem__"],
    )
)


def is_in_place(func: Any, args: Arguments, kwargs: Keywords) -> bool:
    """Whether a ReLU call overwrites its pre-activation."""
    if func in _IN_PLACE:
        return True
    places = {F.relu: 1, F.threshold: 3, F.hardtanh: 3, F.leaky_relu: 2}
    return func in places and bool(argument(args, kwargs, places[func], "inplace", default=False))


# A ReLU may be made of these functions: clamp_max(q, 0), minimum(q, 0).
HALVES: dict[Any, Form] = {
    **dict.fromkeys(forms_of("clamp_max", "clamp_max_"), _clamp_above),
    **dict.fromkeys(forms_of("clamp", "clamp_"), _clamp_below_none),
    **dict.fromkeys(forms_of("minimum", "fmin"), _maximum),
}
