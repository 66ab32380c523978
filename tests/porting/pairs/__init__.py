"""Pairs of models from public packages and tutorials that say the same in Keras and in torch (see making.py)."""
