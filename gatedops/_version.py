"""The version of gatedops, written in this file only."""

__version__ = "0.1.0"
