"""The bar of long work."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")

_DELAY = 1.0  # seconds


def with_bar(items: Iterable[T], count: int, what: str, unit: str, progress: bool | None) -> Iterable[T]:
    """The items, under a tqdm bar where it is wanted.

    Args:
        count: how many there are; 0 where that is unknown.
        progress: None: on a terminal, once the work has taken a second, and only where tqdm is installed.
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
