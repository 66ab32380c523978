"""Holds and hooks in PyTorch's training."""
