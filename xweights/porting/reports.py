"""What comes back from a port: plans and reports.

A report prints as a table, and goes to JSON and Markdown; it holds no model and no array.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from xweights.core.tables import render, render_html


@dataclass(frozen=True)
class PortEntry:
    """One layer, or part of one, and its twin. ``error``: of its output, relative; None where that can't be seen."""

    source: str
    target: str
    kind: str
    roles: tuple[str, ...]
    evidence: str
    error: float | None = None


@dataclass(frozen=True)
class Difference:
    """A setting that is no weight and differs. ``fixed``: the target was given the source's."""

    source: str
    target: str
    name: str
    expected: Any
    got: Any
    fixed: bool = False
    training: bool = False

    def __str__(self) -> str:
        return f"{self.name} of {self.target!r} is {self.got}, that of {self.source!r} is {self.expected}"


@dataclass(frozen=True)
class Finding:
    """Where two models part. ``layer`` is the target's, ``twin`` the source's; ``rounding``: gone in float64."""

    layer: str
    twin: str
    cause: str
    error: float
    place: str = "output"
    word: str = "unknown"
    rounding: bool = False

    def __str__(self) -> str:
        return f"{self.layer!r}: {self.cause} (error {_number(self.error)})"


@dataclass(frozen=True)
class PortPlan:
    """What a port would do. It touches nothing.

    Attributes:
        entries: Which layer goes where, and why.
        ambiguous: What the structure alone doesn't settle, and what would.
        problems: What stands against the port.
        remains: Parameters of the target that aren't ported.

    Example:
        >>> import xweights as xw
        >>> xw.PortPlan(entries=()).ok
        True
    """

    entries: tuple[PortEntry, ...]
    ambiguous: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    remains: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True if the port needs no sample."""
        return not self.ambiguous and not self.problems

    def to_json(self) -> str:
        """Return the plan as JSON."""
        return _json(self)

    def to_markdown(self) -> str:
        """Return the plan as Markdown."""
        return _markdown("Plan of a port", *_entry_table(self.entries, errors=False), _sections(self))

    def _repr_html_(self) -> str:
        return _html("Plan of a port", *_entry_table(self.entries, errors=False), _sections(self))

    def __str__(self) -> str:
        return "\n".join([render(*_entry_table(self.entries, errors=False)), *_lines(_sections(self))])

    __repr__ = __str__


@dataclass(frozen=True)
class PortReport:
    """What a port did, and what proves it.

    Attributes:
        entries: Which layer went where, why, and the error of its output, computed from the same input.
        ok: True if the outputs agree; for a port without a sample, that nothing was left to choice.
        max_error: The largest error of an output, relative to its largest entry; None without a sample.
        outputs: The error of each output.
        differences: Settings that are no weights and differ.
        remains: Parameters of the target that weren't ported.
        ignored: Arrays that have no counterpart by their nature (counters, seeds).
        notes: What else is worth knowing.
        first_divergence: Where the models part, if that was to be ignored.

    Example:
        >>> import xweights as xw
        >>> xw.PortReport(entries=(), ok=True, max_error=None).ok
        True
    """

    entries: tuple[PortEntry, ...]
    ok: bool
    max_error: float | None
    outputs: dict[str, float] = field(default_factory=dict)
    differences: tuple[Difference, ...] = ()
    remains: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    first_divergence: Finding | None = None

    def to_json(self) -> str:
        """Return the report as JSON."""
        return _json(self)

    def to_markdown(self) -> str:
        """Return the report as Markdown."""
        return _markdown(self._headline(), *_entry_table(self.entries), _sections(self))

    def _repr_html_(self) -> str:
        return _html(self._headline(), *_entry_table(self.entries), _sections(self))

    def _headline(self) -> str:
        count = len(self.entries)
        proof = "without a sample" if self.max_error is None else f"largest error {_number(self.max_error)}"
        verdict = "ported" if self.ok else "ported, and the outputs differ"
        return f"{verdict}: {count} layer{'s' * (count != 1)}, {proof}"

    def __str__(self) -> str:
        return "\n".join([render(*_entry_table(self.entries)), "", self._headline(), *_lines(_sections(self))])

    __repr__ = __str__


@dataclass(frozen=True)
class VerifyReport:
    """Whether two models are the same function, layer by layer.

    Attributes:
        entries: Each layer and its twin, and the error of its output, computed from the same input.
        ok: True if all outputs agree within rounding.
        max_error: The largest error of an output of the whole models, relative to its largest entry.
        max_error_float64: The same, repeated in float64; None where that couldn't be done or wasn't needed.
        findings: Where the models part, in order of calls; ``first_divergence`` is the first.
        differences: Settings that are no weights and differ.

    Example:
        >>> import xweights as xw
        >>> print(xw.VerifyReport(entries=(), ok=True, max_error=0.0).first_divergence)
        None
    """

    entries: tuple[PortEntry, ...]
    ok: bool
    max_error: float
    outputs: dict[str, float] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    differences: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()
    max_error_float64: float | None = None

    @property
    def first_divergence(self) -> Finding | None:
        """The first layer that parts, and the likely cause; None if none does."""
        return next((one for one in self.findings if not one.rounding), None)

    def to_json(self) -> str:
        """Return the report as JSON."""
        return _json(self, first_divergence=self.first_divergence)

    def to_markdown(self) -> str:
        """Return the report as Markdown."""
        return _markdown(self._headline(), *_entry_table(self.entries), _sections(self))

    def _repr_html_(self) -> str:
        return _html(self._headline(), *_entry_table(self.entries), _sections(self))

    def _headline(self) -> str:
        verdict = "the models agree" if self.ok else "the models differ"
        again = "" if self.max_error_float64 is None else f", in float64 {_number(self.max_error_float64)}"
        return f"{verdict}: largest error {_number(self.max_error)}{again}"

    def __str__(self) -> str:
        return "\n".join([render(*_entry_table(self.entries)), "", self._headline(), *_lines(_sections(self))])

    __repr__ = __str__


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _entry_table(entries: Sequence[PortEntry], *, errors: bool = True) -> tuple[list[str], list[list[str]]]:
    head = ["source", "target", "kind", "arrays", *(["error"] if errors else []), "why"]
    rows = []
    for one in entries:
        error = [_number(one.error)] if errors else []
        rows.append([one.source, one.target, one.kind, ", ".join(one.roles), *error, one.evidence])
    return head, rows


def _sections(report: Any) -> dict[str, list[str]]:
    named = {
        "Problems": "problems",
        "Ambiguous": "ambiguous",
        "Findings": "findings",
        "Settings that differ": "differences",
        "Not ported": "remains",
        "Ignored": "ignored",
        "Notes": "notes",
    }
    found = {title: [str(one) for one in getattr(report, name, ())] for title, name in named.items()}
    return {title: lines for title, lines in found.items() if lines}


def _lines(sections: dict[str, list[str]]) -> list[str]:
    return [line for title, lines in sections.items() for line in ("", title, *(f"  - {one}" for one in lines))]


def _json(report: Any, **more: Any) -> str:
    found = asdict(report) | {"ok": report.ok}
    found |= {name: None if one is None else asdict(one) for name, one in more.items()}
    return json.dumps(_plain(found), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        # JSON has no infinity.
        return value if value - value == 0 else str(value)
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)


def _markdown(title: str, head: list[str], rows: list[list[str]], sections: dict[str, list[str]]) -> str:
    lines = [f"# {title[:1].upper()}{title[1:]}", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in rows]
    for name, items in sections.items():
        lines += ["", f"## {name}", "", *(f"- {one}" for one in items)]
    return "\n".join(lines) + "\n"


def _html(title: str, head: list[str], rows: list[list[str]], sections: dict[str, list[str]]) -> str:
    notes = [f"{name}: {one}" for name, items in sections.items() for one in items]
    return render_html(head, rows, title=f"{title[:1].upper()}{title[1:]}", notes=notes)
