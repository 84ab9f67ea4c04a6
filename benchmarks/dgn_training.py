"""Moved: python examples/dgn_training.py. This path goes with the next release."""

from _common.moved import run_moved

if __name__ == "__main__":
    run_moved(__file__)
