"""Compares the kernels for GPUs with the portable ops on the user's own GPU: `python -m gatedops selftest`."""
