"""What an elementwise rule asks of ops, whatever its numbers are: written down once, done again in compiled code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

# The name of a method of ops, and its arguments: the weights, the number of an operand, None, or another expression.
Expression = tuple[Any, ...]

WEIGHTS = "weights"


class _Recorder:
    """Ops that return what they were asked for."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments: (name, *arguments)


_RECORDER: Any = _Recorder()


def record(edit: Callable[..., Any], count: int) -> Expression:
    """Return what an edit of ``count`` operands does: ``("clip", "weights", 0, 1)``."""
    expression: Expression = edit(WEIGHTS, _RECORDER, *range(count))
    return expression


def replay(expression: Any, w: Any, ops: Any, operands: Sequence[Any]) -> Any:
    """Return what an expression makes of weights."""
    if expression is None:
        return None
    if isinstance(expression, int):
        return operands[expression]
    if isinstance(expression, str):
        return w
    name, *arguments = expression
    return getattr(ops, name)(*[replay(argument, w, ops, operands) for argument in arguments])
