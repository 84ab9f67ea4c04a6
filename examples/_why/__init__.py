"""The picture of examples/why.py."""
