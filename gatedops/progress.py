"""Shows the progress of long work on stderr, by a bar of tqdm."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, TypeVar

_Item = TypeVar("_Item")
_DELAY = 1.0  # seconds


def with_bar(items: Iterable[_Item], what: str, unit: str, count: int, progress: bool | None) -> Iterable[_Item]:
    """Returns the items, with a bar over them.

    Args:
        what, unit: name the work and one item of it, for the bar.
        count: the number of items; 0 if it is not known.
        progress: whether to show the bar. None: on a terminal, once the work has taken a second, if tqdm is installed.

    Raises:
        ModuleNotFoundError: progress is True and tqdm is not installed.
    """
    if not (shows_bars() if progress is None else progress):
        return items
    return _bars()(items, what, count or None, leave=False, unit=unit, delay=_DELAY)


@contextmanager
def stages(
    total: int, unit: str = "stage", what: str = "", done: int = 0, progress: bool | None = None
) -> Iterator[Callable[[str], None]]:
    """Yields a function that moves a bar by one stage and shows the text that it is given.

    Args:
        total, done: the number of stages, or 0 if it is not known, and how many of them lie behind.
        unit: names one stage.
        what: stands at the head of the bar, and the texts at its end. If it is empty, the texts stand at the head.
        progress: whether to show the bar. None: on a terminal, if tqdm is installed.

    Raises:
        ModuleNotFoundError: progress is True and tqdm is not installed.
    """
    if not (shows_bars() if progress is None else progress):
        yield lambda text: None
        return
    with _bars()(total=total or None, initial=done, desc=what or None, unit=unit, leave=False) as bar:

        def advance(text: str) -> None:
            (bar.set_postfix_str if what else bar.set_description)(text)
            bar.update()

        yield advance


def _bars() -> Any:
    """Returns tqdm.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise ModuleNotFoundError("progress: the bar needs tqdm, which is not installed: pip install tqdm") from None
    return tqdm


def shows_bars() -> bool:
    """Whether stderr is a terminal and tqdm is installed."""
    return sys.stderr is not None and sys.stderr.isatty() and find_spec("tqdm") is not None
