"""Result of `merge` with ``out=``: what was merged, and what became of the rest of the first file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xweights.edit.load_report import Adapted

_LISTED = 8


@dataclass(frozen=True)
class MergeReport:
    """What :func:`xweights.merge` wrote to ``out=``.

    Attributes:
        path: The file.
        merged: Number of parameters that were merged.
        part: The part of the first file that they are; empty if it is weights alone.
        kept: What else of the first file is in the new one, unchanged: names of parts and keys.
        dropped: What of the first file isn't in the new one.
        why: Why it was dropped.
        readings: How names were read as the first target's, by target, where a wrapper's prefix was seen through.
        adapted: What was adapted, by target and name, as ``adapt=`` says: (how, shape before, shape after).

    Example:
        >>> import numpy as np, xweights as xw
        >>> print(xw.merge([{"b": np.zeros(2)}, {"b": np.ones(2)}], out="merged.npz"))
        1 parameter merged into 'merged.npz'
    """

    path: str
    merged: int
    part: str = ""
    kept: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    why: str = ""
    readings: Mapping[str, str] = field(default_factory=dict)
    adapted: Mapping[str, Mapping[str, Adapted]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return {
            "path": self.path,
            "merged": self.merged,
            "part": self.part,
            "kept": list(self.kept),
            "dropped": list(self.dropped),
            "why": self.why,
            "readings": dict(self.readings),
            "adapted": {
                label: {name: [how, list(old), list(new)] for name, (how, old, new) in of_target.items()}
                for label, of_target in self.adapted.items()
            },
        }

    def __str__(self) -> str:
        part = f", part {self.part!r}" if self.part else ""
        lines = [f"{self.merged:,} parameter{'s' * (self.merged != 1)} merged into {self.path!r}{part}"]
        lines += [f"read:      {label}, {reading}" for label, reading in list(self.readings.items())[:_LISTED]]
        changes = [f"{label}, {name!r}: {how}" for label, of in self.adapted.items() for name, how in of.items()]
        lines += [f"adapted:   {change}" for change in changes[:_LISTED]]
        if len(changes) > _LISTED:
            lines.append(f"           ... and {len(changes) - _LISTED:,} more")
        if self.kept:
            lines.append(f"unchanged: the rest of target 0: {_list(self.kept)}")
        if self.dropped:
            lines.append(f"left out:  the rest of target 0: {_list(self.dropped)}; {self.why}")
        return "\n".join(lines)

    __repr__ = __str__


def _list(names: tuple[str, ...]) -> str:
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{', '.join(map(repr, names[:_LISTED]))}{more}"
