"""The networks of drop_in.py."""
