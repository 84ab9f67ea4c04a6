"""Runs one step and says what came out: "yes" or why not, how long it took, and how much memory."""

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

# A reason in the table has at most this many characters.
_CELL = 96
# This matches a line of a program inside a sentence.
_SOURCE = re.compile(r", [\w./]+\.py:\d+: .*?(?= (?:is|are|has|needs|returns) )")
_ARGUMENT = re.compile(r"(\w+: )?(.*)", re.DOTALL)
_CLASS = re.compile(r" \([A-Z]\w*\)")
_CLAUSE = re.compile(r"[;:]\s|\.\s|\n|, so |, which |, (?=use |call |give |pass )")
_PEAK = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Outcome:
    """One cell of the table.

    Args:
        kind: "yes"; "no" if the library refuses with a sentence; "none" if there is nothing to do; "fault" if the
            result is wrong, or an error has no sentence of the library.
        detail: for a "yes", a note such as how many layers; else the whole reason.
        warnings: the sentences of the step's warnings.
        seconds, mib: the time and memory of the step without its check. mib is the peak beyond what was resident
            before, NaN if it is unknown.
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


def outcome(step: Step, model: nn.Module, example: Any, **options: Any) -> Outcome:
    """Runs one step with these options, then checks its result, and that the step did not change the model."""
    before = state(model)
    start, resident = time.perf_counter(), _reset_peak()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kind, result = _tried(lambda: step.work(model, example, **options))
    seconds, mib = time.perf_counter() - start, max(0.0, _status("VmHWM") - resident)
    if not _same(before, state(model)):
        kind, result = "fault", "the network itself was changed"
    if kind == "yes":
        kind, result = _tried(lambda: step.check(result, model, example, **options))
    return Outcome(kind, result, tuple(dict.fromkeys(str(one.message) for one in caught)), seconds, mib)


def shortened(reason: str) -> str:
    """Returns the first clause of a sentence, without a leading "model:", classes in brackets and lines of source."""
    argument, sentence = _ARGUMENT.match(reason.removeprefix("model: ")).groups("")  # type: ignore[union-attr]
    clause = _CLAUSE.split(_CLASS.sub("", _SOURCE.sub("", sentence)), maxsplit=1)[0]
    return textwrap.shorten(argument + clause, _CELL, placeholder=" ...")


def state(model: nn.Module) -> list[Any]:
    """Returns all that a step could change: tensors, modes, hooks, classes of modules."""
    tensors = [tensor.detach().clone() for tensor in (*model.parameters(), *model.buffers())]
    needed = [parameter.requires_grad for parameter in model.parameters()]
    modules = [(type(module), module.training, *map(len, _hooks(module))) for module in model.modules()]
    return [tensors, needed, modules]


def _hooks(module: nn.Module) -> list[dict[int, Any]]:
    return [module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks]


def _same(a: list[Any], b: list[Any]) -> bool:
    return all(map(torch.equal, a[0], b[0])) and a[1:] == b[1:]


def _tried(task: Callable[[], Any]) -> tuple[str, Any]:
    """Returns ("yes", the result), or the kind of outcome and the reason."""
    try:
        return "yes", task()
    except Nothing as nothing:
        return "none", str(nothing)
    except Wrong as wrong:
        return "fault", str(wrong)
    except (ValueError, TypeError) as error:
        return "no", str(error)
    except Exception as error:  # Every other error is a fault, and the table shows faults.
        return "fault", f"{type(error).__name__}: {error}"


def _reset_peak() -> float:
    """Resets the peak to the memory in use now and returns that, in MiB; NaN if it is unknown."""
    if not _PEAK.exists():
        return math.nan
    _PEAK.write_text("5")
    return _status("VmRSS")


def _status(key: str) -> float:
    """Returns a size that Linux reports for this process, in MiB; NaN if it is unknown."""
    if not _PEAK.exists():
        return math.nan
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key))) / 1024
