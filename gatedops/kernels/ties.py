"""Tied weights: the values of paths are independent only if no two weights come from one parameter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gatedops import trace
from gatedops.trace import Step
from gatedops.trace.provenance import Source, Sources

Layer = trace.Linear | trace.Conv2d


def require_own_weights(steps: Sequence[Step], *, biases: bool) -> None:
    """Raises ValueError where two weights or biases share memory or come from one parameter, whatever was computed from
    it (transposes, multiples, sums, concatenations). Parts of a parameter that share no number are weights of their
    own, and so is what no parameter makes (a buffer, torch.ones): kernels average over it as over any other weight.

    Args:
        biases: biases and constants start paths, so that batch norms and constants must have shifts of their own too.
    """
    seen: dict[int, list[tuple[Source, str, str]]] = {}  # by memory
    for step in steps:
        _require_independent_entries(step)
        for what, sources in _parts(step, biases):
            for source in sources:
                for other, owner, part in seen.get(source.memory, []):
                    if source.overlaps(other):
                        raise ValueError(_tied(step.name, what, owner, part))
            for source in sources:
                seen.setdefault(source.memory, []).append((source, step.name, what))


def _parts(step: Step, biases: bool) -> Iterator[tuple[str, Sources]]:
    """What of a step must be independent of all others, and what it was computed from."""
    match step:
        case trace.Linear() | trace.Conv2d():
            yield "weight", step.weight_made_of
            yield "bias", step.bias_made_of
        case trace.AddConstant() if biases:
            yield "constant", step.made_of
        case trace.BatchNorm() if biases:
            yield "shift", step.shift_made_of


def _require_independent_entries(step: Step) -> None:
    """Raises ValueError where a weight has more entries than the parameters that it is computed from."""
    if not isinstance(step, Layer):
        return
    for what, tensor, sources in (
        ("weight", step.weight, step.weight_made_of),
        ("bias", step.bias, step.bias_made_of),
    ):
        trained = [source for source in sources if source.is_parameter]
        numbers = sum(source.entries for source in trained)
        if trained and tensor is not None and numbers < tensor.numel():
            raise ValueError(
                f"model: the {what} of {step.name} has {tensor.numel()} entries made of {numbers} parameters, so that"
                f" they are tied; give {step.name} a {what} of its own: nn.Parameter({what}.detach().clone())"
            )


def _tied(name: str, what: str, owner: str, part: str) -> str:
    other = f"its own {part}" if owner == name else f"the {part} of {owner}"
    return (
        f"model: {name} uses a weight or bias of {owner}: its {what} and {other} share memory or come from one"
        f" parameter; path kernels need independent weights: give {name} a {what} of its own, such as a"
        " copy.deepcopy of the layer"
    )
