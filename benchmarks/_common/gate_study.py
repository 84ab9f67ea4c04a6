"""What a kernel knows of labelled images: kernel regression, the overlap of active sub-networks, eigenvalues."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor

import gatedops
from gatedops import GateBits, data
from gatedops.path_kernels import regression
from gatedops.solve import select_ridge

PICTURE = 200  # points on a side of the picture of a Gram, at most


@dataclass(frozen=True)
class LabelledImages:
    """n images, the n_train training points first: pixels uint8 and inputs float32 in [0, 1], both (n, C, H, W), labels
    int64 (n,), and the names of the classes."""

    pixels: Tensor
    inputs: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    n_train: int

    @property
    def n(self) -> int:
        return len(self.labels)

    def facts(self) -> dict[str, dict[str, int]]:
        """Returns for the JSON the numbers of training and test points, and of points of each class."""
        counts = torch.bincount(self.labels.cpu(), minlength=len(self.classes)).tolist()
        points = {"n": self.n, "train": self.n_train, "test": self.n - self.n_train}
        return {"points": points, "classes": dict(zip(self.classes, counts, strict=True))}


def load_images(args: argparse.Namespace, n: int, device: str = "cpu") -> LabelledImages:
    """The images that --data, --data-dir and --seed choose."""
    images = data.load(args.data, args.data_dir, n=n, seed=args.seed)
    pixels = torch.cat([images.train_images, images.test_images]).to(device)
    labels = torch.cat([images.train_labels, images.test_labels]).to(device)
    return LabelledImages(pixels, images.inputs(pixels), labels, images.classes, len(images.train_labels))


def gram_accuracy(gram: Tensor, images: LabelledImages) -> tuple[float, float]:
    """Returns the test accuracy (0 to 1) of kernel regression with a Gram (n, n) of the images, and the ridge it uses,
    which is chosen by leave-one-out on the training points."""
    k = images.n_train
    ridge = select_ridge(gram[:k, :k], images.labels[:k])
    targets = regression.one_hot(images.labels[:k], len(images.classes))
    fitted = regression.fit(gram[:k, :k], targets, ridge)
    return regression.accuracy(fitted.predict(gram[k:, :k]), images.labels[k:]), ridge


def shares_on(bits: GateBits) -> tuple[float, list[float]]:
    """Returns the share of the gates that are on, of all of them and layer by layer."""
    shares = [float(mask.double().mean()) for mask in bits.unpack()]
    return sum(s * w for s, w in zip(shares, bits.widths, strict=True)) / sum(bits.widths), shares


def sub_network_overlap(bits: GateBits, labels: Tensor, classes: int, dtype: torch.dtype) -> tuple[float, float]:
    """Returns the mean of Lambda_ij / sqrt(Lambda_ii Lambda_jj), the cosine of the active sub-networks of two points,
    over the pairs of different points of one class, and over the pairs of points of two classes."""
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


def gram_image(gram: Tensor, labels: Tensor) -> Tensor:
    """Returns a Gram (n, n) with its points sorted by class, averaged down to at most 200 x 200."""
    order = labels.argsort(stable=True)
    sorted_gram = gram[order][:, order]
    side = min(PICTURE, len(order))
    return torch.nn.functional.adaptive_avg_pool2d(sorted_gram[None, None], side)[0, 0]


def normalised(gram: Tensor) -> Tensor:
    """K_ij / sqrt(K_ii K_jj), and 0 for a point whose kernel with itself is 0."""
    factors = gram.diagonal().rsqrt()
    factors = torch.where(factors.isfinite(), factors, 0)
    return gram * factors[:, None] * factors


def leading_eigenvalues(gram: Tensor, count: int, seed: int) -> Tensor:
    """Returns the `count` largest eigenvalues of a positive semi-definite (n, n), the largest first.

    Subspace iteration with twice as many columns takes n^2 work a column, not the n^3 of a full decomposition.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _, values, _ = torch.svd_lowrank(gram, min(len(gram), 2 * count), niter=4)
    return values[:count]
