"""Calls a model on a user's inputs, with one clear sentence instead of torch's text if the model does not take them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

# torch says one of these if a layer is given inputs of another size than it needs.
_SIZES = re.compile(
    r"mat1 and mat2 shapes|size mismatch|Given groups=|must match the size|expected input.* to have \d+ channels"
    r"|Given normalized_shape|Kernel size can't be greater|Output size is too small|input\.size\(-1\) must be equal"
    r"|Expected \d+D .*input|running_mean should contain|Expected more than 1 value|is invalid for input of size"
    r"|expected \d+D or \d+D input|only supports \d+D|shapes cannot be multiplied|input to have \d+ channels"
    r"|Sizes of tensors must match|expecting embedding dimension|embed_dim|Expected size for first two dimensions"
    r"|too many indices|Dimension out of range|Expected input to be \d+D|must match the existing size"
    r"|expected [^ ]+ to have shape|must be divisible by|would result in an empty tensor",
    re.IGNORECASE,
)
_DTYPES = re.compile(
    r"dtype|scalar type|same type|should be the same|Long|Half|BFloat16|Byte|not implemented for '", re.IGNORECASE
)


@contextmanager
def naming_inputs(name: str, inputs: Any, model: nn.Module) -> Iterator[None]:
    """While entered, an error of torch about the dtype or shape of a model's inputs becomes one sentence that names
    the inputs. Every other exception goes through.

    Args:
        name: the argument that holds the inputs.
        inputs: what the model is called with: a tensor, or anything that holds tensors.
        model: the model that is called.

    Raises:
        TypeError: the model does not take the dtype.
        ValueError: the model does not take the shape.
    """
    try:
        yield
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError) or (isinstance(error, ValueError) and _is_ours(error)):
            raise
        given = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
        reason = first_line(error)
        needed = _dtype_needed(given, model)
        if needed is not None and _DTYPES.search(reason):
            dtype, wanted = needed
            plain = str(wanted).removeprefix("torch.")
            raise TypeError(
                f"{name}: got {dtype}, the model works in {wanted}; convert one of them: {name}.to({wanted}) (a numpy"
                f" array: {name}.astype('{plain}')) or model.to({dtype if dtype.is_floating_point else wanted}) (torch:"
                f" {reason})"
            ) from error
        if given and _SIZES.search(reason):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in given)
            raise ValueError(
                f"{name}: the model does not take inputs of shape {shapes}; give {name} the shape that its first layer"
                f" needs, inputs along the first axis (torch: {reason})"
            ) from error
        raise


def first_line(error: BaseException) -> str:
    """The first line of an exception's message."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]


def _is_ours(error: BaseException) -> bool:
    """Whether this package raised the error, which then already says what is needed."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = traceback.tb_frame.f_globals.get("__name__", "") if traceback is not None else ""
    return str(module).startswith("gatedops")


def _dtype_needed(given: list[Tensor], model: nn.Module) -> tuple[torch.dtype, torch.dtype] | None:
    """The first dtype of the inputs that no parameter has, and the parameters' own dtype; None if all fit."""
    own = [p.dtype for p in chain(model.parameters(), model.buffers()) if p.is_floating_point()]
    if not own:
        return None
    return next(((tensor.dtype, own[0]) for tensor in given if tensor.dtype not in own), None)
