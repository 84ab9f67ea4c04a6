"""The version of gatedops, once."""

__version__ = "0.1.0"
