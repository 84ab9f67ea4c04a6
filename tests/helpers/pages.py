"""Reads the pages of docs/ and runs their code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"


def section_of(page: str, heading: str) -> str:
    """Returns what stands below a heading of the second level."""
    text = (DOCS / page).read_text()
    (found,) = re.findall(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return found


def run_code(text: str, name: str) -> dict[str, Any]:
    """Runs the blocks of Python in a text, each after those before it, and returns all names that they define."""
    known: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, name, "exec"), known)
    return known
