"""The progress bar of long work."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

_Item = TypeVar("_Item")
_DELAY = 1.0  # seconds


def with_bar(items: Iterable[_Item], what: str, unit: str, count: int, progress: bool | None) -> Iterable[_Item]:
    """The items, with a bar (tqdm) over them.

    Args:
        what, unit: of work, for the bar.
        count: of the items; 0 where it is not known.
        progress: whether to show it. None: on a terminal, once it has taken a second, if tqdm is installed.

    Raises:
        ModuleNotFoundError: progress is True and tqdm is not installed.
    """
    if progress is False:
        return items
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        if progress is None:
            return items
        raise ModuleNotFoundError("progress: the bar needs tqdm, which is not installed: pip install tqdm") from None
    hidden = None if progress is None else False  # None: where there is no terminal
    return tqdm(items, what, count or None, leave=False, unit=unit, delay=_DELAY, disable=hidden)
