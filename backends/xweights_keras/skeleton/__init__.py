"""Conversion of Keras models to neutral steps, and of neutral steps to Keras source code."""
