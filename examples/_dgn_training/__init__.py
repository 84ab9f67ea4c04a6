"""Holds the parts of dgn_training.py."""
