"""Rules: small frozen objects, pure functions from weights to weights."""

from xweights.rules.base import (
    Add,
    Clip,
    Fill,
    Function,
    Mask,
    NonNegative,
    Rule,
    Scale,
)

__all__ = ["Add", "Clip", "Fill", "Function", "Mask", "NonNegative", "Rule", "Scale"]
