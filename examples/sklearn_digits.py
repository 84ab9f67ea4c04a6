"""Classifies handwritten digits by estimators of scikit-learn: NPKClassifier beside support vector machines.

Each estimator is the end of a Pipeline, and GridSearchCV chooses its parameters on the training digits. The NPK is that
of random gates, of gates that are trained inside fit, and of a torch net that is given to an SVC as its kernel. Prints
a table and draws the accuracy over the number of training digits: OUT/sklearn_digits.png.

    python examples/sklearn_digits.py
    python examples/sklearn_digits.py --n 300 --jobs 2
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _common.options import at_least, run_script, script_parser
from _common.output import print_table

from gatedops import data
from gatedops.nn import fc_spec

FOLDS = 3
SIZES = (50, 100, 200, 400, 800)
RIDGES = [1e-3, 1e-2, 1e-1]
HEADER = ("estimator", "chosen", "cross-validated", "test", "log loss", "seconds")
COLOURS = ("#1b6ca8", "#2a9d8f", "#e08e45", "#8d99ae")


def parser() -> argparse.ArgumentParser:
    options = script_parser(__doc__, "plot")
    add = options.add_argument
    add("--n", type=at_least(60), default=1438, help="training digits, at most 1438 (default: %(default)s)")
    add("--width", type=at_least(1), default=512, help="gates per layer (default: %(default)s)")
    add("--jobs", type=at_least(1), default=1, help="processes of the grid searches (default: %(default)s)")
    return options


@dataclass(frozen=True)
class Digits:
    """Pixels from 0 to 16, uint8 ``(n, 64)``, and labels ``(n,)``."""

    x: np.ndarray
    labels: np.ndarray
    x_test: np.ndarray
    labels_test: np.ndarray


@dataclass(frozen=True)
class Found:
    """What a search found: the best pipeline, its accuracies from 0 to 1, its loss in nats, and the search's time.

    `curve` has the test accuracy of the best parameters for each number of training digits.
    """

    name: str
    chosen: str
    validated: float
    test: float
    loss: float | None
    seconds: float
    curve: dict[int, float]

    def row(self) -> list[str]:
        loss = "" if self.loss is None else f"{self.loss:.3f}"
        share = [f"{100 * value:.1f} %" for value in (self.validated, self.test)]
        return [self.name, self.chosen, *share, loss, f"{self.seconds:.1f}"]


def estimators(width: int, seed: int) -> dict[str, tuple[Any, dict[str, list[Any]]]]:
    """Returns the estimators, and the parameters among which is searched."""
    from sklearn.svm import SVC

    from gatedops.sklearn import NPKClassifier, npk_kernel

    new = {"width": width, "random_state": seed}
    net = fc_spec(64, (width, width)).relu_net(seed)
    return {
        "NPKClassifier": (NPKClassifier(**new), {"depth": [1, 2, 4], "ridge": RIDGES}),
        "NPKClassifier, trained gates": (NPKClassifier(gates="trained", **new), {"ridge": RIDGES}),
        "SVC with npk_kernel": (SVC(kernel=npk_kernel(net)), {"C": [0.1, 1.0, 10.0]}),
        "SVC with RBF": (SVC(), {"C": [1.0, 10.0], "gamma": [0.01, 0.03, 0.1]}),
    }


def search(name: str, estimator: Any, grid: dict[str, list[Any]], digits: Digits, jobs: int) -> Found:
    """Chooses parameters by cross-validation, and measures the best on the test digits."""
    from sklearn.base import clone
    from sklearn.metrics import log_loss
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import MinMaxScaler

    pipeline = Pipeline([("scale", MinMaxScaler()), ("end", estimator)])
    begun = time.perf_counter()
    tried = GridSearchCV(pipeline, {f"end__{key}": values for key, values in grid.items()}, cv=FOLDS, n_jobs=jobs)
    tried.fit(digits.x, digits.labels)
    seconds = time.perf_counter() - begun
    has_loss = hasattr(tried, "predict_proba")
    loss = log_loss(digits.labels_test, tried.predict_proba(digits.x_test)) if has_loss else None
    curve = {}
    for n in [size for size in SIZES if size < len(digits.x)]:
        fitted = clone(tried.best_estimator_).fit(digits.x[:n], digits.labels[:n])
        curve[n] = fitted.score(digits.x_test, digits.labels_test)
    test = tried.score(digits.x_test, digits.labels_test)
    chosen = ", ".join(f"{key.removeprefix('end__')} {value:g}" for key, value in tried.best_params_.items())
    return Found(name, chosen, tried.best_score_, test, loss, seconds, curve | {len(digits.x): test})


def load(n: int, seed: int) -> Digits:
    images = data.load("digits", seed=seed)
    train, test = (part.flatten(1).numpy() for part in (images.train_images, images.test_images))
    if n > len(train):
        raise ValueError(f"--n {n} is more than the {len(train)} training digits")
    return Digits(train[:n], images.train_labels[:n].numpy(), test, images.test_labels.numpy())


def plot(path: Path, found: list[Found]) -> None:
    """Draws the test accuracy of each estimator over the number of training digits."""
    from _common.plots import new_figure, save

    figure = new_figure(8.5, 5.5)
    axis = figure.subplots()
    for one, colour in zip(found, COLOURS, strict=True):
        shares = [100 * share for share in one.curve.values()]
        axis.plot(list(one.curve), shares, "o-", color=colour, linewidth=2, label=one.name)
    axis.set_xscale("log")
    axis.set_xticks(list(found[0].curve), [str(n) for n in found[0].curve])
    axis.minorticks_off()
    axis.set_xlabel("training digits", fontsize=12)
    axis.set_ylabel("test digits that are classified right (%)", fontsize=12)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=11)
    save(figure, path)


def run(args: argparse.Namespace) -> None:
    digits = load(args.n, args.seed)
    print(f"{len(digits.x)} training digits, {len(digits.x_test)} test digits, {FOLDS} folds, width {args.width}")
    found = [
        search(name, estimator, grid, digits, args.jobs)
        for name, (estimator, grid) in estimators(args.width, args.seed).items()
    ]
    print_table(HEADER, [one.row() for one in found])
    print("seconds are those of the whole search; log loss is that of predict_proba on the test digits")
    if not args.no_plot:
        plot(args.out / "sklearn_digits.png", found)
        print(f"wrote {args.out / 'sklearn_digits.png'}")


if __name__ == "__main__":
    sys.exit(run_script(parser(), run))
