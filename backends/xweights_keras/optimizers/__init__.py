"""Keras' optimizers and LR schedules, read and written."""
