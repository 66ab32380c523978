"""Result types of `handoff` and `verify_handoff`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from xweights.core.tables import render, render_text_html
from xweights.optimizers.protocol import Part, Training
from xweights.porting.reports import PortReport


@dataclass(frozen=True, eq=False)
class HandoffReport:
    """The result of a hand-off: what it did, part by part, and the side that training continues with.

    Attributes:
        training: The target side: its model, its optimizer, and what else is stepped (``scheduler``, ``ema``; None
            where nothing is).
        grade: The grade that was requested.
        parts: Each part of the experiment, the grade that it got, and why: "stock" (the framework's own class continues
            by itself), "exact (hook)", "exact (shim)", "close", or "impossible".
        port: The report on the port of the weights.
        updates: How many updates the optimizer has made.
        notes: Further remarks.
        held: The holds and freezes of the source that are held on the target now; :meth:`release` ends them, too.

    Example:
        >>> import torch, xweights as xw
        >>> a, b = (torch.nn.Linear(2, 1) for _ in range(2))
        >>> report = xw.handoff((a, torch.optim.Adam(a.parameters())), (b, None))
        >>> type(report.optimizer).__name__
        'Adam'
    """

    training: Training
    grade: str
    parts: tuple[Part, ...]
    port: PortReport | None = None
    updates: int = 0
    notes: tuple[str, ...] = ()
    held: tuple[Any, ...] = field(default=(), repr=False)
    _release: tuple[Callable[[], None], ...] = field(default=(), repr=False)

    @property
    def optimizer(self) -> Any:
        """The optimizer that continues."""
        return self.training.optimizer

    @property
    def exact(self) -> bool:
        """True if every part continues exactly as it would have on the source side."""
        return self.grade != "weights" and all(part.grade not in ("impossible", "close") for part in self.parts)

    def release(self) -> None:
        """Detach everything that was attached; the optimizer and the layers continue as their framework has them."""
        for release in self._release:
            release()

    def to_json(self) -> str:
        """Return the report as JSON."""
        port = None if self.port is None else json.loads(self.port.to_json())
        parts = [asdict(part) for part in self.parts]
        shown = {"grade": self.grade, "exact": self.exact, "updates": self.updates, "parts": parts,
                 "notes": list(self.notes), "port": port}  # fmt: skip
        return json.dumps(shown, indent=2, ensure_ascii=False, allow_nan=False)

    def to_markdown(self) -> str:
        """Return the report as Markdown."""
        lines = [f"# {self._headline()}", "", *_markdown(*self._table())]
        lines += [f"- {note}" for note in self.notes]
        return "\n".join(lines) + "\n"

    def _table(self) -> tuple[list[str], list[list[str]]]:
        return ["part", "grade", "why"], [[part.name, part.grade, part.why] for part in self.parts]

    def _headline(self) -> str:
        if self.grade == "weights":
            return "ONLY THE WEIGHTS WERE HANDED OVER: training does not go on as it was"
        verdict = "exactly" if self.exact else "not in every part exactly"
        return f"Handed over after {self.updates} updates, {verdict}"

    def __str__(self) -> str:
        lines = [render(*self._table()), "", self._headline()]
        lines += [f"  - {note}" for note in self.notes]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return render_text_html(str(self))

    __repr__ = __str__


# How many times the forwards' difference the weights may differ by, where a framework keeps constants in float32.
COARSE = 1_000


@dataclass(frozen=True)
class Row:
    """One parameter after training on both sides: the largest difference, relative to its largest entry."""

    name: str
    difference: float
    floor: float
    noise: bool = False


@dataclass(frozen=True)
class Trained:
    """Both sides after some steps in one dtype.

    ``loss`` is the largest relative difference of a loss, ``loss_floor`` its floor; ``forward`` is the difference of
    the first loss, which comes before any update.
    """

    dtype: str
    rows: tuple[Row, ...]
    loss: float
    loss_floor: float
    forward: float = 0.0

    @property
    def coarse(self) -> bool:
        """True if the two forwards differ in float64 by more than rounding, before anything is trained."""
        return self.dtype == "float64" and self.forward > 1e-13

    @property
    def difference(self) -> float:
        """The largest difference of a parameter that has a true gradient."""
        return max((row.difference for row in self.rows if not row.noise), default=0.0)

    @property
    def floor(self) -> float:
        """The largest difference of one framework from itself."""
        return max((row.floor for row in self.rows if not row.noise), default=0.0)


@dataclass(frozen=True)
class HandoffProof:
    """The difference of both sides of a hand-off after further training, against the rounding floor.

    Attributes:
        steps: How many steps both sides made.
        trained: For each dtype: the difference and floor of every parameter, and of the losses.
        limit: How many times the floor a difference may be.
        notes: Measurements that couldn't be made, and why.

    Example:
        >>> import xweights as xw
        >>> xw.HandoffProof(steps=0, trained=()).ok  # nothing was trained, so nothing is proved
        False
    """

    steps: int
    trained: tuple[Trained, ...]
    limit: float = 10.0
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True if no difference is more than ``limit`` times the floor, nor any in float64 more than 1e-12."""
        return bool(self.trained) and all(self._holds(trained) for trained in self.trained)

    def _holds(self, trained: Trained) -> bool:
        # The floor is 0 where a rule drops the last bits; a difference of two last bits is none.
        least = {"float64": 4.4e-16, "float32": 2.4e-7}.get(trained.dtype, 1e-2)
        if trained.coarse:
            return trained.difference <= COARSE * trained.forward
        if trained.dtype == "float64" and trained.difference > 1e-12:
            return False
        return trained.difference <= self.limit * max(trained.floor, least)

    def to_json(self) -> str:
        """Return the proof as JSON."""
        return json.dumps({**asdict(self), "ok": self.ok}, indent=2)

    def to_markdown(self) -> str:
        """Return the proof as Markdown."""
        return "\n".join([f"# {self._headline()}", "", *_markdown(*self._table())]) + "\n"

    def _headline(self) -> str:
        return f"After {self.steps} steps: {'on the rounding floor' if self.ok else 'NOT on the rounding floor'}"

    def _table(self) -> tuple[list[str], list[list[str]]]:
        rows = []
        for trained in self.trained:
            for row in sorted(trained.rows, key=lambda row: -row.difference):
                remark = "no true gradient: its updates are noise" if row.noise else ""
                rows.append([trained.dtype, row.name, f"{row.difference:.1e}", f"{row.floor:.1e}", remark])
            rows.append([trained.dtype, "(loss)", f"{trained.loss:.1e}", f"{trained.loss_floor:.1e}", ""])
        return ["dtype", "parameter", "difference", "floor", "remark"], rows

    def __str__(self) -> str:
        coarse = [
            f"in {trained.dtype} the losses differ by {trained.forward:.1e} before any update: a framework keeps "
            f"constants in float32 (a scale of attention, an epsilon); {COARSE:,} times that was allowed"
            for trained in self.trained
            if trained.coarse
        ]
        notes = (f"  - {note}" for note in (*coarse, *self.notes))
        return "\n".join([render(*self._table()), "", self._headline(), *notes])

    def _repr_html_(self) -> str:
        return render_text_html(str(self))

    __repr__ = __str__


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return [*lines, *(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in rows), ""]
