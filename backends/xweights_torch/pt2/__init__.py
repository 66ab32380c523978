"""Exported programs (.pt2) as modules."""
