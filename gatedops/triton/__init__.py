"""Triton kernels and their launchers, one file per family. Needs the triton package; imported only when used."""
