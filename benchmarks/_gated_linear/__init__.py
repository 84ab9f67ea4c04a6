"""Nets of gated layers, their timing, what they keep for the backward, and the plot of gated_linear.py."""
