"""The parts of drop_in.py."""
