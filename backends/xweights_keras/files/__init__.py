"""Whole models in Keras' own files, and the names that its HDF5 files give."""
