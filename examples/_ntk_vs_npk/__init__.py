"""Holds the parts of ntk_vs_npk.py: the draws of value weights, and the picture."""
