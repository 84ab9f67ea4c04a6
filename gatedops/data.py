"""Loads small image sets for the examples, the benchmarks and the tests.

    digits    1,797 handwritten digits, 8 x 8, embedded in scikit-learn (optical recognition of handwritten
              digits, UCI)
    mnist     70,000 handwritten digits, 28 x 28, from the four official IDX files, gzipped or not
    cifar10   60,000 colour photographs, 3 x 32 x 32, from the official binary files
    random    any number of images of uniform random pixels, 28 x 28, with random labels, for timing only

This module downloads nothing: the error for a missing file says where the file comes from.
"""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

NAMES = ("digits", "mnist", "cifar10", "random")

MNIST_SOURCE = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST_FILES = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)
CIFAR10_SOURCE = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_FOLDER = "cifar-10-batches-bin"
CIFAR10_FILES = (tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",))
# Every file has this many images.
CIFAR10_RECORDS = 10_000
# An image is one label byte and then 1,024 red, 1,024 green and 1,024 blue bytes, row by row.
CIFAR10_SHAPE = (3, 32, 32)
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

RANDOM_SHAPE = (1, 28, 28)
RANDOM_POINTS = 2_560
# One point in five is a test point.
TEST_SHARE = 5


@dataclass(frozen=True, eq=False)
class ImageData:
    """A labelled set of images, split into training and test points.

    Args:
        name: one of `NAMES`.
        train_images, test_images: uint8 (n_train, C, H, W) and (n_test, C, H, W).
        train_labels, test_labels: int64 (n_train,) and (n_test,).
        classes: one name per class, in label order.
        white: the largest value that a pixel can take: 255, and 16 for digits.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    white: int = 255

    @property
    def n(self) -> int:
        """The number of training and test points together."""
        return len(self.train_labels) + len(self.test_labels)

    def inputs(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Converts `images` to floats in [0, 1] of the same shape, by a division by `white`."""
        return images.to(dtype) / self.white

    def sample(self, n: int, seed: int = 0) -> ImageData:
        """Draws n points by a seed, without replacement; training and test points stay apart.

        One point in five is a test point, or fewer if the set has fewer.

        Raises:
            ValueError: n is below 2 or above the number of points in the set.
        """
        if not 2 <= n <= self.n:
            raise ValueError(f"n must be between 2 and {self.n}, the number of points in {self.name}; got {n}")
        n_test = min(_test_points(n), len(self.test_labels))
        generator = torch.Generator().manual_seed(seed)
        train = torch.randperm(len(self.train_labels), generator=generator)[: n - n_test]
        test = torch.randperm(len(self.test_labels), generator=generator)[:n_test]
        return ImageData(
            self.name,
            self.train_images[train],
            self.train_labels[train],
            self.test_images[test],
            self.test_labels[test],
            self.classes,
            self.white,
        )


def load(name: str, data_dir: str | Path | None = None, *, n: int | None = None, seed: int = 0) -> ImageData:
    """Loads an image set.

    Args:
        name: "digits", "mnist", "cifar10" or "random".
        data_dir: the folder with the files of mnist or cifar10 (for cifar10 also the folder above
            cifar-10-batches-bin); the other sets do not use it.
        n: the number of points to keep, training and test together (see `ImageData.sample`). None keeps all, and makes
            2,560 for random.
        seed: decides the split of digits, the choice of n points, and the pixels of random.

    Raises:
        ValueError: the name is unknown, the set does not have n points, or a file is damaged.
        FileNotFoundError: a file is missing.
        ModuleNotFoundError: the name is "digits" and scikit-learn is not installed.
    """
    if name == "random":
        return random(RANDOM_POINTS if n is None else n, seed)
    if name == "digits":
        data = digits(seed)
    elif name == "mnist":
        data = mnist(_folder(name, data_dir, MNIST_FILES[0][0], MNIST_SOURCE))
    elif name == "cifar10":
        data = cifar10(_folder(name, data_dir, CIFAR10_FILES[0][0], CIFAR10_SOURCE))
    else:
        raise ValueError(f"name must be one of {', '.join(NAMES)}; got {name!r}")
    return data if n is None else data.sample(n, seed)


def digits(seed: int = 0) -> ImageData:
    """Loads scikit-learn's 1,797 digits, 8 x 8 pixels of 0..16, split 1,438 / 359 by a seeded permutation."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the digits come with scikit-learn, which is not installed: pip install scikit-learn"
        ) from error
    bunch = load_digits()
    images = torch.as_tensor(bunch.images).to(torch.uint8).unsqueeze(1)
    labels = torch.as_tensor(bunch.target).to(torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    test, train = order.split([_test_points(len(labels)), len(labels) - _test_points(len(labels))])
    names = tuple(str(name) for name in bunch.target_names)
    return ImageData("digits", images[train], labels[train], images[test], labels[test], names, white=16)


def mnist(folder: str | Path) -> ImageData:
    """Loads the official MNIST split (60,000 / 10,000) from the four IDX files in `folder`, each plain or gzipped."""
    parts: list[Tensor] = []
    for image_file, label_file in MNIST_FILES:
        images, labels = _read_idx(Path(folder) / image_file, 3), _read_idx(Path(folder) / label_file, 1)
        if len(images) != len(labels):
            raise ValueError(
                f"{image_file} has {len(images)} images but {label_file} has {len(labels)} labels "
                f"in {folder}: take both from {MNIST_SOURCE}"
            )
        _check_labels(labels, 10, Path(folder) / label_file, MNIST_SOURCE)
        parts += [images.unsqueeze(1), labels.to(torch.int64)]
    train, train_labels, test, test_labels = parts
    return ImageData("mnist", train, train_labels, test, test_labels, classes=tuple("0123456789"))


def cifar10(folder: str | Path) -> ImageData:
    """Loads the official CIFAR-10 split (50,000 / 10,000) from the six binary files in `folder` or the folder below
    it."""
    folder = Path(folder)
    if (folder / CIFAR10_FOLDER).is_dir():
        folder = folder / CIFAR10_FOLDER
    parts: list[Tensor] = []
    for files in CIFAR10_FILES:
        records = torch.cat([_read_cifar10(folder / file) for file in files])
        parts += [records[:, 1:].reshape(-1, *CIFAR10_SHAPE), records[:, 0].to(torch.int64)]
    train, train_labels, test, test_labels = parts
    return ImageData("cifar10", train, train_labels, test, test_labels, CIFAR10_CLASSES)


def random(n: int, seed: int = 0) -> ImageData:
    """Makes n images of independent uniform pixels, (1, 28, 28), with uniform labels of 10 classes. A fifth are test
    points."""
    if n < 2:
        raise ValueError(f"n must be at least 2, got {n}")
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, *RANDOM_SHAPE), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 10, (n,), generator=generator)
    test = _test_points(n)
    return ImageData("random", images[test:], labels[test:], images[:test], labels[:test], classes=tuple("0123456789"))


def _test_points(n: int) -> int:
    return max(1, round(n / TEST_SHARE))


def _folder(name: str, data_dir: str | Path | None, file: str, source: str) -> Path:
    if data_dir is None:
        raise ValueError(
            f"data_dir is needed for {name}: give the folder that holds {file} and the other files, from {source}"
        )
    return Path(data_dir)


def _read_idx(path: Path, dimensions: int) -> Tensor:
    """Reads an IDX file of unsigned bytes (path, or path with .gz added) into a uint8 tensor with `dimensions` axes.

    The file has the bytes 0, 0, 8 (for unsigned bytes) and the number of dimensions, then each size as a big-endian
    uint32, then the data.
    """
    raw, found = _read_plain_or_gzip(path)
    header = 4 + 4 * dimensions
    if len(raw) < header or raw[:4] != bytes((0, 0, 8, dimensions)):
        raise ValueError(
            f"{found} is not an IDX file of unsigned bytes in {dimensions} dimensions "
            f"(it starts with {raw[:4].hex() or 'nothing'}): get it again from {MNIST_SOURCE}"
        )
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    if min(shape) == 0 or len(raw) != header + math.prod(shape):
        raise ValueError(
            f"{found} is damaged: its header promises {' x '.join(map(str, shape))} bytes and "
            f"{len(raw) - header} follow: get it again from {MNIST_SOURCE}"
        )
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=header).reshape(shape)


def _read_plain_or_gzip(path: Path) -> tuple[bytes, Path]:
    if path.is_file():
        return path.read_bytes(), path
    packed = path.with_name(path.name + ".gz")
    if not packed.is_file():
        raise FileNotFoundError(f"{path} (or {packed.name}) is missing: it comes from {MNIST_SOURCE}")
    try:
        return gzip.decompress(packed.read_bytes()), packed
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{packed} is not a whole gzip file ({error}): get it again from {MNIST_SOURCE}") from error


def _read_cifar10(path: Path) -> Tensor:
    """Reads a CIFAR-10 binary file into uint8 (10,000, 3,073): a label byte and 3,072 pixel bytes per record."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: it comes from {CIFAR10_SOURCE}")
    size = 1 + math.prod(CIFAR10_SHAPE)
    raw = path.read_bytes()
    if len(raw) != CIFAR10_RECORDS * size:
        raise ValueError(
            f"{path} is damaged: it has {len(raw)} bytes and needs {CIFAR10_RECORDS} records of {size}: "
            f"get it again from {CIFAR10_SOURCE}"
        )
    records = torch.frombuffer(bytearray(raw), dtype=torch.uint8).reshape(CIFAR10_RECORDS, size)
    _check_labels(records[:, 0], 10, path, CIFAR10_SOURCE)
    return records


def _check_labels(labels: Tensor, classes: int, path: Path, source: str) -> None:
    if int(labels.max()) >= classes:
        raise ValueError(
            f"{path} is damaged: it has the label {int(labels.max())} but there are {classes} classes: "
            f"get it again from {source}"
        )
