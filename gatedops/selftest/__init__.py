"""Runs the kernels of a GPU against the portable ops on the user's own GPU; `python -m gatedops selftest`."""
