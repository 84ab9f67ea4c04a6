"""Whether the rows of a model are independent of each other and of chance, as a tangent kernel needs them."""

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

_SAME = 1e-3  # of the largest output: what rounding may change where another row stands beside a row
_EVAL = "call model.eval() first"
_ONCE = "draw them once, in __init__"
_DROPOUT = re.compile("dropout|bernoulli|rrelu")


def require_separate_layers(model: nn.Module) -> None:
    """Raises ValueError where a layer makes a row's outputs depend on other rows or on chance, or has no rule in
    torch.func."""
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
                f"{where} is a recurrent layer of torch, through which torch.func takes no derivatives row by row;"
                " write its steps with nn.Linear layers"
            )


def require_separate_rows(model: nn.Module, outputs: Callable[[Tensor], Any], x: Tensor) -> Any:
    """What a model gives for the first row of x.

    Args:
        model: the model that is called.
        outputs: calls it.
        x: inputs, of which the first is tried alone and beside another.

    Raises:
        ValueError: a call draws random numbers or uses statistics of the batch: functions too, which no list of layers
            shows.
    """
    other, beside = x[1:2] if len(x) > 1 else torch.zeros_like(x[:1]), None
    with suppress(RuntimeError):  # a model may take one row at a time; what else is wrong shows with one row too
        beside = _watched(model, outputs, torch.cat([x[:1], other]))
    alone = _watched(model, outputs, x[:1])
    if x.is_meta:
        return alone
    if isinstance(beside, Tensor) and isinstance(alone, Tensor) and beside.shape == (2, *alone.shape[1:]):
        difference, largest = float((beside[:1] - alone).abs().max()), float(alone.abs().max())
        if difference > _SAME * largest:
            raise ValueError(
                f"model: the outputs of a row change by {difference:.3g} with the row beside it; compute what it takes"
                " over all rows (a mean, a norm) for each row on its own"
            )
    return alone


def place_of(error: BaseException, model: nn.Module) -> str:
    """The innermost module of the model that was running when the error was raised, and what it says."""
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
    """Notes the first operation that depends on chance or on all rows."""

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
        # An instance norm is one of torch's batch norms of a single row, which has the channels of all rows.
        of_batch = "batch_norm" in op and (given.get("training") or given.get("train") or "running_mean" not in names)
        if of_batch and self._rows > 1 and args[0].shape[0] > 1:
            return (
                f"model: {self._modules.place()} uses statistics of the batch ({op}), so that rows depend on each"
                f" other: {_EVAL}, and give F.batch_norm running statistics"
            )
        return ""
