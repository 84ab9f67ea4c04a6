"""Makes the environment of a Python process that finds the same modules as this one, whatever folder it starts in."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection


def environment(without: Collection[str] = ()) -> dict[str, str]:
    """Returns the environment of this process, without some variables, and with the folders of its modules."""
    inherited = {name: value for name, value in os.environ.items() if name not in without}
    folders = os.pathsep.join(folder for folder in sys.path if folder)
    return inherited | {"PYTHONPATH": folders, "PYTHONSAFEPATH": "1"}
