"""Holds, freezing, scheduled pruning, penalties, learning-rate multipliers and weight averages during training."""
