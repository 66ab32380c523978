"""Merge many targets into one: averages, interpolations, task vectors."""
