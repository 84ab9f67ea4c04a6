"""A progress bar around long work, where tqdm is installed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

_DELAY = 1.0  # seconds
_Item = TypeVar("_Item")


def with_bar(items: Iterable[_Item], what: str, count: int, unit: str, progress: bool | None) -> Iterable[_Item]:
    """The items, counted by a bar that says what is being done.

    Args:
        count: of the items; 0 where it is not known.
        progress: None: a bar on a terminal, once it has taken a second, if tqdm is installed. False: none.

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
