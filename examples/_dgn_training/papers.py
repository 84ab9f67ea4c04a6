"""The set-up and the results of the papers arXiv 2006.10529 and 2110.03403, and of the code released with them."""

from __future__ import annotations

from dataclasses import dataclass

BATCH = 32
# Five hidden layers and the output layer make depth 6.
FC_WIDTHS = (128,) * 5
# The released code uses 1.1 * sigmoid(4 q).
SOFT_BETA, SOFT_GAIN = 4.0, 1.1
# The released code uses the default of Keras; the default of torch is 1e-8.
ADAM_EPSILON = 1e-7
LEARNING_RATE = {
    ("fc", "sgd"): 1e-2,
    ("fc", "adam"): 1e-4,
    ("vconv", "sgd"): 1e-2,
    ("vconv", "adam"): 3e-4,
    ("gconv", "sgd"): 1e-1,
    ("gconv", "adam"): 3e-4,
}
EPOCHS = {
    ("fc", "sgd"): 300,
    ("fc", "adam"): 100,
    ("vconv", "sgd"): 80,
    ("vconv", "adam"): 80,
    ("gconv", "sgd"): 100,
    ("gconv", "adam"): 200,
}


@dataclass(frozen=True)
class Published:
    """Mean and standard deviation over 5 runs of each run's highest test accuracy over the epochs, in %.

    The released code divides by n, not n - 1, for std. It is None if the papers print none.
    """

    mean: float
    std: float | None = None


def _row(*figures: tuple[float, float]) -> dict[str, Published]:
    names = ("fr-ii", "fr-di", "dl", "fl", "relu")
    return {name: Published(*figure) for name, figure in zip(names, figures, strict=True)}


# TABLE[architecture, optimizer, data][variant] is the figure that the papers print.
TABLE = {
    ("fc", "sgd", "mnist"): _row((95.85, 0.10), (95.85, 0.17), (97.86, 0.11), (97.10, 0.09), (97.85, 0.09)),
    ("fc", "adam", "mnist"): _row((96.02, 0.13), (96.09, 0.12), (98.22, 0.05), (97.82, 0.02), (98.14, 0.07)),
    ("vconv", "sgd", "cifar10"): _row((58.92, 0.62), (58.83, 0.27), (63.21, 0.07), (63.06, 0.73), (67.02, 0.43)),
    ("vconv", "adam", "cifar10"): _row((64.86, 1.18), (64.68, 0.84), (69.45, 0.76), (71.40, 0.47), (72.43, 0.54)),
    ("gconv", "sgd", "cifar10"): _row((67.36, 0.56), (66.86, 0.44), (74.57, 0.43), (78.52, 0.39), (78.90, 0.37)),
    ("gconv", "adam", "cifar10"): _row((67.09, 0.58), (67.08, 0.27), (77.12, 0.19), (79.68, 0.32), (80.32, 0.35)),
}
# The papers print FL-0 .. FL-6 for gconv, adam and cifar10 only.
FL_CURVE = (67.09, 72.29, 74.42, 77.1, 78.5, 78.7, 79.43)


def published(arch: str, optimizer: str, data: str) -> dict[str, Published]:
    """Returns the papers' figures of this set-up by variant; the dict is empty if they have none."""
    figures = dict(TABLE.get((arch, optimizer, data), {}))
    if (arch, optimizer, data) == ("gconv", "adam", "cifar10"):
        figures |= {f"fl-{stage}": Published(mean) for stage, mean in enumerate(FL_CURVE)}
    return figures
