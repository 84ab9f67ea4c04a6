"""The parts of drop_in.py: the networks, and the walk of one digit."""
