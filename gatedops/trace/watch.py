"""Watches the operators that torch really runs, to find rectifiers that no handler of functions sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gatedops.trace.mode import name_of
from gatedops.trace.piecewise import PIECEWISE_FORMS
from gatedops.trace.rectifiers import FORMS, HALVES, Masks

# These functions of torch clamp at 0 inside, only because of rounding.
_NUMERICAL = frozenset(["cdist", "pdist", "dist"])
# These functions take absolute values or clamp between two bounds inside, and are not piecewise linear activations.
_PIECEWISE_INSIDE = frozenset(["softsign", "isfinite", "isinf", "isclose", "allclose", "corrcoef", "lobpcg"])


class OperatorMode(TorchDispatchMode):
    """A dispatch mode that lets operators with functions as arguments through, and that does not import torch's
    compiler, because that import takes two seconds."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class Watch(OperatorMode):
    """Names the rectifiers among the operators that run while it is on and :meth:`known` is not entered.

    An operator is a rectifier if it computes q where q > 0 and 0 elsewhere, under any name, or if its name says that a
    ReLU is a part of it (``mylib::bias_relu``).

    Args:
        where: returns the place in the model that runs now, for the report.
        is_constant: says whether no input changes a tensor.
        piecewise: count the activations of piecewise.PIECEWISE_FORMS as rectifiers too.
    """

    def __init__(
        self, where: Callable[[], str], is_constant: Callable[[Tensor], bool], piecewise: bool = False
    ) -> None:
        super().__init__()
        self._forms = (FORMS, HALVES, PIECEWISE_FORMS) if piecewise else (FORMS, HALVES)
        self._ignored = _NUMERICAL | _PIECEWISE_INSIDE if piecewise else _NUMERICAL
        self._where = where
        self._is_constant = is_constant
        self._masks = Masks(is_constant)
        self._known = 0
        self._numerical = False
        # The keys are in the order in which the rectifiers ran.
        self.missed: dict[str, None] = {}

    @contextmanager
    def known(self) -> Iterator[None]:
        """While entered, operators belong to a call that is recorded and are not reported."""
        self._known += 1
        try:
            yield
        finally:
            self._known -= 1

    def enter(self, func: Any) -> None:
        """Notes that a function of torch is called: the operators that run from now on belong to it."""
        self._numerical = name_of(func) in self._ignored

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = {} if kwargs is None else kwargs
        if self._known == 0 and not self._numerical and self._is_rectifier(func, args, kwargs):
            self.missed[f"{func.name()} in {self._where()}"] = None
        result = func(*args, **kwargs)
        self._masks.see(func, args, kwargs, result)
        return result

    def _is_rectifier(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> bool:
        if not isinstance(func, torch._ops.OpOverload):
            return False
        forms = [known[func] for known in self._forms if func in known]
        if forms:
            found = [form(args, kwargs, self._masks) for form in forms]
            return any(q is not None and q.is_floating_point() and not self._is_constant(q) for q in found)
        tensors = [value for value in args if isinstance(value, Tensor)]
        if not tensors or all(self._is_constant(tensor) for tensor in tensors):
            return False
        return _says_relu(func, args)


def _says_relu(func: Any, args: tuple) -> bool:
    """Whether the name or an argument of an operator says that a ReLU is in it. For operators of torch itself the
    answer is no, because their parts run as operators of their own, except in the transformer's fast path."""
    name = func.name().split("::")[-1].split(".")[0]
    if name == "_transformer_encoder_layer_fwd":
        # This fast path runs ReLU or GELU, and does not show which.
        return True
    if func.namespace == "aten" or func.namespace == "prims":
        return False
    return "relu" in name.split("_") or "relu" in args
