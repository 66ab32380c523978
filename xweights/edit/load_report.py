"""Result of `set_params`: what was taken from where, and what was left over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from xweights.core.tables import render_text_html

_LINES = 40
_LISTED = 8


class Adapted(NamedTuple):
    """How a value was brought to the shape of its parameter: by which adapter, from which shape to which."""

    how: str
    before: tuple[int, ...]
    after: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.before} -> {self.after} by {self.how}"


@dataclass(frozen=True)
class LoadReport:
    """What :func:`xweights.set_params` wrote, and what it left over; prints in at most 40 lines.

    Attributes:
        source: The file, or "values".
        part: The part of the file that was read; empty if the file is weights alone.
        reading: How the names in the file were read as the target's: through which prefix.
        taken: ``{parameter: keys it was taken from}``, by neutral name.
        left_in_file: Keys in the same part that nothing was taken from, each with the reason if that is no surprise.
        left_in_model: Selected parameters that got no value, each with the reason if that is no surprise.
        mismatched: Parameters whose value has another shape, left out by ``mismatched="skip"``: (value's, parameter's).
        other_parts: The other parts of the file, and what they are.
        adapted: Parameters whose value was adapted, as ``adapt=`` says: (how, value's shape, parameter's shape).

    Example:
        >>> import numpy as np, xweights as xw
        >>> print(xw.set_params({"b": np.zeros(2)}, {"b": [1.0, 2.0]}))
        1 parameter written from values
    """

    source: str
    part: str = ""
    reading: str = ""
    taken: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_in_file: Mapping[str, str | None] = field(default_factory=dict)
    left_in_model: Mapping[str, str | None] = field(default_factory=dict)
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    other_parts: Mapping[str, str] = field(default_factory=dict)
    adapted: Mapping[str, Adapted] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return {
            "source": self.source,
            "part": self.part,
            "reading": self.reading,
            "taken": {name: list(keys) for name, keys in self.taken.items()},
            "left_in_file": dict(self.left_in_file),
            "left_in_model": dict(self.left_in_model),
            "mismatched": {name: [list(shape) for shape in shapes] for name, shapes in self.mismatched.items()},
            "other_parts": dict(self.other_parts),
            "adapted": {name: [how, list(old), list(new)] for name, (how, old, new) in self.adapted.items()},
        }

    def __str__(self) -> str:
        count = len(self.taken)
        part = f", part {self.part!r}" if self.part else ""
        lines = [f"{count:,} parameter{'s' * (count != 1)} written from {self.source}{part}"]
        if self.reading:
            lines.append(f"read:            {self.reading}")
        shapes = {
            name: f"{got} in the file, {expected} in the model" for name, (got, expected) in self.mismatched.items()
        }
        lines += _list("other shape:    ", shapes)
        lines += _list("adapted:        ", {name: str(adapted) for name, adapted in self.adapted.items()})
        lines += _list("left in model:  ", self.left_in_model)
        lines += _list("left in file:   ", self.left_in_file)
        if self.other_parts:
            shown = [f"{name!r} ({kind})" for name, kind in self.other_parts.items()]
            more = f" and {len(shown) - _LISTED} more" * (len(shown) > _LISTED)
            lines.append(f"other parts:     {', '.join(shown[:_LISTED])}{more}")
        return "\n".join(lines[:_LINES])

    def _repr_html_(self) -> str:
        return render_text_html(str(self))

    __repr__ = __str__


def _list(title: str, reasons: Mapping[str, str | None]) -> Sequence[str]:
    """Return the lines that list some names with their reasons, the first of them behind the title."""
    names = [f"{name!r}" + (f": {reason}" if reason else "") for name, reason in reasons.items()]
    if len(names) > _LISTED:
        names = [*names[: _LISTED - 1], f"... and {len(names) - _LISTED + 1:,} more"]
    return [f"{title if position == 0 else ' ' * len(title)} {name}" for position, name in enumerate(names)]
