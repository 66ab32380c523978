"""PyTorch's optimizers and LR schedules, read and written."""
