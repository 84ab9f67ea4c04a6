"""Tells torch.utils.flop_counter the floating-point operations of gated layers.

Like torch's own formulas, these count products only, so a fused net has the same count as the net it was made from.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from math import prod
from types import ModuleType
from typing import Any

import torch

_COUNTER = "torch.utils.flop_counter"
_Shape = Sequence[int]


def register() -> None:
    """Registers the formulas now if torch's counter was imported, else as soon as it is.

    Importing the counter here would take a tenth of the time that importing torch takes.
    """
    if _COUNTER in sys.modules:
        _add_to(sys.modules[_COUNTER])
    else:
        sys.meta_path.insert(0, _WhenImported())


class _WhenImported:
    """An entry of Python's importers that waits for torch's counter, and removes itself when that import begins."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            loader = spec.loader
            execute = loader.exec_module

            def and_register(module: ModuleType) -> None:
                execute(module)
                _add_to(module)

            loader.exec_module = and_register  # type: ignore[method-assign]
        return spec


def _add_to(counter: ModuleType) -> None:
    for name, formula in _FORMULAS.items():
        counter.register_flop_formula(getattr(torch.ops.gatedops, name))(formula)


# Formulas get the shapes of an op's tensors in place of the tensors.


def _product(x: _Shape, weight: _Shape) -> int:
    """Counts ``x W^T`` for any leading dimensions; a gradient of x or of the weight takes as many operations."""
    return 2 * prod(x) * weight[0]


def _layer(x: _Shape, weight: _Shape, *_: Any, **__: Any) -> int:
    return _product(x, weight)


def _backward(grad: _Shape, x: _Shape | None, weight: _Shape | None, *_: Any, **__: Any) -> int:
    return sum(2 * prod(grad) * other[-1] for other in (x, weight) if other is not None)


def _pair(h: _Shape, w_f: _Shape, b_f: _Shape | None, z: _Shape, w_v: _Shape, *_: Any, **__: Any) -> int:
    return _product(h, w_f) + _product(z, w_v)


def _pair_backward(
    grad_h: _Shape,
    grad_z: _Shape,
    h: _Shape | None,
    w_f: _Shape | None,
    b_f: bool,
    z: Any,
    w_v: Any,
    *_: Any,
    **__: Any,
) -> int:
    return _backward(grad_h, h, w_f) + _backward(grad_z, z, w_v)


def _pair_soft_backward(
    grad_h: Any, grad_z: Any, q: _Shape, v: Any, h: Any, w_f: Any, b_f: bool, z: Any, w_v: Any, *_: Any, **__: Any
) -> int:
    return _backward(q, h, w_f) + _backward(q, z, w_v)


_FORMULAS = {
    "gated_linear": _layer,
    "gated_linear_relu": _layer,
    "gated_linear_soft": _layer,
    "gated_linear_backward": _backward,
    "gated_linear_soft_backward": _backward,
    "gated_linear_pair": _pair,
    "gated_linear_pair_soft": _pair,
    "gated_linear_pair_out": _pair,
    "gated_linear_pair_backward": _pair_backward,
    "gated_linear_pair_soft_backward": _pair_soft_backward,
}
