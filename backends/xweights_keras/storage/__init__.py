"""Reading and writing of Keras variables on each Keras backend."""
