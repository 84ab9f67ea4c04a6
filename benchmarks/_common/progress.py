"""The progress of a long run, on a terminal only."""

from gatedops.progress import stages, with_bar

__all__ = ["stages", "with_bar"]
