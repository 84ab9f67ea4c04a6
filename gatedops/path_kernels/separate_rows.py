"""Checks that the rows of a model do not depend on each other or on random numbers, as a tangent kernel needs."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from gatedops.trace.calling import first_line
from gatedops.trace.names import RunningModules
from gatedops.trace.watch import OperatorMode

# Another row in the batch may change a row's outputs, by rounding, by this share of the largest output.
_SAME = 1e-3
_EVAL = "call model.eval() first"
_ONCE = "draw them once, in __init__"
_DROPOUT = re.compile("dropout|bernoulli|rrelu")


def require_separate_layers(model: nn.Module) -> None:
    """Raises ValueError if a layer makes a row's outputs depend on other rows or on random numbers, or if torch.func
    has no rule for it."""
    for path, module in model.named_modules():
        where = f"model: {path or 'it'} ({type(module).__name__})"
        if isinstance(module, _BatchNorm) and module.training:
            raise ValueError(f"{where} is in training mode, so that rows depend on each other; {_EVAL}")
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"{where} keeps no running statistics, so that rows depend on each other; make it with"
                " track_running_stats=True"
            )
        if isinstance(module, _InstanceNorm) and module.training and module.running_mean is not None:
            raise ValueError(f"{where} is in training mode and would update its running statistics; {_EVAL}")
        hooks = module._forward_pre_hooks.values()
        updating = isinstance(module, _SpectralNorm) or any(isinstance(hook, SpectralNorm) for hook in hooks)
        if updating and module.training:
            raise ValueError(f"{where} has a spectral norm in training mode, which each call updates; {_EVAL}")
        if isinstance(module, _DropoutNd) and module.training and module.p > 0:
            raise ValueError(f"{where} is in training mode; {_EVAL}")
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            raise ValueError(
                f"{where} is a recurrent layer of torch, which torch.func cannot differentiate row by row; write its"
                " steps with nn.Linear layers"
            )


def require_separate_rows(model: nn.Module, outputs: Callable[[Tensor], Any], x: Tensor) -> Any:
    """Returns the output of a model for the first row of x.

    Args:
        model: the model that is called.
        outputs: calls the model.
        x: inputs; the first is tried alone and beside another.

    Raises:
        ValueError: a call draws random numbers or uses statistics of the batch. This also covers functions, which are
            not among the layers.
    """
    other, beside = x[1:2] if len(x) > 1 else torch.zeros_like(x[:1]), None
    # A model may take only one row at a time. Any other error appears with one row too.
    with suppress(RuntimeError):
        beside = _watched(model, outputs, torch.cat([x[:1], other]))
    alone = _watched(model, outputs, x[:1])
    if x.is_meta:
        return alone
    if isinstance(beside, Tensor) and isinstance(alone, Tensor) and beside.shape == (2, *alone.shape[1:]):
        difference, largest = float((beside[:1] - alone).abs().max()), float(alone.abs().max())
        if difference > _SAME * largest:
            raise ValueError(
                f"model: the outputs of a row change by {difference:.3g} with the row beside it; if the model computes"
                " a mean or a norm over all rows, compute it for each row on its own"
            )
    return alone


def place_of(error: BaseException, model: nn.Module) -> str:
    """Names the innermost module of the model that was running when the error was raised, and the error."""
    paths = {id(module): path for path, module in model.named_modules()}
    place, traceback = f"the model ({type(model).__name__})", error.__traceback__
    while traceback is not None:
        module = traceback.tb_frame.f_locals.get("self")
        if paths.get(id(module)):
            place = f"{paths[id(module)]} ({type(module).__name__})"
        traceback = traceback.tb_next
    return f"{place} ({type(error).__name__}: {first_line(error)})"


def _watched(model: nn.Module, outputs: Callable[[Tensor], Any], rows: Tensor) -> Any:
    with RunningModules(model) as modules, _Watch(modules, len(rows)) as watch:
        found = outputs(rows)
    if watch.refusal:
        raise ValueError(watch.refusal)
    return found


class _Watch(OperatorMode):
    """Notes the first operation that depends on random numbers or on all rows."""

    def __init__(self, modules: RunningModules, rows: int) -> None:
        super().__init__()
        self._modules, self._rows = modules, rows
        self.refusal = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if not self.refusal and isinstance(func, torch._ops.OpOverload):
            self.refusal = self._refusal(func, args, kwargs)
        return func(*args, **kwargs)

    def _refusal(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> str:
        names = [argument.name for argument in func._schema.arguments]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        op = func.name().removeprefix("aten::").split(".")[0].strip("_")
        if torch.Tag.nondeterministic_seeded in func.tags:
            switched_off = given.get("dropout_p") == 0 or given.get("training") is False or given.get("train") is False
            if not switched_off and not ("dropout_p" in names and "dropout_p" not in given):
                remedy = f"{_EVAL}, and pass training=self.training to functions" if _DROPOUT.search(op) else _ONCE
                return f"model: {self._modules.place()} draws random numbers ({op}): {remedy}"
        # torch computes an instance norm as a batch norm of a single row that has the channels of all rows.
        of_batch = "batch_norm" in op and (given.get("training") or given.get("train") or "running_mean" not in names)
        if of_batch and self._rows > 1 and args[0].shape[0] > 1:
            return (
                f"model: {self._modules.place()} uses statistics of the batch ({op}), so that rows depend on each"
                f" other: {_EVAL}, and give F.batch_norm running statistics"
            )
        return ""
