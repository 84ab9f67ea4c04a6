"""Tied weights: the values of paths are independent only if no two weights come from one parameter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from torch import Tensor

from gatedops import trace
from gatedops.trace import Step
from gatedops.trace.provenance import Source, Sources
from gatedops.trace.redraw import Draw, always_zero, tied_entries
from gatedops.trace.step_builder import GATES_ALONE

Layer = trace.Linear | trace.Conv2d
Part = tuple[str, Tensor | None, Sources, Draw | None]  # what it is, its value, what it was computed from, and again


def require_own_weights(steps: Sequence[Step], *, biases: bool) -> None:
    """Raises ValueError where two weights share memory or come from one parameter, whatever was computed from it
    (transposes, multiples, sums, concatenations), and where entries of one weight do, or are 0 whatever the parameters
    (masks, pruning). Parts of a parameter that share no number are weights of their own, and so is what no parameter
    makes (a buffer, torch.ones): kernels average over it as over any other weight.

    Args:
        biases: biases and constants start paths, so that they, and the shifts of batch norms, must be independent too.
    """
    seen: dict[int, list[tuple[Source, str, str]]] = {}  # by memory
    for step in steps:
        for what, value, sources, drawn in _parts(step, biases):
            for source in sources:
                for other, owner, part in seen.get(source.memory, []):
                    if source.overlaps(other):
                        raise ValueError(_tied(step.name, what, owner, part))
            if value is not None and drawn is not None:
                _require_independent_entries(step.name, what, value, sources, drawn)
            for source in sources:
                seen.setdefault(source.memory, []).append((source, step.name, what))


def _parts(step: Step, biases: bool) -> Iterator[Part]:
    """What of a step must be independent of all others."""
    match step:
        case trace.Linear() | trace.Conv2d():
            yield "weight", step.weight, step.weight_made_of, step.weight_drawn
            if biases:
                yield "bias", step.bias, step.bias_made_of, step.bias_drawn
        case trace.AddConstant() if biases:
            yield "constant", step.constant, step.made_of, step.drawn
        case trace.BatchNorm() if biases:
            yield "shift", None, step.shift_made_of, None


def _require_independent_entries(name: str, what: str, value: Tensor, sources: Sources, drawn: Draw) -> None:
    """Raises ValueError where entries of a weight are 0 or the same whatever the parameters that it is computed from,
    or where it has more entries than they have."""
    zeros = tied = 0
    with suppress(RuntimeError):  # what does not work on other numbers, such as the root of a matrix, is counted alone
        zeros = always_zero(drawn)
        tied = 0 if zeros else tied_entries(drawn)
    entries = value.numel()
    if zeros:
        raise ValueError(
            f"model: {zeros} of the {entries} entries of the {what} of {name} are always 0 (pruned, masked or padded),"
            f" and path kernels average over all entries; {GATES_ALONE}"
        )
    if tied:
        raise ValueError(
            f"model: {tied} of the {entries} entries of the {what} of {name} are the same as others of them, up to a"
            f" factor, so that they are tied; give {name} a {what} of its own: nn.Parameter({what}.detach().clone())"
        )
    numbers = sum(source.entries for source in sources if source.is_parameter)
    if numbers < entries:
        raise ValueError(
            f"model: the {what} of {name} has {entries} entries computed from {numbers} numbers of parameters, so that"
            f" they are tied; give {name} a {what} of its own: nn.Parameter({what}.detach().clone())"
        )


def _tied(name: str, what: str, owner: str, part: str) -> str:
    other = f"its own {part}" if owner == name else f"the {part} of {owner}"
    return (
        f"model: {name} uses a weight or bias of {owner}: its {what} and {other} share memory or come from one"
        f" parameter; path kernels need independent weights: give {name} a {what} of its own, such as a"
        " copy.deepcopy of the layer"
    )
