"""The update formulas of optimizers, in neutral array math."""
