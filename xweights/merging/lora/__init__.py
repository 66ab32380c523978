"""LoRA: merge the factors of an adapter into the weights that they add to, and extract factors from a difference."""
