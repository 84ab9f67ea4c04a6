"""What a network's gates know: kernel regression with its NPK, and how much active sub-networks overlap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

import gatedops
from _common.progress import stages
from _common.relu_net import net_accuracy, record_gates, train
from gatedops import GateBits
from gatedops.path_kernels import regression

PICTURE = 500  # points on a side of the picture of a Gram, at most
EIGENVALUES = 30

Scale = Literal["width", "none"]


@dataclass(frozen=True)
class LabelledPoints:
    """n points, the n_train training points first: x uint8 (n, d), labels int64 (n,), number of classes."""

    x: Tensor
    labels: Tensor
    classes: int
    n_train: int


@dataclass(frozen=True)
class GateFigures:
    """Figures of one set of gates.

    accuracy, ridge      test accuracy (0 to 1) of kernel regression, and the ridge chosen on the training
                         points
    on, on_by_layer      share of the gates that are on
    within, across       mean of Lambda_ij / sqrt(Lambda_ii Lambda_jj), the cosine of the active sub-networks
                         of two points, over the pairs of different points of one class, and over the pairs of
                         two classes
    """

    accuracy: float
    ridge: float
    on: float
    on_by_layer: list[float]
    within: float
    across: float


@dataclass(frozen=True)
class GramPicture:
    """The normalised NPK for a plot: image (p, p), sorted by class; leading eigenvalues over the trace."""

    image: Tensor
    eigenvalues: Tensor


@dataclass(frozen=True)
class Study:
    """Of one net: figures and pictures of its gates, the loss of every epoch, test accuracy, trained gates.

    The keys of figures and pictures are "initial gates" and "trained gates".
    """

    figures: dict[str, GateFigures]
    pictures: dict[str, GramPicture]
    losses: list[float]
    net_accuracy: float
    trained: GateBits


def study_net(
    net: nn.Sequential,
    points: LabelledPoints,
    inputs: Tensor,
    *,
    epochs: int,
    dtype: torch.dtype,
    scale: Scale,
    seed: int,
) -> Study:
    """Look at the gates of a net, train it on the training points, look again. inputs: float (n, d)."""
    figures: dict[str, GateFigures] = {}
    pictures: dict[str, GramPicture] = {}
    k = points.n_train
    with stages(7) as begin:

        def look(name: str) -> GateBits:
            bits = record_gates(net, inputs)
            begin(f"overlaps, {name}")
            overlap = sub_network_overlap(bits, points.labels, points.classes, dtype)
            begin(f"kernel regression, {name}")
            regressed = kernel_accuracy(points, bits, dtype, scale, seed)
            figures[name] = GateFigures(*regressed, *shares_on(bits), *overlap)
            begin(f"eigenvalues, {name}")
            pictures[name] = gram_picture(points, bits, dtype, seed)
            return bits

        look("initial gates")
        begin("training")
        losses = train(net, inputs[:k], points.labels[:k], epochs, seed)
        trained = look("trained gates")
    return Study(figures, pictures, losses, net_accuracy(net, inputs[k:], points.labels[k:]), trained)


def kernel_accuracy(
    points: LabelledPoints, bits: GateBits, dtype: torch.dtype, scale: Scale, seed: int
) -> tuple[float, float]:
    """Test accuracy (0 to 1) of kernel regression with the NPK, and the ridge it uses."""
    return gram_accuracy(gatedops.npk_gram(points.x, bits, scale=scale, dtype=dtype), points, seed)


def gram_accuracy(gram: Tensor, points: LabelledPoints, seed: int) -> tuple[float, float]:
    """Test accuracy (0 to 1) of kernel regression with a Gram (n, n) of the points, and the ridge it uses."""
    k = points.n_train
    ridges = tqdm(regression.RIDGES, desc="kernel regression", unit="ridge", leave=False, disable=None)
    ridge = regression.select_ridge(gram[:k, :k], points.labels[:k], ridges, seed=seed)
    fitted = regression.fit(gram[:k, :k], regression.one_hot(points.labels[:k], points.classes), ridge)
    return regression.accuracy(fitted.predict(gram[k:, :k]), points.labels[k:]), ridge


def shares_on(bits: GateBits) -> tuple[float, list[float]]:
    """Share of the gates that are on: of all of them, and layer by layer."""
    shares = [float(mask.double().mean()) for mask in bits.unpack()]
    return sum(s * w for s, w in zip(shares, bits.widths, strict=True)) / sum(bits.widths), shares


def sub_network_overlap(bits: GateBits, labels: Tensor, classes: int, dtype: torch.dtype) -> tuple[float, float]:
    """Mean cosine of active sub-networks within and across classes; a pair of equal points is left out."""
    cosine = gatedops.npk_gram(None, bits, normalize=True, dtype=dtype)
    members = torch.nn.functional.one_hot(labels, classes).to(dtype)
    sums = (members.T @ (cosine @ members)).double()
    sizes = members.sum(0).double()
    within, all_pairs = sums.trace() - cosine.diagonal().double().sum(), sums.sum()
    pairs_within = (sizes * (sizes - 1)).sum()
    pairs_across = sizes.sum() ** 2 - (sizes**2).sum()
    return (
        float(within / pairs_within.clamp(min=1)),
        float((all_pairs - sums.trace()) / pairs_across.clamp(min=1)),
    )


def gram_picture(points: LabelledPoints, bits: GateBits, dtype: torch.dtype, seed: int) -> GramPicture:
    """Draw-ready, and 30 eigenvalues."""
    gram = gatedops.npk_gram(points.x, bits, normalize=True, dtype=dtype)
    image = gram_image(gram, points.labels)
    return GramPicture(image, leading_eigenvalues(gram, EIGENVALUES, seed) / float(gram.diagonal().sum()))


def gram_image(gram: Tensor, labels: Tensor) -> Tensor:
    """A Gram (n, n) with its points sorted by class, averaged down to at most 500 x 500."""
    order = labels.argsort(stable=True)
    sorted_gram = gram[order][:, order]
    side = min(PICTURE, len(order))
    return torch.nn.functional.adaptive_avg_pool2d(sorted_gram[None, None], side)[0, 0]


def leading_eigenvalues(gram: Tensor, count: int, seed: int, rounds: int = 8) -> Tensor:
    """The `count` largest eigenvalues of a positive semi-definite (n, n), the largest first.

    Subspace iteration with twice as many columns: n^2 work per column, not the n^3 of a full decomposition.
    """
    n = len(gram)
    generator = torch.Generator(gram.device).manual_seed(seed)
    basis = torch.randn(n, min(n, 2 * count), generator=generator, dtype=gram.dtype, device=gram.device)
    for _ in range(rounds):
        basis = torch.linalg.qr(gram @ basis).Q
    values = torch.linalg.eigvalsh(basis.T @ (gram @ basis))
    largest_first: Tensor = values.flip(0)
    return largest_first[:count].clamp(min=0)
