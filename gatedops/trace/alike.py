"""Runs two networks on the same inputs, so that the second finds everything as the first found it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor


def first_of_two(run: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> None:
    """Runs the first of two networks. It gets copies of the lists and dicts in the inputs, and the second network draws
    the same random numbers on the CPU again.

    Raises:
        ValueError: the network wrote into a tensor of the inputs.
    """
    if torch.compiler.is_compiling():
        run(*args, **kwargs)
        return
    if any(isinstance(value, (list, dict)) for value in (*args, *kwargs.values())):
        args, kwargs = pytree.tree_map(lambda leaf: leaf, (args, kwargs))
    written = [(leaf, leaf._version) for leaf in (*args, *kwargs.values()) if _is_counted(leaf)]
    drawn = torch.get_rng_state()
    run(*args, **kwargs)
    if not torch.equal(torch.get_rng_state(), drawn):
        torch.set_rng_state(drawn)
    if any(tensor._version != version for tensor, version in written):
        raise ValueError(
            "model: writes into its inputs, which its twin takes twice; let its forward work on a copy: x = x.clone()"
        )


def _is_counted(leaf: Any) -> bool:
    """Whether torch counts the writes into this value."""
    return (
        isinstance(leaf, Tensor)
        and not leaf.is_inference()
        and not torch._C._functorch.is_functorch_wrapped_tensor(leaf)
    )
