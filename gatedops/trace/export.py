"""steps: turns a network into the list of operations that the kernels of networks understand."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from gatedops.trace.bare import bare
from gatedops.trace.calling import first_line, naming_inputs
from gatedops.trace.checks import devices_of, evaluating, require_device, require_model, uncompiled
from gatedops.trace.converters import CONVERTERS
from gatedops.trace.graph import Places, arguments, dependents, path_of
from gatedops.trace.outputs import Output, chosen, require_choice, returning
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
    aten.rrelu.default: ("training", _SELF),
}


def steps(
    model: nn.Module,
    example: Tensor,
    *,
    output: Output | None = None,
    name: str = "example",
    otherwise: str = GATES_ALONE,
) -> list[Step]:
    """Returns the operations of a network in the order in which they run, from torch.export.

    It understands these operations, as modules or functions, in place or not:

    - Linear over the last axis, Conv1d, Conv2d and Conv3d (a Conv1d becomes a :class:`Conv2d` of images of one row),
      transposed convolutions (a :class:`Rearrange`, which puts zeros between the pixels, and a :class:`Conv2d`),
      BatchNorm and Dropout in evaluation mode;
    - ReLU under all its names (relu, clamp(q, min=0), maximum(q, 0), where(q > 0, q, 0), q * (q > 0), masked_fill,
      threshold, hardtanh(q, 0, inf)), LeakyReLU, PReLU, RReLU in evaluation mode, abs, and ReLU6, hardtanh and clamp
      with two bounds: each becomes a :class:`Gate`;
    - MaxPool1d, MaxPool2d, AvgPool1d, AvgPool2d, adaptive average pools, the mean over axes, and interpolation: nearest
      becomes a :class:`Rearrange`, any other kind, and an adaptive pool that does not divide the image evenly, a
      :class:`Resample`;
    - the sum and difference of two outputs, products and quotients with constants, adding and subtracting constants;
    - concatenation; and everything that only moves numbers, such as slices, permutations, reshapes, channel shuffle,
      pixel shuffle, and padding with zeros, circular, reflected or replicated. A convolution takes over zeros or
      circular padding right before it. All else that moves numbers between two other steps becomes one
      :class:`Flatten` or :class:`Rearrange`;
    - softmax, log_softmax or sigmoid at the end.

    An operation that changes no value (dropout in evaluation mode, clone, contiguous, a rearrangement and its reverse,
    adding a 0 or multiplying by a 1 that is not a parameter) makes no step, and neither does one that the output does
    not depend on. A tensor that is computed from parameters and buffers alone counts as a constant, whatever computes
    it. Names are those of :func:`record_gates`. Shapes are those of the model for one input; no step says which axis
    holds channels.

    Args:
        model: a module that takes one tensor, in evaluation mode. Wrappers (torch.compile, DistributedDataParallel,
            DataParallel) around it or its parts are looked through.
        example: ``(n, ...)``; its first row gives shape, dtype and device, and the first few rows are tried.
        output: the index, key or name of one tensor, if the model returns a tuple, list, dict or dataclass. None: the
            model returns one tensor.
        name: what errors call the example.
        otherwise: what errors tell the user to do if the network has an operation outside this list.

    Returns:
        The steps. The first is the :class:`Input`, the last the one whose output the network returns. Their tensors are
        the model's own if the model holds them. The tensors of Rearrange and Resample lie on the CPU.

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
            require_choice(inner(rows), output)
        with returning(inner, output):
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
            require_same_outputs(lambda batch: chosen(inner(batch), output), example)
        return found


def _exported(model: nn.Module, rows: Tensor, otherwise: str) -> ExportedProgram:
    try:
        with torch.no_grad(), _without_determinism(), warnings.catch_warnings():
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


@contextmanager
def _without_determinism() -> Iterator[None]:
    """Switches deterministic algorithms off: with them torch writes interpolation as many operations on some
    devices."""
    enabled, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)


def _functional(exported: ExportedProgram) -> ExportedProgram:
    """Returns the same program without operations in place."""
    with warnings.catch_warnings():
        # torch warns about classes of its own.
        warnings.simplefilter("ignore")
        return exported.run_decompositions({})
