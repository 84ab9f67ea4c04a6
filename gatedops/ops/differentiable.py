"""Gives an op one derivative for eager autograd, for torch.func transforms and for torch.compile.

register_autograd alone gives silent zeros under forward-mode differentiation, and Dynamo refuses an autograd.Function
that has a jvp. So a differentiable op is a Function in eager mode and the registered op while compiling; both take
their formulas from one place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


class _Opaque:
    """Hides an argument from transformations: vmap would take lists apart."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _hide(inputs: tuple) -> tuple:
    return tuple(_Opaque(value) if isinstance(value, (list, tuple)) else value for value in inputs)


def _show(inputs: tuple) -> tuple:
    return tuple(value.value if isinstance(value, _Opaque) else value for value in inputs)


class Differentiable:
    """An op ``gatedops::name`` with its derivative; call it like the op.

    Args:
        name: the name of the op.
        save: ``save(ctx, inputs)`` keeps what the derivative needs.
        backward: ``backward(ctx, *grads)`` takes one gradient per output and returns a gradient or None per input.
            Formulas call Differentiables, so derivatives of any order exist.
        jvp: ``jvp(ctx, *tangents)`` returns the tangent of each output.
        saves_output: the derivative needs the outputs as well, and `save` is called as ``save(ctx, inputs, output)``.
    """

    def __init__(
        self,
        name: str,
        save: Callable[..., None],
        backward: Callable[..., Any],
        jvp: Callable[..., Any],
        *,
        saves_output: bool = False,
    ) -> None:
        op = getattr(torch.ops.gatedops, name).default

        def below_autograd(*inputs: Any) -> Any:
            # The Function has the derivative already; the registered one would only cost time.
            with torch._C._AutoDispatchBelowAutograd():
                return op(*inputs)

        def forward(*inputs: Any) -> Any:
            return below_autograd(*_show(inputs))

        def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
            save(ctx, _show(inputs), *([output] if saves_output else []))

        def forward_and_save(ctx: Any, *inputs: Any) -> Any:
            output = below_autograd(*inputs)
            if saves_output:
                save(ctx, inputs, output)
            else:
                save(ctx, inputs)
            return output

        torch.library.register_autograd(f"gatedops::{name}", backward, setup_context=setup_context)
        methods = {"backward": staticmethod(backward), "jvp": staticmethod(jvp)}
        self._op = op
        self._below_autograd = below_autograd
        self._function: Any = type(
            f"gatedops_{name}",
            (torch.autograd.Function,),
            methods
            | {
                "forward": staticmethod(forward),
                "setup_context": staticmethod(setup_context),
                "generate_vmap_rule": True,
            },
        )
        # For reverse mode alone, a Function without setup_context takes half the time: its apply skips the work for
        # torch.func, of which binding the arguments alone takes 13 us a call.
        recorded = type(
            f"gatedops_{name}", (torch.autograd.Function,), methods | {"forward": staticmethod(forward_and_save)}
        )
        self._recorded: Any = super(torch.autograd.Function, recorded).apply  # type: ignore[misc]

    def __call__(self, *inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self._op(*inputs)
        if torch._C._are_functorch_transforms_active():
            return self._function.apply(*_hide(inputs))
        if forward_ad._current_level >= 0 or _needs_gradient(inputs):
            return self._recorded(*inputs)
        return self._below_autograd(*inputs)


def _needs_gradient(inputs: tuple) -> bool:
    if torch.is_grad_enabled():
        for value in inputs:
            if isinstance(value, Tensor) and value.requires_grad:
                return True
    return False


def is_recorded(*inputs: Any) -> bool:
    """Whether torch.func, dual numbers or reverse mode will differentiate a call with these inputs."""
    if not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    ):
        return True
    return _needs_gradient(inputs)


def plus(*terms: Tensor | None) -> Tensor | None:
    """Returns the sum of the terms that are not None, or None if all are."""
    total: Tensor | None = None
    for term in terms:
        total = term if total is None else total if term is None else total + term
    return total
