"""steps: turns a network into the list of operations that the kernels of networks understand."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from gatedops.trace.bare import bare
from gatedops.trace.calling import first_line, naming_inputs
from gatedops.trace.checks import devices_of, evaluating, require_device, require_model, uncompiled
from gatedops.trace.converters import CONVERTERS
from gatedops.trace.graph import Places, arguments, dependents, path_of
from gatedops.trace.repeats import require_same_outputs
from gatedops.trace.step import Step
from gatedops.trace.step_builder import GATES_ALONE, StepBuilder

aten = torch.ops.aten

# The example gets this many rows: with a single row, torch may confuse the axis of the inputs with another axis.
_ROWS = 2
# Maps each operation that differs in training mode to its flag for that mode, and to what the user can do if the flag
# is set although the module is in evaluation mode.
_SELF = "pass training=self.training"
_STATISTICS = "give it running statistics: track_running_stats=True, or running_mean and running_var"
_TRAINING_FLAGS: dict[Any, tuple[str, str]] = {
    aten.batch_norm.default: ("training", _STATISTICS),
    aten.instance_norm.default: ("use_input_stats", ""),
    aten.dropout.default: ("train", _SELF),
    aten.feature_dropout.default: ("train", _SELF),
    aten.alpha_dropout.default: ("train", _SELF),
    aten.feature_alpha_dropout.default: ("train", _SELF),
}


def steps(model: nn.Module, example: Tensor, *, name: str = "example", otherwise: str = GATES_ALONE) -> list[Step]:
    """Returns the operations of a network in the order in which they run, from torch.export.

    It understands Linear, Conv2d, ReLU, MaxPool2d, AvgPool2d, AdaptiveAvgPool2d (if it divides the image evenly),
    BatchNorm and Dropout in evaluation mode, padding before a convolution, flattening, the mean over axes, the sum of
    two outputs, and adding or subtracting constants: as modules or functions, in place or not. An operation that
    changes no value (dropout in evaluation mode, clone, contiguous, a rearrangement and its reverse, adding a 0 that is
    not a parameter, multiplying by 1) makes no step, and neither does one that the output does not depend on. A tensor
    that is computed from parameters and buffers alone counts as a constant, whatever computes it. Names are those of
    :func:`record_gates`.

    Args:
        model: a module that takes one tensor and returns one, in evaluation mode. Wrappers (torch.compile,
            DistributedDataParallel, DataParallel) around it or its parts are looked through.
        example: ``(n, ...)``; its first row gives shape, dtype and device, and the first few rows are tried.
        name: what errors call the example.
        otherwise: what errors tell the user to do if the network has an operation outside this list.

    Returns:
        The steps. The first is the :class:`Input`, the last the one whose output the network returns. Their tensors are
        the model's own if the model holds them.

    Raises:
        TypeError, ValueError: an argument has another form; the example has a dtype or shape that the model does not
            take; torch.export does not follow the network; the network is random, is in training mode, does not compute
            each row on its own, or has an operation outside this list. The error names the operation, its place in the
            model, and what to do.
    """
    require_model(model)
    if not isinstance(example, Tensor):
        raise TypeError(f"{name}: got {type(example).__name__}, needs a tensor (n, ...)")
    if example.dim() < 2 or example.numel() == 0:
        raise ValueError(f"{name}: got shape {tuple(example.shape)}, needs (n, ...) with at least one row")
    require_device(devices_of(model), example, name)
    rows = example.detach()[:1].repeat(_ROWS, *[1] * (example.dim() - 1))
    with bare(model) as inner, uncompiled(), _without_autocast(rows.device.type):
        # We call the model once first: torch.export prints pages of text about inputs that do not fit.
        with torch.no_grad(), evaluating(inner), naming_inputs(name, example, inner), warnings.catch_warnings():
            # The model gives its own warnings when its gates are recorded.
            warnings.simplefilter("ignore")
            inner(rows)
        exported = _exported(inner, rows, otherwise)
        places = Places(inner)
        for node in dependents(exported):
            flag, remedy = _TRAINING_FLAGS.get(node.target, ("", ""))
            if flag and arguments(node)[flag] and arguments(node).get("p") != 0:
                if inner.get_submodule(path_of(node)).training:
                    raise ValueError(f"model: {places.where(node)} is in training mode; call model.eval() first")
                raise ValueError(
                    f"model: {places.where(node)} has {flag}=True in evaluation mode too; {remedy or otherwise}"
                )
        found = StepBuilder(_functional(exported), places, _ROWS, CONVERTERS, otherwise).steps()
        with evaluating(inner), naming_inputs(name, example, inner), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            require_same_outputs(inner, example)
        return found


def _exported(model: nn.Module, rows: Tensor, otherwise: str) -> ExportedProgram:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # These warnings are about how to export a program; we only read the steps from it.
            warnings.simplefilter("ignore")
            return torch.export.export(model, (rows,), strict=False)
    except Exception as error:
        raise ValueError(
            f"model: torch.export does not follow it: {type(error).__name__}: {first_line(error)}; {otherwise}"
        ) from error


def _without_autocast(kind: str) -> AbstractContextManager[Any]:
    """Switches autocast off: it would fill the program with conversions."""
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def _functional(exported: ExportedProgram) -> ExportedProgram:
    """Returns the same program without operations in place."""
    with warnings.catch_warnings():
        # torch warns about classes of its own.
        warnings.simplefilter("ignore")
        return exported.run_decompositions({})
