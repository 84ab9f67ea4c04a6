"""gatedops.data reads the image sets, and refuses a missing or damaged file with one sentence.

Set GATEDOPS_DATA_DIR to a folder with mnist/ and cifar-10-batches-bin/ to read the real files as well.
"""

from __future__ import annotations

import gzip
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gatedops import data

# The small MNIST that these tests write has this many points.
TRAIN, TEST = 5, 3


def idx(shape: tuple[int, ...], content: bytes) -> bytes:
    return bytes((0, 0, 8, len(shape))) + b"".join(size.to_bytes(4, "big") for size in shape) + content


def pixels(n: int) -> bytes:
    return bytes(range(n * 6))


@pytest.fixture
def mnist_folder(tmp_path: Path) -> Path:
    """Writes images of 2 x 3 pixels; the training images are gzipped, the other files are not."""
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx((TRAIN, 2, 3), pixels(TRAIN))))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx((TRAIN,), bytes([0, 9, 1, 1, 4])))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx((TEST, 2, 3), pixels(TEST)))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx((TEST,), bytes([7, 7, 2])))
    return tmp_path


@pytest.fixture
def cifar_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Writes two records per file: the pixels of record i of batch b are all b + i, except its first blue pixel."""
    monkeypatch.setattr(data, "CIFAR10_RECORDS", 2)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for batch, name in enumerate([*data.CIFAR10_FILES[0], *data.CIFAR10_FILES[1]]):
        records = torch.empty(2, 3073, dtype=torch.uint8)
        records[:, 0] = batch
        records[:, 1:] = torch.tensor([[batch], [batch + 1]])
        records[:, 1 + 2048] = 255
        (folder / name).write_bytes(records.numpy().tobytes())
    return tmp_path


def assert_one_sentence(error: BaseException, *named: str) -> None:
    text = str(error)
    assert "\n" not in text
    for name in named:
        assert name in text


def test_digits_are_all_there_and_split_the_same_way_every_time() -> None:
    first, again, other = data.load("digits"), data.load("digits"), data.load("digits", seed=1)
    assert first.train_images.shape == (1438, 1, 8, 8)
    assert first.test_images.shape == (359, 1, 8, 8)
    assert first.train_images.dtype == torch.uint8
    assert first.train_labels.dtype == torch.int64
    assert first.classes == tuple("0123456789")
    assert torch.equal(first.test_images, again.test_images)
    assert not torch.equal(first.test_labels, other.test_labels)
    for split in (first, other):
        labels = torch.cat([split.train_labels, split.test_labels])
        assert torch.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_inputs_reach_one() -> None:
    digits = data.load("digits")
    assert digits.inputs(digits.train_images).max() == 1
    random = data.load("random", n=40)
    inputs = random.inputs(random.train_images, torch.float64)
    assert inputs.dtype == torch.float64
    assert inputs.shape == random.train_images.shape
    assert torch.equal(inputs, random.train_images.double() / 255)


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        data.load("digits")
    assert_one_sentence(caught.value, "scikit-learn", "pip install")


def test_sample_keeps_training_and_test_points_apart() -> None:
    every, some = data.load("digits"), data.load("digits", n=100)
    assert (len(some.train_labels), len(some.test_labels)) == (80, 20)
    for images, labels, all_images, all_labels in (
        (some.train_images, some.train_labels, every.train_images, every.train_labels),
        (some.test_images, some.test_labels, every.test_images, every.test_labels),
    ):
        found = (images.flatten(1)[:, None] == all_images.flatten(1)[None]).all(-1)
        assert found.any(1).all()
        assert torch.equal(all_labels[found.int().argmax(1)], labels)
    assert data.load("digits", n=1797).n == 1797
    assert torch.equal(some.train_labels, data.load("digits", n=100).train_labels)


@pytest.mark.parametrize("n", [-1, 0, 1, 1798])
def test_sample_of_an_impossible_size(n: int) -> None:
    with pytest.raises(ValueError, match="n must be between 2 and 1797") as caught:
        data.load("digits", n=n)
    assert_one_sentence(caught.value, "digits", str(n))


def test_random_has_as_many_points_as_asked_for() -> None:
    random = data.load("random", n=11, seed=3)
    assert (len(random.train_labels), len(random.test_labels), random.n) == (9, 2, 11)
    assert torch.equal(random.train_images, data.load("random", n=11, seed=3).train_images)
    with pytest.raises(ValueError, match="n must be at least 2, got 1"):
        data.load("random", n=1)


def test_unknown_name_and_missing_folder() -> None:
    with pytest.raises(ValueError, match="name must be one of digits, mnist, cifar10, random; got 'iris'"):
        data.load("iris")
    for name in ("mnist", "cifar10"):
        with pytest.raises(ValueError, match=f"data_dir is needed for {name}") as caught:
            data.load(name)
        assert_one_sentence(caught.value, "https://")


def test_mnist_from_plain_and_gzipped_files(mnist_folder: Path) -> None:
    mnist = data.load("mnist", str(mnist_folder))
    assert mnist.train_images.shape == (TRAIN, 1, 2, 3)
    assert mnist.train_images.flatten().tolist() == list(pixels(TRAIN))
    assert mnist.train_labels.tolist() == [0, 9, 1, 1, 4]
    assert mnist.test_images.flatten().tolist() == list(pixels(TEST))
    assert mnist.test_labels.tolist() == [7, 7, 2]
    assert mnist.test_labels.dtype == torch.int64


@pytest.mark.parametrize("name", [name for pair in data.MNIST_FILES for name in pair])
def test_mnist_with_a_file_missing(mnist_folder: Path, name: str) -> None:
    for file in mnist_folder.glob(f"{name}*"):
        file.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        data.load("mnist", mnist_folder)
    assert_one_sentence(caught.value, name, data.MNIST_SOURCE)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "half a header": lambda raw: raw[:7],
    "wrong magic": lambda raw: b"\x08\x00" + raw[2:],
    "floats, not bytes": lambda raw: raw[:2] + b"\x0d" + raw[3:],
    "wrong number of dimensions": lambda raw: raw[:3] + b"\x02" + raw[4:],
    "no points": lambda raw: raw[:4] + bytes(4) + raw[8:],
    "one byte short": lambda raw: raw[:-1],
    "one byte too many": lambda raw: raw + b"\x00",
    "a size no file has": lambda raw: raw[:4] + b"\xff\xff\xff\xff" + raw[8:],
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("packed", [False, True])
def test_mnist_with_a_damaged_file(mnist_folder: Path, damage: str, packed: bool) -> None:
    file = mnist_folder / "t10k-images-idx3-ubyte"
    raw = DAMAGE[damage](file.read_bytes())
    if packed:
        file.unlink()
        file = file.with_suffix(".gz")
        raw = gzip.compress(raw)
    file.write_bytes(raw)
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte") as caught:
        data.load("mnist", mnist_folder)
    assert_one_sentence(caught.value, data.MNIST_SOURCE)


@pytest.mark.parametrize("cut", [0, 5, 20, -9, -1])
def test_mnist_with_a_damaged_gzip_file(mnist_folder: Path, cut: int) -> None:
    file = mnist_folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is") as caught:
        data.load("mnist", mnist_folder)
    assert_one_sentence(caught.value, data.MNIST_SOURCE)


def test_mnist_with_a_gzip_file_that_is_none(mnist_folder: Path) -> None:
    (mnist_folder / "train-images-idx3-ubyte.gz").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="not a whole gzip file") as caught:
        data.load("mnist", mnist_folder)
    assert_one_sentence(caught.value, data.MNIST_SOURCE)


def test_mnist_with_labels_that_do_not_fit(mnist_folder: Path) -> None:
    labels = mnist_folder / "t10k-labels-idx1-ubyte"
    labels.write_bytes(idx((2,), bytes(2)))
    with pytest.raises(ValueError, match="3 images but t10k-labels-idx1-ubyte has 2 labels") as caught:
        data.load("mnist", mnist_folder)
    assert_one_sentence(caught.value, data.MNIST_SOURCE)
    labels.write_bytes(idx((TEST,), bytes([1, 10, 1])))
    with pytest.raises(ValueError, match="the label 10 but there are 10 classes") as caught:
        data.load("mnist", mnist_folder)
    assert_one_sentence(caught.value, labels.name, data.MNIST_SOURCE)


def test_cifar10_planes_and_labels(cifar_folder: Path) -> None:
    for folder in (cifar_folder, cifar_folder / "cifar-10-batches-bin"):
        cifar = data.load("cifar10", folder)
        assert cifar.train_images.shape == (10, 3, 32, 32)
        assert cifar.test_images.shape == (2, 3, 32, 32)
        assert cifar.train_labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert cifar.test_labels.tolist() == [5, 5]
        assert cifar.train_images[:, 0, 0, 0].tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
        assert (cifar.train_images[:, 2, 0, 0] == 255).all()
        assert len(cifar.classes) == 10


@pytest.mark.parametrize("change", ["missing", "short", "long", "label"])
def test_cifar10_with_a_damaged_file(cifar_folder: Path, change: str) -> None:
    file = cifar_folder / "cifar-10-batches-bin" / "data_batch_3.bin"
    raw = file.read_bytes()
    if change == "missing":
        file.unlink()
    else:
        file.write_bytes({"short": raw[:-1], "long": raw + b"\x00", "label": b"\x0a" + raw[1:]}[change])
    with pytest.raises(FileNotFoundError if change == "missing" else ValueError) as caught:
        data.load("cifar10", cifar_folder)
    assert_one_sentence(caught.value, file.name, data.CIFAR10_SOURCE)


def real_folder(name: str) -> Path:
    root = os.environ.get("GATEDOPS_DATA_DIR")
    if root is None or not (Path(root) / name).is_dir():
        pytest.skip(f"GATEDOPS_DATA_DIR is not set to a folder with {name}/")
    return Path(root) / name


def test_real_mnist() -> None:
    mnist = data.load("mnist", real_folder("mnist"))
    assert mnist.train_images.shape == (60_000, 1, 28, 28)
    assert mnist.test_images.shape == (10_000, 1, 28, 28)
    assert mnist.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.test_labels[:5].tolist() == [7, 2, 1, 0, 4]


def test_real_cifar10() -> None:
    cifar = data.load("cifar10", real_folder("cifar-10-batches-bin"))
    assert cifar.train_images.shape == (50_000, 3, 32, 32)
    assert torch.bincount(cifar.train_labels).sum() == 50_000
    assert torch.bincount(cifar.test_labels, minlength=10).tolist() == [1000] * 10
    assert math.isclose(cifar.inputs(cifar.test_images[:1000]).mean().item(), 0.473, abs_tol=0.02)
