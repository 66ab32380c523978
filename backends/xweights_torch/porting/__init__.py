"""PyTorch's side of a port."""
