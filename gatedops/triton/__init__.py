"""Triton kernels and their launchers, one file for each family. They need triton, and are imported only if used."""
