"""How Keras variables are read and written, on each Keras backend."""
