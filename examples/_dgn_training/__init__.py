"""The parts of dgn_training.py."""
