"""PyTorch modules as neutral steps, and neutral steps as PyTorch source code."""
