"""Reads the schema strings of csrc/ops.cpp, and all other strings that register ops."""

from __future__ import annotations

import re
from pathlib import Path

CSRC = Path(__file__).resolve().parents[2] / "csrc"


def calls(text: str, method: str) -> list[str]:
    """Returns the first string of every m.<method>(...) call, with adjacent literals joined."""
    literals = re.findall(rf'm\.{method}\(\s*((?:"[^"]*"\s*)+)', text)
    return ["".join(re.findall(r'"([^"]*)"', literal)) for literal in literals]


SCHEMAS = calls((CSRC / "ops.cpp").read_text(), "def")
