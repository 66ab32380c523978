"""Rules: small frozen objects, each a pure function from weights to weights."""

from xweights.rules.base import Function, Rule
from xweights.rules.elementwise import Add, Clip, Fill, Mask, NonNegative, Scale

__all__ = ["Add", "Clip", "Fill", "Function", "Mask", "NonNegative", "Rule", "Scale"]
