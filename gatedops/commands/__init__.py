"""The commands of `python -m gatedops`, one module each."""
