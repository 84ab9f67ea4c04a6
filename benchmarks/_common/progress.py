"""Progress of a long run, on a terminal only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def stages(total: int) -> Iterator[Callable[[str], None]]:
    """A bar over the stages of a run; call what it gives with the name of each stage as that begins."""
    with tqdm(total=total, unit="stage", leave=False, disable=None) as bar:

        def begin(name: str) -> None:
            bar.set_description(name)
            bar.update()

        yield begin
