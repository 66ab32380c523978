"""Plans and reports of ports: the results of `plan_port`, `port` and `verify`.

A report prints as a table and converts to JSON and Markdown; it contains no model and no array.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from xweights.core.tables import render, render_html


@dataclass(frozen=True)
class PortEntry:
    """One layer, or part of one, and its twin. ``error``: the relative error of its output; None if it wasn't seen."""

    source: str
    target: str
    kind: str
    roles: tuple[str, ...]
    evidence: str
    error: float | None = None


@dataclass(frozen=True)
class Difference:
    """A setting other than a weight that differs. ``fixed``: the target was given the source's value."""

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
    """A divergence of two models. ``layer`` is the target's, ``twin`` the source's; ``rounding``: gone in float64."""

    layer: str
    twin: str
    cause: str
    error: float
    place: str = "output"
    word: str = "unknown"
    rounding: bool = False

    def __str__(self) -> str:
        return f"{self.layer!r}: {self.cause} (error {_format_error(self.error)})"


@dataclass(frozen=True)
class PortPlan:
    """The plan of a port, made without changing anything.

    Attributes:
        entries: The pairs of layers, with the evidence for each.
        ambiguous: Questions that the structure alone doesn't settle, and how to settle them.
        problems: Reasons why the port is impossible.
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
        return _to_json(self)

    def to_markdown(self) -> str:
        """Return the plan as Markdown."""
        return _to_markdown("Plan of a port", *_tabulate(self.entries, errors=False), _list_sections(self))

    def _repr_html_(self) -> str:
        return _to_html("Plan of a port", *_tabulate(self.entries, errors=False), _list_sections(self))

    def __str__(self) -> str:
        return "\n".join([render(*_tabulate(self.entries, errors=False)), *_format_sections(_list_sections(self))])

    __repr__ = __str__


@dataclass(frozen=True)
class PortReport:
    """The result of a port, and its proof.

    Attributes:
        entries: The pairs of layers, with the evidence for each and the error of its output, computed from the same
            input.
        ok: True if the outputs agree, or, for a port without a sample, if there was no choice.
        max_error: The largest error of an output, relative to its largest entry; None without a sample.
        outputs: The error of each output.
        differences: Settings other than weights that differ.
        remains: Parameters of the target that weren't ported.
        ignored: Arrays that have no counterpart by their nature (counters, seeds).
        notes: Further remarks.
        first_divergence: The first divergence of the models, with ``attributes="ignore"``.
        folded: What was folded, with ``fold=True``: these arrays are close to the source's function, and not its bits.
        unused: Parameters of the source that went nowhere.

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
    folded: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the report as JSON."""
        return _to_json(self)

    def to_markdown(self) -> str:
        """Return the report as Markdown."""
        return _to_markdown(self._headline(), *_tabulate(self.entries), _list_sections(self))

    def _repr_html_(self) -> str:
        return _to_html(self._headline(), *_tabulate(self.entries), _list_sections(self))

    def _headline(self) -> str:
        count = len(self.entries)
        proof = "without a sample" if self.max_error is None else f"largest error {_format_error(self.max_error)}"
        verdict = "ported" if self.ok else "ported, and the outputs differ"
        return f"{verdict}: {count} layer{'s' * (count != 1)}, {proof}"

    def __str__(self) -> str:
        return "\n".join(
            [render(*_tabulate(self.entries)), "", self._headline(), *_format_sections(_list_sections(self))]
        )

    __repr__ = __str__


@dataclass(frozen=True)
class VerifyReport:
    """The result of comparing two models layer by layer.

    Attributes:
        entries: The pairs of layers, with the error of each layer's output, computed from the same input.
        ok: True if all outputs agree within rounding.
        max_error: The largest error of an output of the whole models, relative to its largest entry.
        max_error_float64: The same, repeated in float64; None if that was impossible or not needed.
        findings: The divergences of the models, in order of calls; ``first_divergence`` is the first.
        differences: Settings other than weights that differ.

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
        """The first layer that diverges, and the likely cause; None if none does."""
        return next((finding for finding in self.findings if not finding.rounding), None)

    def to_json(self) -> str:
        """Return the report as JSON."""
        return _to_json(self, first_divergence=self.first_divergence)

    def to_markdown(self) -> str:
        """Return the report as Markdown."""
        return _to_markdown(self._headline(), *_tabulate(self.entries), _list_sections(self))

    def _repr_html_(self) -> str:
        return _to_html(self._headline(), *_tabulate(self.entries), _list_sections(self))

    def _headline(self) -> str:
        verdict = "the models agree" if self.ok else "the models differ"
        again = "" if self.max_error_float64 is None else f", in float64 {_format_error(self.max_error_float64)}"
        return f"{verdict}: largest error {_format_error(self.max_error)}{again}"

    def __str__(self) -> str:
        return "\n".join(
            [render(*_tabulate(self.entries)), "", self._headline(), *_format_sections(_list_sections(self))]
        )

    __repr__ = __str__


def _format_error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _tabulate(entries: Sequence[PortEntry], *, errors: bool = True) -> tuple[list[str], list[list[str]]]:
    head = ["source", "target", "kind", "arrays", *(["error"] if errors else []), "why"]
    rows = []
    for entry in entries:
        error = [_format_error(entry.error)] if errors else []
        rows.append([entry.source, entry.target, entry.kind, ", ".join(entry.roles), *error, entry.evidence])
    return head, rows


def _list_sections(report: Any) -> dict[str, list[str]]:
    fields = {
        "Problems": "problems",
        "Ambiguous": "ambiguous",
        "Findings": "findings",
        "Settings that differ": "differences",
        "Folded (close, not exact)": "folded",
        "Not ported": "remains",
        "Not used of the source": "unused",
        "Ignored": "ignored",
        "Notes": "notes",
    }
    sections = {title: [str(item) for item in getattr(report, name, ())] for title, name in fields.items()}
    return {title: lines for title, lines in sections.items() if lines}


def _format_sections(sections: dict[str, list[str]]) -> list[str]:
    return [line for title, lines in sections.items() for line in ("", title, *(f"  - {item}" for item in lines))]


def _to_json(report: Any, **more: Any) -> str:
    content = asdict(report) | {"ok": report.ok}
    content |= {name: None if finding is None else asdict(finding) for name, finding in more.items()}
    return json.dumps(_to_plain(content), indent=2, ensure_ascii=False, allow_nan=False)


def _to_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain(item) for item in value]
    if isinstance(value, float):
        # JSON has no infinity.
        return value if value - value == 0 else str(value)
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)


def _to_markdown(title: str, head: list[str], rows: list[list[str]], sections: dict[str, list[str]]) -> str:
    lines = [f"# {title[:1].upper()}{title[1:]}", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in rows]
    for name, items in sections.items():
        lines += ["", f"## {name}", "", *(f"- {item}" for item in items)]
    return "\n".join(lines) + "\n"


def _to_html(title: str, head: list[str], rows: list[list[str]], sections: dict[str, list[str]]) -> str:
    notes = [f"{name}: {item}" for name, items in sections.items() for item in items]
    return render_html(head, rows, title=f"{title[:1].upper()}{title[1:]}", notes=notes)
