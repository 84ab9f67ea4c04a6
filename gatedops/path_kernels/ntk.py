"""ntk: computes the tangent kernel of a network and its parts (docs/math.md, section 14)."""

from __future__ import annotations

import traceback
from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from gatedops.arrays import as_tensor
from gatedops.ops.checks import require_dtype, require_precision
from gatedops.path_kernels.separate_rows import place_of, require_separate_layers, require_separate_rows
from gatedops.path_kernels.tangents import Tangent, TangentFeatures
from gatedops.progress import with_bar
from gatedops.trace.bare import bare
from gatedops.trace.batches import require_count
from gatedops.trace.calling import naming_inputs
from gatedops.trace.checks import devices_of, require_device, require_model

PARTS = ("V", "F", "CROSS")
_DTYPES = (torch.float32, torch.float64)
# If batch_size is None, the derivatives of one block of rows fill this many bytes.
_BLOCK_BYTES = 2**28


def ntk(
    model: nn.Module,
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray | None = None,
    *,
    parts: Collection[str] = PARTS,
    outputs: Literal["trace", "full"] = "trace",
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
    progress: bool | None = None,
) -> dict[str, Tensor]:
    """Computes the empirical tangent kernel of a network in three parts, ``K = K^V + K^F + K^CROSS`` (Lakshminarayanan,
    Singh & Rajkumar 2021, arXiv 2110.03403; docs/math.md, section 14).

    "V" is the kernel of the derivatives with all gates held fixed. "F" is the kernel of the derivatives through the
    gates alone. "CROSS" has the products of both kinds. The parts depend on the layers and the model:

    - :class:`gatedops.nn.SoftReLU` layers: their gates are functions of the same parameters, and all parts may differ
      from zero;
    - :class:`gatedops.GatedTwin`, :class:`gatedops.DGN`, :class:`gatedops.DLGN`: the value network's parameters give
      "V", the feature network's give "F", and "CROSS" is zero;
    - ReLU and max-pools, whose gates and choices are hard: no derivative passes through them, so "V" is the whole
      kernel.

    Any other activation belongs to the values, with its full derivative. Derivatives are taken with respect to the
    parameters that require a gradient, by reverse mode (torch.func), a block of rows at a time, and are multiplied
    parameter by parameter.

    Args:
        model: called with ``(1, ...)``, gives ``(1, C)`` or ``(1,)`` (then C = 1); its rows may not depend on each
            other or on random numbers. Wrappers (torch.compile, DistributedDataParallel, DataParallel) around it or its
            parts are looked through. Tensors that a forward pass keeps in it are gone afterwards.
        x: ``(n, ...)`` inputs on the model's device, a tensor or numpy array. Whole numbers are converted to `dtype`
            if the model does not take them.
        y: ``(m, ...)``; None: x itself, and each unordered pair is computed once.
        parts: the parts to compute.
        outputs: "trace" sums over the outputs, ``sum_c <df_c(x), df_c(y)>``; "full" gives each pair of outputs. In
            expectation over value weights the full kernel is K (x) I_C and its trace C times K.
        batch_size: rows of a block. Two blocks are held at a time, of ``batch_size * P`` numbers each for P parameters
            (twice that for soft gates in a net's own activations; C times with "full"). None: as many as fill 256 MiB.
        dtype: float32 or float64, for parameters, inputs and kernel. None: that of the model.
        progress: show a bar (tqdm) over the blocks. None: on a terminal, once it has taken a second.

    Returns:
        A dict of the parts asked for, each ``(n, m)``, or ``(n, m, C, C)`` with "full"; detached.

    Raises:
        TypeError, ValueError: an argument has another form; the model does not take the inputs, has no parameter that
            requires a gradient, has batch norm on batch statistics, dropout in training mode or another function of
            random numbers or of several rows, has recurrent layers of torch, or gives outputs of another shape.
    """
    wanted = _require_parts(parts)
    if outputs not in ("trace", "full"):
        raise ValueError(f"outputs: got {outputs!r}, needs 'trace' or 'full'")
    batch_size = None if batch_size is None else require_count(batch_size)
    require_model(model)
    with bare(model) as inner:
        require_separate_layers(inner)
        x, y = _inputs_of(inner, x, y)
        cross = "CROSS" in wanted
        features = TangentFeatures(
            inner, _dtype_of(inner, dtype), value=cross or "V" in wanted, feature=cross or "F" in wanted
        )
        x, y, output = _accepted(inner, features, x, y)
        identity = torch.eye(_output_count(output), dtype=features.dtype, device=x.device)
        cotangents = identity.split(1) if outputs == "trace" else (identity,)
        try:
            kernels = _kernels(features, x, y, cotangents, wanted, batch_size, progress)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(
                f"model: torch.func cannot differentiate row by row through {place_of(error, inner)};"
                f" {_remedy(error, inner)}"
            ) from error
    return {part: kernel if outputs == "full" else kernel[:, :, 0, 0] for part, kernel in kernels.items()}


