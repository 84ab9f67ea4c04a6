"""Files of GateBits: those of earlier versions, broken ones, and words that stay in the file."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from strategies import dense, random_bits
from torch.utils.data import DataLoader

from gatedops import GateBits, GateLayer
from gatedops.trace.rows import RowsInFile

WORDS = [
    [2035055965, 1, 0, 0, 0, 0, 0, 0, 2, 0, 2, 0, 0, 0, 4, 0],
    [658611471, 1, 0, 0, 0, 0, 0, 0, 4, 0, 7, 0, 1, 0, 6, 0],
]
LAYERS = (GateLayer("fc", (33,), "gate", 0), GateLayer("conv", (3, 2, 2), "gate", 8))
NAMES = r"[[\"fc\", [33], \"gate\"], [\"conv\", [3, 2, 2], \"gate\"]]"
# The heads that version 0.1.0 wrote before these words, in GateBits.save and row after row.
SAVED = (
    '{"__metadata__":{"format":"gatedops.GateBits/1","layers":"'
    + NAMES
    + '"},"words":{"dtype":"I32","shape":[2,16],"data_offsets":[0,128]}}  '
).encode()
IN_ROWS = (
    '{"__metadata__": {"format": "gatedops.GateBits/1", "layers": "'
    + NAMES
    + '"}, "words": {"dtype": "I32", "shape": [2, 16], "data_offsets": [0, 128]}}'
    + 53 * " "
).encode()
both_ways = pytest.mark.parametrize("mmap", [False, True])


def file_of(head: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(head)) + head + data


def of_json(words: object, data: bytes, **metadata: object) -> bytes:
    return file_of(json.dumps({"__metadata__": metadata, "words": words}).encode(), data)


def words_of_file() -> bytes:
    return struct.pack("<32i", *WORDS[0], *WORDS[1])


def written(folder: Path, content: bytes) -> Path:
    (folder / "gates.safetensors").write_bytes(content)
    return folder / "gates.safetensors"


@both_ways
@pytest.mark.parametrize("head", [SAVED, IN_ROWS], ids=["saved", "in rows"])
def test_files_of_earlier_versions_load_the_same(head, mmap, tmp_path):
    bits = GateBits.load(written(tmp_path, file_of(head, words_of_file())), mmap=mmap)
    assert bits.words.tolist() == WORDS
    assert bits.layers == LAYERS


def test_files_are_written_as_by_earlier_versions(tmp_path):
    bits = GateBits(torch.tensor(WORDS, dtype=torch.int32), LAYERS)
    bits.save(tmp_path / "saved")
    saved, size = (tmp_path / "saved").read_bytes(), 8 + len(SAVED)
    assert saved[:8] + saved[size:] == struct.pack("<Q", len(SAVED)) + words_of_file()
    assert json.loads(saved[8:size]) == json.loads(SAVED)  # The library writes the metadata in any order.
    with RowsInFile(tmp_path / "rows") as rows:
        rows.add(bits[:1])
        rows.add(bits[1:])
        rows.finish()
    assert (tmp_path / "rows").read_bytes() == file_of(IN_ROWS, words_of_file())


GOOD = file_of(SAVED, words_of_file())
SPAN = {"dtype": "I32", "shape": [2, 2], "data_offsets": [0, 16]}
BROKEN = {
    "an empty file": b"",
    "half a length": GOOD[:4],
    "a length alone": GOOD[:8],
    "half a head": GOOD[:60],
    "no words": GOOD[: -len(words_of_file())],
    "half the words": GOOD[:-64],
    "a byte less": GOOD[:-1],
    "a byte more": GOOD + b"x",
    "a length of an exabyte": struct.pack("<Q", 2**60) + b"{}",
    "a length past the file": struct.pack("<Q", 10**6) + GOOD[8:],
    "a list": file_of(b"[1]"),
    "no JSON": file_of(b"words"),
    "no UTF-8": file_of(b'{"\xff": 1}'),
    "zeros": bytes(500),
    "words that are a number": of_json(3, b""),
    "a shape of other words": of_json(SPAN | {"shape": [3, 2]}, bytes(16)),
    "a shape below 0": of_json(SPAN | {"shape": [-2, -2]}, bytes(16)),
    "a shape past 64 bits": of_json(SPAN | {"shape": [2**62, 2**62]}, bytes(16)),
    "a span that ends before it starts": of_json(SPAN | {"data_offsets": [16, 0]}, bytes(16)),
    "a span past the file": of_json(SPAN | {"data_offsets": [16, 32]}, bytes(16)),
    "metadata that is a number": of_json(SPAN, bytes(16), format=1),
}


@both_ways
@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_an_error_that_names_the_file_and_says_why(content, mmap, tmp_path):
    expected = r"gates\.safetensors: is not a safetensors file, is cut off or is damaged \(.*[a-z]{4}.*\)"
    with pytest.raises(ValueError, match=expected):
        GateBits.load(written(tmp_path, content), mmap=mmap)


OTHERS = {
    "no tensor": {},
    "another name": {"weight": torch.zeros(4, 3, dtype=torch.int32)},
    "floats": {"words": torch.zeros(4, 3)},
    "longs": {"words": torch.zeros(4, 3, dtype=torch.int64)},
    "one dimension": {"words": torch.zeros(12, dtype=torch.int32)},
    "three dimensions": {"words": torch.zeros(2, 2, 3, dtype=torch.int32)},
}


@both_ways
@pytest.mark.parametrize("tensors", OTHERS.values(), ids=OTHERS)
def test_a_file_of_other_tensors_is_an_error_that_says_what_is_needed(tensors, mmap, tmp_path):
    with pytest.raises(ValueError, match=r"gates\.safetensors: holds no int32 tensor 'words' \(n, W\); write it with"):
        GateBits.load(written(tmp_path, save(tensors)), mmap=mmap)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "another"}])
def test_words_without_the_format_of_gates_are_an_error(metadata, tmp_path):
    content = save({"words": torch.zeros(4, 3, dtype=torch.int32)}, metadata)
    with pytest.raises(ValueError, match=r"gates\.safetensors: holds no GateBits; write it with"):
        GateBits.load(written(tmp_path, content))


def test_a_folder_and_a_missing_file_are_errors_of_the_system(tmp_path):
    with pytest.raises(IsADirectoryError):
        GateBits.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="none"):
        GateBits.load(tmp_path / "none")


def test_mapped_words_are_those_of_the_file_and_writes_to_them_are_private(tmp_path):
    bits = random_bits(400, dense(3000))
    bits.save(tmp_path / "gates")
    mapped, read = GateBits.load(tmp_path / "gates", mmap=True), GateBits.load(tmp_path / "gates")
    assert mappings(tmp_path / "gates", mapped) == 1
    assert mappings(tmp_path / "gates", read) == 0
    mapped.words.zero_()
    assert GateBits.load(tmp_path / "gates", mmap=True) == read == bits
    random_bits(5, dense(3)).save(tmp_path / "gates")  # another file of the same name
    assert not mapped.words.any()


def mappings(path: Path, bits: GateBits) -> int:
    """How many mappings of the file the words lie in."""
    address, found = bits.words.data_ptr(), 0
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("the system has no /proc")
    for line in maps.read_text().splitlines():
        first, last = (int(number, 16) for number in line.split()[0].split("-"))
        found += first <= address < last and line.endswith(str(path))
    return found


def test_mapped_words_are_pickled_copied_and_sent_to_workers(tmp_path):
    bits = random_bits(40, dense(300))
    bits.save(tmp_path / "gates")
    mapped = GateBits.load(tmp_path / "gates", mmap=True)
    assert pickle.loads(pickle.dumps(mapped)) == bits
    assert len(pickle.dumps(mapped[:2])) < 2000
    assert GateBits.cat(list(DataLoader(mapped, batch_size=10, num_workers=1))) == bits


def test_files_are_read_to_the_cpu_whatever_the_default_device(tmp_path):
    for bits in (random_bits(4, dense(30)), random_bits(0, dense(30))):
        bits.save(tmp_path / "gates")
        with torch.device("meta"):
            loaded = [GateBits.load(tmp_path / "gates", mmap=mmap) for mmap in (False, True)]
        assert loaded == [bits, bits]
