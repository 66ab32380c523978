"""Keras models as neutral steps, and neutral steps as Keras source code."""
