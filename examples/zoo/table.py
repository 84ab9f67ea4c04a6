"""Writes the table of the zoo for the terminal, for docs/coverage.md and as JSON."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

from network import Network
from outcome import Outcome

COMMAND = "python examples/zoo/run.py"
STEP_COLUMNS = {
    "record": "record (`record_gates`)",
    "fuse": "fuse (`fuse_relu`)",
    "twin": "twin (`gated_twin`)",
    "npk": "npk (`npk`)",
}
# A column on the terminal has at most this many characters.
_WIDEST = 32


@dataclass(frozen=True)
class Row:
    """One network: how many parameters it has, and the outcome of each step by the step's name."""

    network: Network
    parameters: int
    outcomes: dict[str, Outcome]

    @property
    def seconds(self) -> float:
        return sum(outcome.seconds for outcome in self.outcomes.values())

    @property
    def mib(self) -> float:
        return max(outcome.mib for outcome in self.outcomes.values())

    def cells(self) -> list[str]:
        steps = [self.outcomes[step].cell for step in STEP_COLUMNS]
        mib = "-" if math.isnan(self.mib) else f"{self.mib:.1f}"
        return [self.network.name, f"{self.parameters:,}", *steps, f"{self.seconds:.2f}", mib]


def printed(rows: Sequence[Row]) -> str:
    """Returns the table for a terminal, with long cells broken into lines."""
    table = [["network", "parameters", *STEP_COLUMNS, "seconds", "MiB"], *(row.cells() for row in rows)]
    broken = [[textwrap.wrap(cell, _WIDEST) for cell in line] for line in table]
    widths = [max(len(part) for cell in column for part in cell) for column in zip(*broken, strict=True)]
    lines = [line for cells in broken for line in zip_longest(*cells, fillvalue="")]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def counts(rows: Sequence[Row]) -> str:
    """Returns how many networks each step works on."""
    yes = {step: sum(row.outcomes[step].kind == "yes" for row in rows) for step in STEP_COLUMNS}
    return ", ".join(f"{step} {count} of {len(rows)}" for step, count in yes.items())


def markdown(rows: Sequence[Row]) -> str:
    """Returns the text of docs/coverage.md."""
    heads = ["network", "parameters", *STEP_COLUMNS.values(), "seconds", "MiB"]
    table = [heads, ["---"] * len(heads), *(row.cells() for row in rows)]
    lines = ["| " + " | ".join(escaped(cell) for cell in line) + " |" for line in table]
    return "\n".join([_INTRODUCTION.format(command=COMMAND, counts=counts(rows)), *lines, "", *_reasons(rows), ""])


def escaped(cell: str) -> str:
    """Escapes what would end a cell in markdown."""
    return cell.replace("|", "\\|").replace("\n", " ")


def _reasons(rows: Sequence[Row]) -> list[str]:
    """Returns the reasons in full, and the warnings, network by network."""
    lines = ["## The reasons in full", ""]
    for row in rows:
        told = [(step, one.detail) for step, one in row.outcomes.items() if one.kind != "yes"]
        told += [(f"{step} warns", text) for step, one in row.outcomes.items() for text in one.warnings]
        if told:
            texts = [f"- {step}: {' '.join(text.split()).replace('<', '&lt;')}" for step, text in told]
            options = [
                f"; {step} with {key}={value!r}"
                for step, keywords in row.network.options.items()
                for key, value in keywords.items()
            ]
            lines += [f"**{row.network.name}** (in the style of {row.network.style}{''.join(options)})", "", *texts, ""]
    return lines[:-1]


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns all that the table is made of; memory that is not known is null."""
    return {
        row.network.name: {
            "style": row.network.style,
            "parameters": row.parameters,
            "steps": {step: _json_of(one) for step, one in row.outcomes.items()},
        }
        for row in rows
    }


def _json_of(one: Outcome) -> dict[str, Any]:
    return asdict(one) | {"cell": one.cell, "mib": None if math.isnan(one.mib) else one.mib}


_INTRODUCTION = """# What works on which networks

`{command}` writes this page, and `tests/scripts/test_zoo.py` checks it. The networks are small, and we wrote
them for this page in the styles that people use; they are in [examples/zoo](../examples/zoo). Each is called with 8
inputs, in evaluation mode.

![The table as a picture](img/coverage.png)

A cell says "yes" only if this holds:

- record: the gates equal, bit for bit and in the same order, those that torch's dispatcher sees in a plain forward.
  Networks with LeakyReLU or ReLU6 are recorded with `activations="piecewise"`, and the cell says so.
- fuse: the outputs of the fused network equal the network's, bit for bit. The number in brackets counts the modules
  that are replaced.
- twin: `gated_twin(net)` has drawn every weight anew and runs forward and backward; the outputs and all gradients of
  `gated_twin(net, net)` equal the network's.
- npk: the kernel is finite, symmetric and positive semi-definite, and its diagonal equals the mean of f(s)² over random
  weights of 1 or -1, within 6 standard errors of 150 draws. f is the network with frozen gates and frozen choices of
  max-pools, without biases, batch norms, and a sigmoid or softmax at its end.

Any other cell gives the reason, in the first clause of the library's message. The whole messages, with what to do,
follow the table, and so do the warnings. "FAULT" marks a wrong result, a network that was changed, or an error that is
not the library's. The seconds are the sum over the four steps. The MiB are the peak of the step that needs most, above
the memory in use before it.

{counts}.
"""
