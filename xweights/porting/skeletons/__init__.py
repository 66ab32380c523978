"""Recorded runs of a model as graphs of neutral operations, and graphs as source code of a framework."""
