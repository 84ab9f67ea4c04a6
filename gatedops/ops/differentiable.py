"""One derivative, three callers: eager autograd, torch.func transforms, and torch.compile.

register_autograd alone gives silent zeros under forward-mode differentiation, and Dynamo refuses an
autograd.Function that has a jvp. So a differentiable op is a Function in eager mode and the registered op
while compiling; both take their formulas from one place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


class Differentiable:
    """An op ``gatedops::name`` with its derivative; call it like the op.

    Args:
        name: of the op.
        save: ``save(ctx, inputs)`` keeps what the derivative needs.
        backward: ``backward(ctx, grad)`` -> a gradient or None per input. Formulas call Differentiables, so
            derivatives of any order exist.
        jvp: ``jvp(ctx, *tangents)`` -> the output's tangent.
    """

    def __init__(
        self,
        name: str,
        save: Callable[[Any, tuple], None],
        backward: Callable[[Any, Tensor], tuple],
        jvp: Callable[..., Tensor],
    ) -> None:
        op = getattr(torch.ops.gatedops, name).default

        def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
            save(ctx, inputs)

        torch.library.register_autograd(f"gatedops::{name}", backward, setup_context=setup_context)
        self._op = op
        self._function: Any = type(
            f"gatedops_{name}",
            (torch.autograd.Function,),
            {
                "forward": staticmethod(lambda *inputs: op(*inputs)),
                "setup_context": staticmethod(setup_context),
                "backward": staticmethod(backward),
                "jvp": staticmethod(jvp),
                "generate_vmap_rule": True,
            },
        )

    def __call__(self, *inputs: Any) -> Tensor:
        if torch.compiler.is_compiling() or not _is_recorded(inputs):
            return self._op(*inputs)
        return self._function.apply(*inputs)


def _is_recorded(inputs: tuple) -> bool:
    """Whether some form of differentiation watches: reverse mode, torch.func, or dual numbers."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in inputs)
