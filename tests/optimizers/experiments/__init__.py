"""Half-trained experiments, and what they are compared with."""
