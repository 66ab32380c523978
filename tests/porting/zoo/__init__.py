"""Twins for these tests, one in Keras and one in PyTorch: every recipe and every trap of a port."""
