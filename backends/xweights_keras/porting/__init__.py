"""Keras' side of a port."""
