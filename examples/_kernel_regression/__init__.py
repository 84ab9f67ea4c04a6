"""What mnist_regression.py and conv_regression.py share, and the parts of each."""
