"""Result types of `stats` and `diff`; they print as tables, and hold no arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from xweights.core.tables import render, render_html


@dataclass(frozen=True)
class ParameterStats:
    """Statistics of one parameter; NaN entries count in ``nan`` and ``count`` only, infinities in min and max.

    Of complex numbers, ``min`` and ``max`` are those of the magnitudes, and ``mean`` is complex.
    """

    name: str
    axes: tuple[str, ...] | None
    shape: tuple[int, ...]
    dtype: str
    trainable: bool
    count: int
    norm: float
    mean: float | complex
    std: float
    min: float
    max: float
    zeros: int
    nan: int

    @property
    def sparsity(self) -> float:
        """Share of entries that are zero (of either sign)."""
        return self.zeros / self.count if self.count else 0.0


def _as_json(number: complex) -> Any:
    return [number.real, number.imag] if isinstance(number, complex) else number


class Stats(Mapping[str, ParameterStats]):
    """The result of :func:`stats`: one row per parameter; prints as a table.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.stats({"w": np.array([3.0, 0.0, 4.0])}).as_dicts()[0]["zeros"]
        1
    """

    def __init__(self, rows: list[ParameterStats]) -> None:
        self.rows = rows
        self._by_name = {row.name: row for row in rows}

    def __getitem__(self, name: str) -> ParameterStats:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self.rows)

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return plain rows, for JSON; a complex mean is its two parts."""
        return [asdict(row) | {"mean": _as_json(row.mean), "sparsity": row.sparsity} for row in self.rows]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the column titles, and a row of texts for each parameter."""
        head = ["name", "count", "norm", "mean", "std", "min", "max", "sparsity", "NaN"]
        rows = [
            [
                r.name,
                f"{r.count:,}",
                *(f"{x:.4g}" for x in (r.norm, r.mean, r.std, r.min, r.max)),
                f"{r.sparsity:.1%}",
                str(r.nan),
            ]
            for r in self.rows
        ]
        return head, rows

    def __str__(self) -> str:
        return render(*self.table())

    def _repr_html_(self) -> str:
        return render_html(*self.table())

    __repr__ = __str__


@dataclass(frozen=True)
class Change:
    """The difference of one parameter: how many entries differ in their bits, and by how much."""

    name: str
    count: int
    changed: int
    max_abs: float
    rel: float
    note: str = ""


class Diff:
    """The result of :func:`diff`: falsy if nothing differs; prints as a table.

    Example:
        >>> import numpy as np, xweights as xw
        >>> bool(xw.diff({"w": np.zeros(3)}, {"w": np.zeros(3)}))
        False
    """

    def __init__(self, changes: list[Change], only_a: list[str], only_b: list[str], same: int) -> None:
        self.changes, self.only_a, self.only_b, self.same = changes, only_a, only_b, same

    def __bool__(self) -> bool:
        return bool(self.changes or self.only_a or self.only_b)

    @property
    def max_abs(self) -> float:
        """The largest absolute difference of all."""
        return max((change.max_abs for change in self.changes), default=0.0)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        changes = [asdict(change) for change in self.changes]
        return {"changes": changes, "only_a": self.only_a, "only_b": self.only_b, "same": self.same}

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the column titles, and a row of texts for each parameter that differs."""
        rows = [
            [c.name, f"{c.changed:,} of {c.count:,}", f"{c.max_abs:.4g}", f"{c.rel:.4g}", c.note] for c in self.changes
        ]
        rows += [[name, "only in a", "", "", ""] for name in self.only_a]
        rows += [[name, "only in b", "", "", ""] for name in self.only_b]
        head = ["name", "changed", "max |a-b|", "max |a-b| / max |a|", "note"]
        if not any(row[4] for row in rows):
            head, rows = head[:-1], [row[:-1] for row in rows]
        return head, rows

    @property
    def verdict(self) -> str:
        """How many parameters are equal, in a sentence."""
        if not self:
            return f"no difference in {self.same} parameters"
        return f"{self.same} parameters are equal"

    def __str__(self) -> str:
        return f"{render(*self.table())}\n{self.verdict}" if self else self.verdict

    def _repr_html_(self) -> str:
        return render_html(*self.table(), notes=[self.verdict]) if self else render_html([], [], title=self.verdict)

    __repr__ = __str__
