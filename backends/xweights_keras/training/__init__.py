"""Holds and hooks in Keras' training."""
