"""Puts the published table beside ours, on the terminal and as JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from _common.output import print_table

from _dgn_training import papers
from _dgn_training.papers import Published
from _dgn_training.run import Result
from _dgn_training.setup import Setup, Task
from _dgn_training.variants import Variant

# The report notes a difference from the published figure of more than this many standard deviations.
FAR = 2.0


@dataclass(frozen=True)
class Figure:
    """The mean over the seeds, in %, and their standard deviation (n - 1), which is None for a single seed."""

    mean: float
    std: float | None

    @staticmethod
    def of(shares: Sequence[float]) -> Figure:
        percent = [100 * share for share in shares]
        return Figure(statistics.fmean(percent), statistics.stdev(percent) if len(percent) > 1 else None)

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.std is None else f" +- {self.std:.2f}")


@dataclass(frozen=True)
class Row:
    """Test accuracy of one variant.

    best         each seed's maximum over epochs, the papers' metric: it is chosen on test points, so a little too high
    last         the accuracy after the last epoch
    npk          the accuracy of kernel regression with the same gates; None if there is none
    published    the papers' figure for the same architecture, optimizer and data
    deviation    best - published, over the standard deviation of both sets of runs together; None if one is not known
    second_half  what the second half of the epochs added to best, in points
    """

    name: str
    title: str
    best: Figure
    last: Figure
    npk: Figure | None
    published: Published | None
    deviation: float | None
    second_half: float


def rows_of(setup: Setup, wanted: Sequence[Variant], results: Mapping[str, Result]) -> list[Row]:
    published = papers.published(setup.arch, setup.optimizer, setup.data)
    return [_row(variant, results[variant.name], published.get(variant.name)) for variant in wanted]


def _row(variant: Variant, result: Result, published: Published | None) -> Row:
    accuracy = result.history.accuracy
    best = best_of(accuracy)
    npk = None if result.npk is None else Figure.of(result.npk.accuracy)
    return Row(
        variant.name,
        variant.title,
        best,
        Figure.of(accuracy[-1]),
        npk,
        published,
        _deviation(best, published),
        best.mean - best_of(accuracy[: (len(accuracy) + 1) // 2]).mean,
    )


def best_of(accuracy: Sequence[Sequence[float]]) -> Figure:
    """Returns the figure of each seed's maximum over these epochs."""
    return Figure.of([max(of_seed) for of_seed in zip(*accuracy, strict=True)])


def _deviation(ours: Figure, published: Published | None) -> float | None:
    if published is None or published.std is None or ours.std is None:
        return None
    spread = math.hypot(ours.std, published.std)
    return (ours.mean - published.mean) / spread


def notes(setup: Setup, rows: Sequence[Row]) -> list[str]:
    """Returns a sentence for each variant that is far from its published figure."""
    theirs = papers.EPOCHS[setup.arch, setup.optimizer]
    found: list[str] = []
    for row in rows:
        if row.deviation is None or abs(row.deviation) <= FAR:
            continue
        assert row.published is not None
        sentence = (
            f"{row.title} differs from the published figure by {row.best.mean - row.published.mean:+.2f} points, "
            f"{abs(row.deviation):.1f} standard deviations"
        )
        if setup.epochs != theirs:
            sentence += (
                f"; we trained {setup.epochs} epochs, the papers {theirs}, and the second half of ours added "
                f"{row.second_half:.2f} points"
            )
        found.append(sentence)
    return found


def print_report(setup: Setup, task: Task, rows: Sequence[Row], machine: Mapping[str, object]) -> None:
    print(
        f"{setup.data}: {len(task.x)} training and {len(task.test_x)} test points, {setup.arch}, "
        f"{setup.optimizer} {setup.learning_rate:g}, {setup.epochs} epochs, {setup.seeds} seeds"
    )
    print(f"{machine['cpu']}, {machine['threads']} threads, {machine['instruction_set']}, torch {machine['torch']}\n")
    print("Test accuracy in %, mean +- standard deviation over the seeds")
    header = ["", "published", "maximum over epochs", "difference", "last epoch", "NPK regression"]
    print_table(header, [_cells(row) for row in rows])
    print(
        "\nThe maximum over epochs is the papers' metric; it is chosen on test points. "
        f"NPK regression uses {setup.points_of(task)} of the {len(task.x)} training points."
    )
    print(f"FL-0 .. FL-6 have the gates of the ReLU network after {', '.join(map(str, setup.stages))} epochs.")
    for note in notes(setup, rows):
        print(note)


def _cells(row: Row) -> list[str]:
    published = "" if row.published is None else str(Figure(row.published.mean, row.published.std))
    difference = "" if row.published is None else f"{row.best.mean - row.published.mean:+.2f}"
    if row.deviation is not None:
        difference += f" ({abs(row.deviation):.1f} std)"
    return [row.title, published, str(row.best), difference, str(row.last), "" if row.npk is None else str(row.npk)]


def all_figures(
    setup: Setup, task: Task, rows: Sequence[Row], results: Mapping[str, Result], machine: Mapping[str, object]
) -> dict[str, object]:
    """Returns the content of the JSON. All but `machine` and `seconds` is the same for every run with these options."""
    return {
        "machine": dict(machine),
        "options": asdict(setup)
        | {"learning_rate": setup.learning_rate, "batch": papers.BATCH, "adam_epsilon": papers.ADAM_EPSILON},
        "points": {"train": len(task.x), "test": len(task.test_x), "npk": setup.points_of(task)},
        "stages": list(setup.stages),
        "unit": "test accuracy in %",
        "table": [asdict(row) for row in rows],
        "notes": notes(setup, rows),
        "runs": {
            name: {"history": asdict(result.history), "npk": None if result.npk is None else asdict(result.npk)}
            for name, result in results.items()
        },
        "seconds": {name: result.seconds for name, result in results.items()},
    }
