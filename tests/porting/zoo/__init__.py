"""Twins of the tests' own, one in Keras and one in PyTorch: every recipe and every trap of a port."""
