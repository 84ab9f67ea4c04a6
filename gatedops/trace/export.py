"""steps: a network as the list of operations that kernels of networks understand."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from gatedops.trace.checks import devices_of, require_device, require_model
from gatedops.trace.graph import Places, arguments
from gatedops.trace.step import Step
from gatedops.trace.step_builder import StepBuilder

aten = torch.ops.aten

_ROWS = 2  # of the example: with a single one torch may take the axis of the inputs for another
# Operations that differ in training mode: their flag for it, and what to say.
_EVALUATION = "is in training mode; call model.eval() first"
_TRAINING_FLAGS = {
    aten.batch_norm.default: ("training", f"{_EVALUATION} (or it keeps no running statistics, which are needed)"),
    aten.dropout.default: ("train", _EVALUATION),
    aten.feature_dropout.default: ("train", _EVALUATION),
    aten.alpha_dropout.default: ("train", _EVALUATION),
}


def steps(model: nn.Module, example: Tensor) -> list[Step]:
    """The operations of a network in the order they run, from torch.export.

    Understood are Linear, Conv2d, ReLU, MaxPool2d, AvgPool2d, AdaptiveAvgPool2d (where it divides the image evenly),
    BatchNorm and Dropout in evaluation mode, padding before a convolution, flattening, the mean over axes, the sum of
    two outputs, and adding or subtracting constants: as modules or functions, in place or not. What changes nothing
    (dropout in evaluation mode, clone, contiguous) leaves no step, nor does what the output does not depend on. Names
    are those of :func:`record_gates`.

    Args:
        model: a module that takes one tensor and returns one, in evaluation mode.
        example: ``(n, ...)``; its first row gives shape, dtype and device.

    Returns:
        The steps, first the :class:`Input`, last the one whose output the network returns. Their tensors are the
        model's own wherever it holds them.

    Raises:
        TypeError, ValueError: an argument of another form; a network that torch.export does not follow, that is in
            training mode, or that has an operation outside this list: which, and where in the model.
    """
    require_model(model)
    if not isinstance(example, Tensor):
        raise TypeError(f"example: got {type(example).__name__}, needs a tensor (n, ...)")
    if example.dim() < 2 or example.numel() == 0:
        raise ValueError(f"example: got shape {tuple(example.shape)}, needs (n, ...) with at least one row")
    require_device(devices_of(model), example, "example")
    rows = example.detach()[:1].repeat(_ROWS, *[1] * (example.dim() - 1))
    with _without_autocast(rows.device.type):
        exported = _exported(model, rows)
        places = Places(model)
        for node in exported.graph.nodes:
            flag, why = _TRAINING_FLAGS.get(node.target, (None, ""))
            if flag is not None and arguments(node)[flag]:
                raise ValueError(f"model: {places.where(node)} {why}")
        return StepBuilder(_functional(exported), places, _ROWS).steps()


def _exported(model: nn.Module, rows: Tensor) -> ExportedProgram:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on how to export, and the program is for the steps alone
            return torch.export.export(model, (rows,), strict=False)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"model: torch.export does not follow it: {type(error).__name__}: {reason}") from error


def _without_autocast(kind: str) -> AbstractContextManager[Any]:
    """Autocast would fill the program with conversions."""
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def _functional(exported: ExportedProgram) -> ExportedProgram:
    """The same program with nothing done in place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own classes
        return exported.run_decompositions({})
