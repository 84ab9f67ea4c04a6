"""The layout is what CONTRIBUTING.md promises: small folders, shared headers, tests that share by helpers."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC, TESTS, EMULATION = ROOT / "csrc", ROOT / "tests", ROOT / "tests" / "cuda" / "emulation"
SOURCES = [path for path in CSRC.rglob("*") if path.suffix in (".h", ".cpp", ".cu")]
ORDER = ["core", "gates", "gram", "conv_gram", "gated_linear"]
IMPORTED_TEST = re.compile(
    r"^\s*(from\s[\w.]*\btest_|(from\s.*)?import\s(.*\W)?test_)|import_module\(.?.test_", re.MULTILINE
)
INCLUDE = re.compile(r'^\s*#\s*include "([^"]+)"', re.MULTILINE)


def readers(files):
    """Maps each header to the files that include it."""
    found = defaultdict(set)
    for path in files:
        for name in INCLUDE.findall(path.read_text()):
            for header in (path.parent / name, CSRC / name):
                if header.exists() and header != path:
                    found[header.resolve()].add(path)
                    break
    return found


@pytest.mark.parametrize(
    "folder",
    sorted({path.parent for path in CSRC.rglob("*") if path.is_file()}),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_folder_of_more_than_20_files(folder):
    assert len([path for path in folder.iterdir() if path.is_file()]) <= 20


def test_every_header_is_shared():
    """At least two files include it, or one and the emulation of GPUs, which compiles the same text on the CPU."""
    everything = readers([*SOURCES, *EMULATION.iterdir()])
    drawers = [path for path in SOURCES if path.suffix == ".h" and len(everything[path.resolve()]) < 2]
    assert drawers == []


def test_every_included_file_exists():
    for path in SOURCES:
        for name in INCLUDE.findall(path.read_text()):
            found = [base / name for base in (path.parent, CSRC, EMULATION) if (base / name).exists()]
            assert found, f"{path.relative_to(ROOT)} includes {name}"


def test_no_name_repeats_its_folder():
    folders = {path: path.relative_to(CSRC).parent.parts for path in SOURCES}
    repeated = [path for path, names in folders.items() if path.stem.startswith(tuple(f"{name}_" for name in names))]
    assert repeated == []


def test_headers_go_one_way():
    """A folder includes only what comes before it in ORDER, and no header of another device."""
    for path in SOURCES:
        family, *rest = path.relative_to(CSRC).parts
        if not rest or path.parent == CSRC:
            continue
        for name in INCLUDE.findall(path.read_text()):
            if "/" not in name:
                continue
            other, *inside = Path(name).parts
            assert other == family or ORDER.index(other) < ORDER.index(family), f"{path.relative_to(ROOT)}: {name}"
            devices = {part for part in (rest[0], inside[0]) if part in ("cpu", "cuda")}
            assert len(devices) < 2, f"{path.relative_to(ROOT)}: {name}"


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.name)
def test_no_file_imports_a_test_file(path):
    assert not IMPORTED_TEST.search(path.read_text())


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *CSRC.glob("*/README.md")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_a_document_names_exists(document):
    """Such names are in backticks with a slash, from the root or beside the document; ``<family>`` and ``*`` mean any
    name."""
    missing = []
    for name in re.findall(
        r"`((?:csrc|gatedops|tests|benchmarks|examples|scripts|docs)/[^\s`]*)`", document.read_text()
    ):
        pattern = re.sub(r"<[^>]+>", "*", name).rstrip("/")
        if not any(ROOT.glob(pattern)):
            missing.append(name)
    for name in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
        if not (document.parent / name).exists():
            missing.append(name)
    assert missing == []