def _kernels(
    features: TangentFeatures,
    x: Tensor,
    y: Tensor | None,
    cotangents: Sequence[Tensor],
    parts: Sequence[str],
    batch_size: int | None,
    progress: bool | None,
) -> dict[str, Tensor]:
    """Sums each part ``(n, m, k, k)`` over the groups of k outputs that the cotangents ``(k, C)`` choose."""
    columns, k = x if y is None else y, len(cotangents[0])
    kernels = {part: x.new_zeros((len(x), len(columns), k, k), dtype=features.dtype) for part in parts}
    if features.are_zero:
        return kernels
    size = batch_size or max(1, _BLOCK_BYTES // (features.size * k * features.dtype.itemsize))
    blocks = _blocks(len(x), len(columns), size, symmetric=y is None)
    work = [(group, i, j) for group in range(len(cotangents)) for i, j in blocks]
    row, left = (-1, -1), list[Tangent]()
    for group, i, j in with_bar(work, "tangent kernel", "block", len(work), progress):
        if (group, i) != row:
            row, left = (group, i), features(x[i : i + size], cotangents[group])
        right = left if y is None and i == j else features(columns[j : j + size], cotangents[group])
        for part, kernel in kernels.items():
            _add_products(kernel[i : i + size, j : j + size], left, right, part)
    if y is None:
        for kernel in kernels.values():
            _mirror(kernel, blocks, size)
    return kernels


def _blocks(n: int, m: int, size: int, *, symmetric: bool) -> list[tuple[int, int]]:
    """The first row and column of each block, row after row; for a symmetric matrix only the upper half."""
    return [(i, j) for i in range(0, n, size) for j in range(i if symmetric else 0, m, size)]


def _add_products(block: Tensor, left: Sequence[Tangent], right: Sequence[Tangent], part: str) -> None:
    """Adds the part's products of b and b' rows to the block ``(b, b', k, k)``."""
    for a, b in zip(left, right, strict=True):
        factors = {
            "V": [(a.value, b.value)],
            "F": [(a.feature, b.feature)],
            "CROSS": [(a.value, b.feature), (a.feature, b.value)],
        }
        for rows, columns in factors[part]:
            if rows is not None and columns is not None:
                product = rows.flatten(0, 1) @ columns.flatten(0, 1).T
                block += product.view(*rows.shape[:2], *columns.shape[:2]).transpose(1, 2)


def _mirror(kernel: Tensor, blocks: Sequence[tuple[int, int]], size: int) -> None:
    """Fills the lower half of ``(n, n, k, k)`` from the upper one: K(x, y)_cd = K(y, x)_dc, bit for bit."""
    for i, j in blocks:
        block = kernel[i : i + size, j : j + size]
        # The product of a matrix and its own transpose need not be symmetric to the last bit.
        if i == j:
            matrix = block.transpose(1, 2).flatten(2).flatten(0, 1)
            upper = matrix.triu() + matrix.triu(1).T
            block.copy_(upper.view(block.transpose(1, 2).shape).transpose(1, 2))
        else:
            kernel[j : j + size, i : i + size] = block.permute(1, 0, 3, 2)


# --- checks of the arguments --------------------------------------------------------------------------------------


def _require_parts(parts: Any) -> tuple[str, ...]:
    if isinstance(parts, str) or not isinstance(parts, Collection):
        raise TypeError(f"parts: got {parts!r}, needs a tuple such as ('V',)")
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise ValueError(f"parts: got {tuple(parts)!r}, needs some of {PARTS}")
    return tuple(dict.fromkeys(parts))


def _inputs_of(model: nn.Module, x: Any, y: Any) -> tuple[Tensor, Tensor | None]:
    x, y = as_tensor(x, "x"), None if y is None else as_tensor(y, "y")
    for name, given in (("x", x), ("y", y)):
        if given is None:
            continue
        if given.dim() == 0 or len(given) == 0:
            raise ValueError(f"{name}: got shape {tuple(given.shape)}, needs at least one row")
        require_device(devices_of(model), given, name)
    if y is not None and y.shape[1:] != x.shape[1:]:
        raise ValueError(f"y: got rows {tuple(y.shape[1:])}, those of x are {tuple(x.shape[1:])}")
    return x, y


def _accepted(
    model: nn.Module, features: TangentFeatures, x: Tensor, y: Tensor | None
) -> tuple[Tensor, Tensor | None, Any]:
    """Returns x, y and the output for the first row. Whole numbers are converted to the kernel's dtype if the model
    does not take them.

    Raises:
        TypeError, ValueError: the model does not take x; its rows depend on each other or on random numbers.
    """
    try:
        with naming_inputs("x", x, model):
            return x, y, require_separate_rows(model, features.outputs, x)
    except TypeError:
        if x.is_floating_point() or x.is_complex():
            raise
    x, y = x.to(features.dtype), None if y is None else y.to(features.dtype)
    with naming_inputs("x", x, model):
        return x, y, require_separate_rows(model, features.outputs, x)


def _dtype_of(model: nn.Module, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of the kernel; ValueError if no parameter of the model requires a gradient."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError(
            "model: has no parameters that require a gradient, so there is nothing to differentiate by; if it has"
            " parameters, call model.requires_grad_()"
        )
    own = trained[0].dtype
    if dtype is None and own not in _DTYPES:
        raise TypeError(f"dtype: the model is {own}; give torch.float32 or torch.float64")
    if dtype is not None:
        require_dtype(dtype, "dtype", _DTYPES)
        require_precision(dtype, trained[0].device, "dtype")
    return own if dtype is None else dtype


def _remedy(error: RuntimeError, model: nn.Module) -> str:
    """Says what to do about a model that torch.func cannot differentiate."""
    called = [str(error), *(frame.name for frame in traceback.extract_tb(error.__traceback__))]
    if any("checkpoint" in each for each in called):
        return "switch checkpointing off; this does not change the derivatives"
    if isinstance(model, nn.Sequential):
        return "take the tangent kernel of the part before it: ntk(nn.Sequential(*list(model)[:k]), x)"
    return "take the tangent kernel of a module without that part"


def _output_count(output: Any) -> int:
    """The number C of outputs, from the output for one row."""
    if not isinstance(output, Tensor) or output.dim() == 0:
        got = "a tensor without axes" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"model: gives {got} for one input, needs (1, C) or (1,); let it return one such tensor")
    if output.dim() not in (1, 2) or len(output) != 1 or output.numel() == 0:
        raise ValueError(f"model: gives {tuple(output.shape)} for one input, needs (1, C) or (1,); flatten its outputs")
    return output.numel()
