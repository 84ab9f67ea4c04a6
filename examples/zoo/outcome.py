"""What came out of one step: "yes" or why not, how long it took, and how much memory."""

from __future__ import annotations

import math
import re
import textwrap
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from steps import Nothing, Step, Wrong
from torch import nn

_CELL = 96  # characters of a reason in the table
_SOURCE = re.compile(r", [\w./]+\.py:\d+: .*?(?= (?:is|are|has|needs|returns) )")  # a line of a program in a sentence
_ARGUMENT = re.compile(r"(\w+: )?(.*)", re.DOTALL)
_CLASS = re.compile(r" \([A-Z]\w*\)")
_CLAUSE = re.compile(r"[;:]\s|\.\s|\n|, so |, which |, (?=use |call |give |pass )")
_PEAK = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Outcome:
    """One cell of the table.

    Args:
        kind: "yes"; "no", refused in a sentence; "none", nothing to do; "fault": a wrong result, or an error without
            a sentence of the library's.
        detail: of a "yes", how many layers; else the whole reason.
        warnings: the sentences that the step warned with.
        seconds, mib: of the step without its check; MiB is the peak beyond what was resident before, NaN where unknown.
    """

    kind: str
    detail: str
    warnings: tuple[str, ...]
    seconds: float
    mib: float

    @property
    def cell(self) -> str:
        """The outcome in a few words."""
        if self.kind == "yes":
            notes = [self.detail] * bool(self.detail) + ["warns"] * bool(self.warnings)
            return f"yes ({', '.join(notes)})" if notes else "yes"
        short = shortened(self.detail)
        return f"FAULT: {short}" if self.kind == "fault" else short


def outcome(step: Step, model: nn.Module, example: Any) -> Outcome:
    """Runs one step, then checks its result, and that the model is as it was."""
    before = state(model)
    start, resident = time.perf_counter(), _reset_peak()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kind, result = _tried(lambda: step.work(model, example))
    seconds, mib = time.perf_counter() - start, max(0.0, _status("VmHWM") - resident)
    if not _same(before, state(model)):
        kind, result = "fault", "the network itself was changed"
    if kind == "yes":
        kind, result = _tried(lambda: step.check(result, model, example))
    return Outcome(kind, result, tuple(dict.fromkeys(str(one.message) for one in caught)), seconds, mib)


def shortened(reason: str) -> str:
    """The first clause of a sentence, without the word "model:" in front, classes in brackets and lines of source."""
    argument, sentence = _ARGUMENT.match(reason.removeprefix("model: ")).groups("")  # type: ignore[union-attr]
    clause = _CLAUSE.split(_CLASS.sub("", _SOURCE.sub("", sentence)), maxsplit=1)[0]
    return textwrap.shorten(argument + clause, _CELL, placeholder=" ...")


def state(model: nn.Module) -> list[Any]:
    """All that a step could leave behind: tensors, modes, hooks, classes of modules."""
    tensors = [tensor.detach().clone() for tensor in (*model.parameters(), *model.buffers())]
    needed = [parameter.requires_grad for parameter in model.parameters()]
    modules = [(type(module), module.training, *map(len, _hooks(module))) for module in model.modules()]
    return [tensors, needed, modules]


def _hooks(module: nn.Module) -> list[dict[int, Any]]:
    return [module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks]


def _same(a: list[Any], b: list[Any]) -> bool:
    return all(map(torch.equal, a[0], b[0])) and a[1:] == b[1:]


def _tried(task: Callable[[], Any]) -> tuple[str, Any]:
    """("yes", the result), or the kind of outcome and the reason."""
    try:
        return "yes", task()
    except Nothing as nothing:
        return "none", str(nothing)
    except Wrong as wrong:
        return "fault", str(wrong)
    except (ValueError, TypeError) as error:
        return "no", str(error)
    except Exception as error:  # anything else is a fault, which the table is there to show
        return "fault", f"{type(error).__name__}: {error}"


def _reset_peak() -> float:
    """Makes the peak the memory of now, which it returns, in MiB."""
    if not _PEAK.exists():
        return math.nan
    _PEAK.write_text("5")
    return _status("VmRSS")


def _status(key: str) -> float:
    """A size that Linux tells about this process, in MiB."""
    if not _PEAK.exists():
        return math.nan
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key))) / 1024
