"""Half-trained experiments and their reference runs."""
