"""Computes Jacobians of a network row by row, split into the parts of its values and of its gates (docs/math.md,
section 14)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from gatedops.nn import DGN, SoftReLU
from gatedops.trace import GatedTwin
from gatedops.trace.checks import uncompiled

# torch gives this warning about ops without a batching rule, such as ours. It calls them row by row, with the same
# result.
_ROW_BY_ROW = ".*we have not yet implemented the batching rule for"


@dataclass(frozen=True)
class Tangent:
    """psi^V and psi^F of one parameter with P entries, for b rows and k outputs: each ``(b, k, P)``, or None if zero.

    value is the derivative with all gates held fixed, feature the derivative through the gates.
    """

    value: Tensor | None
    feature: Tensor | None


class TangentFeatures:
    """Computes the derivatives of a network's outputs with respect to its trainable parameters.

    Args:
        model: a network whose rows do not depend on each other.
        dtype: float32 or float64; parameters, buffers and inputs are converted to it.
        value, feature: which of the two derivatives are wanted.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, *, value: bool = True, feature: bool = True) -> None:
        self._model = model
        self.dtype = dtype
        self._wanted = (value, feature)
        trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        of_gates = _parameters_of_gates(model)
        named = dict(model.named_parameters())
        # The dictionaries are separate, so only the parameters that are asked for are differentiated.
        self._gating = {name: self._converted(p) for name, p in trained.items() if id(named[name]) in of_gates}
        self._own = {name: self._converted(p) for name, p in trained.items() if name not in self._gating}
        constant = {**dict(model.named_buffers()), **{n: p for n, p in named.items() if n not in trained}}
        self._constant = {name: self._converted(tensor.detach()) for name, tensor in constant.items()}
        self._soft = [module for module in model.modules() if isinstance(module, SoftReLU)]

    @property
    def size(self) -> int:
        """The number of entries of the derivatives of one output of one row."""
        own = sum(p.numel() for p in self._own.values()) * (2 if self._soft and self._wanted[1] else 1)
        return own + sum(p.numel() for p in self._gating.values())

    @property
    def are_zero(self) -> bool:
        """Whether nothing that is wanted can differ from zero."""
        value, feature = self._wanted
        return not (value and self._own) and not (feature and (self._gating or (self._own and self._soft)))

    def outputs(self, rows: Tensor) -> Tensor:
        """The network's outputs for the rows, without derivatives."""
        with torch.no_grad(), uncompiled():
            return self._call({}, self._converted(rows))

    def __call__(self, rows: Tensor, cotangents: Tensor) -> list[Tangent]:
        """One Tangent for each parameter, for rows ``(b, ...)`` and k combinations of the outputs, ``(k, C)``."""
        value, feature = self._wanted
        # torch's products may round differently for other strides.
        rows = self._converted(rows).contiguous()
        found: list[Tangent] = []
        if feature and self._gating:
            found += [Tangent(None, whole) for whole in self._jacobians(self._gating, rows, cotangents)]
        if not self._own or not (value or (feature and self._soft)):
            return found
        with _constant_gates(self._soft):
            fixed = self._jacobians(self._own, rows, cotangents)
        if not (feature and self._soft):
            return found + [Tangent(v, None) for v in fixed]
        whole = self._jacobians(self._own, rows, cotangents)
        return found + [Tangent(v, w - v) for v, w in zip(fixed, whole, strict=True)]

    def _jacobians(self, parameters: dict[str, Tensor], rows: Tensor, cotangents: Tensor) -> list[Tensor]:
        """The derivatives ``(b, k, P)`` with respect to each of the parameters."""

        def of_row(row: Tensor) -> dict[str, Tensor]:
            pull = vjp(lambda moved: self._call(moved, row.unsqueeze(0)).flatten(), parameters)[1]
            return vmap(lambda cotangent: pull(cotangent)[0])(cotangents)

        with torch.no_grad(), uncompiled(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", _ROW_BY_ROW, UserWarning)
            by_name = vmap(of_row)(rows)
        return [by_name[name].flatten(2) for name in parameters]

    def _call(self, moved: dict[str, Tensor], rows: Tensor) -> Tensor:
        tensors = {**self._own, **self._gating, **self._constant, **moved}
        return functional_call(self._model, tensors, (rows,))

    def _converted(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


def _parameters_of_gates(model: nn.Module) -> frozenset[int]:
    """The ids of the parameters of feature networks, which move only gates."""
    networks = [module.feature for module in model.modules() if isinstance(module, (DGN, GatedTwin))]
    return frozenset(id(parameter) for network in networks for parameter in network.parameters())


@contextmanager
def _constant_gates(layers: list[SoftReLU]) -> Iterator[None]:
    """While entered, no derivative passes through the gates of these layers."""
    hooks = [layer.register_forward_hook(lambda layer, q, _: q[0] * layer.gate(q[0]).detach()) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
