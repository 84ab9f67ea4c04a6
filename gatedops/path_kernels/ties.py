"""Refuses tied weights: the values of paths are independent only if no two weights come from one parameter."""

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
# A Part has the name of a weight or bias, its value, the sources that it was computed from, and its draws from random
# parameters.
Part = tuple[str, Tensor | None, Sources, Draw | None]


def require_own_weights(steps: Sequence[Step], *, biases: bool) -> None:
    """Raises ValueError if weights are tied: if two weights share memory or are computed from one parameter in any way
    (transposes, multiples, sums, concatenations), if entries of one weight are, or if entries are 0 for any parameters
    (masks, pruning). Parts of a parameter that share no number count as independent weights. So does a tensor that does
    not come from a parameter (a buffer, torch.ones): kernels average over it as over any other weight.

    Args:
        biases: biases and constants start paths, so that they, and the shifts of batch norms, must be independent too.
    """
    # Maps a piece of memory to the sources in it, each with its step and part.
    seen: dict[int, list[tuple[Source, str, str]]] = {}
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
    """Yields the parts of a step that must be independent of all others."""
    match step:
        case trace.Linear() | trace.Conv2d() | trace.Conv3d():
            yield "weight", step.weight, step.weight_made_of, step.weight_drawn
            if biases:
                yield "bias", step.bias, step.bias_made_of, step.bias_drawn
        case trace.AddConstant() if biases:
            yield "constant", step.constant, step.made_of, step.drawn
        case trace.BatchNorm() if biases:
            yield "shift", None, step.shift_made_of, None


def _require_independent_entries(name: str, what: str, value: Tensor, sources: Sources, drawn: Draw) -> None:
    """Raises ValueError if entries of a weight are 0 or equal for any parameters that it is computed from, or if it has
    more entries than those parameters."""
    zeros = tied = 0
    # Some operations, such as the root of a matrix, fail on random numbers. Then only the numbers of entries count.
    with suppress(RuntimeError):
        zeros = always_zero(drawn)
        tied = 0 if zeros else tied_entries(drawn)
    entries = value.numel()
    if zeros:
        raise ValueError(
            f"model: {zeros} of the {entries} entries of the {what} of {name} are always 0 (pruned, masked or padded),"
            f" but path kernels average over all entries; {GATES_ALONE}"
        )
    if tied:
        raise ValueError(
            f"model: {tied} of the {entries} entries of the {what} of {name} equal other entries of it up to a factor,"
            f" so they are tied; give {name} a {what} of its own: nn.Parameter({what}.detach().clone())"
        )
    numbers = sum(source.entries for source in sources if source.is_parameter)
    if numbers < entries:
        raise ValueError(
            f"model: the {what} of {name} has {entries} entries computed from {numbers} numbers of parameters, so they"
            f" are tied; give {name} a {what} of its own: nn.Parameter({what}.detach().clone())"
        )


def _tied(name: str, what: str, owner: str, part: str) -> str:
    other = f"its own {part}" if owner == name else f"the {part} of {owner}"
    return (
        f"model: {name} uses a weight or bias of {owner}: its {what} and {other} share memory or come from one"
        f" parameter; path kernels need independent weights: give {name} a {what} of its own, such as a"
        " copy.deepcopy of the layer"
    )
