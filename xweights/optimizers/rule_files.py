"""What is attached to training as JSON and arrays, and back; of what a file names only the known rules are made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.errors import HandoffError, Problems
from xweights.optimizers.attached import Attached, AveragedWeights, Factors, HeldRule
from xweights.rules.constraints import Keep, Pattern, SumToOne, Symmetric
from xweights.rules.elementwise import Add, Clip, Fill, Mask, NonNegative, Scale
from xweights.rules.norms import ClipNorm, MaxNorm, SpectralNorm, UnitNorm
from xweights.rules.pruning import Prune
from xweights.rules.tying import Tied
from xweights.training.sparsity_schedule import Constant, OneShot, Polynomial

_RULES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        *(Add, Clip, ClipNorm, Fill, Keep, Mask, MaxNorm, NonNegative, Pattern, Prune, Scale, SpectralNorm),
        *(SumToOne, Symmetric, Tied, UnitNorm),
    )
}
_SCHEDULES: dict[str, Any] = {kind.__name__: kind for kind in (OneShot, Constant, Polynomial)}


class _UnsavableError(Exception):
    """A value that a file can't hold."""


def to_flat(attached: Sequence[Attached]) -> tuple[dict[str, Array], list[Any]]:
    """Return (arrays, JSON) of what is attached; raise HandoffError for functions and classes of the user's own."""
    arrays: dict[str, Array] = {}
    rows = []
    problems = Problems("this training state can't be saved, and nothing was written")
    for number, record in enumerate(attached):
        try:
            rows.append(_Writer(arrays, f"{number}/").row(record))
        except _UnsavableError as wrong:
            problems.add(HandoffError, f"{record}: {wrong}", fix="release it, and attach it again after loading")
    problems.check()
    return arrays, rows


def from_flat(arrays: Mapping[str, Array], rows: Sequence[Any]) -> tuple[Attached, ...]:
    """Return what :func:`to_flat` flattened; raise HandoffError for anything else."""
    try:
        return tuple(_Reader(arrays, f"{number}/").record(row) for number, row in enumerate(rows))
    except HandoffError:
        raise
    except Exception as wrong:  # a rule checks its own arguments, each with an error of its own
        first = str(wrong).partition("\n")[0]
        raise HandoffError(f"this training state is damaged: {type(wrong).__name__}: {first}") from wrong


class _Writer:
    def __init__(self, arrays: dict[str, Array], prefix: str) -> None:
        self.arrays, self.prefix = arrays, prefix

    def row(self, record: Attached) -> dict[str, Any]:
        if isinstance(record, Factors):
            return {"kind": "factors", "factors": dict(record.factors)}
        if isinstance(record, AveragedWeights):
            if callable(record.decay):
                raise _UnsavableError("its decay= is a function")
            self._keep("values", record.values)
            return {
                "kind": "averages", "names": list(record.values), "decay": record.decay, "every": record.every,
                "updates": record.updates, "steps": record.steps, "manual": record.manual,
            }  # fmt: skip
        # Some formats have no array of bools.
        self._keep("entries", {name: mask.astype(np.uint8) for name, mask in record.entries.items()})
        schedule = None if record.schedule is None else self._fields(record.schedule, _SCHEDULES, "")
        return {
            "kind": "hold", "names": list(record.names), "rule": self._fields(record.rule, _RULES, "rule/"),
            "frozen": record.frozen, "entries": list(record.entries), "schedule": schedule, "step": record.step,
            "inference": record.inference,
        }  # fmt: skip

    def _keep(self, what: str, arrays: Mapping[str, Array]) -> None:
        self.arrays |= {f"{self.prefix}{what}/{name}": value for name, value in arrays.items()}

    def _fields(self, value: Any, known: Mapping[str, Any], key: str) -> dict[str, Any]:
        name = type(value).__name__
        if known.get(name) is not type(value):
            raise _UnsavableError(f"{name} is no class of xweights whose values a file could hold")
        values = {f.name: getattr(value, f.name) for f in fields(value)}
        return {"type": name, **{name: self._value(value, f"{key}{name}") for name, value in values.items()}}

    def _value(self, value: Any, key: str) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (np.ndarray, np.generic)):
            self.arrays[self.prefix + key] = np.asarray(value)
            return {"array": key}
        if isinstance(value, (tuple, list)):
            return {"tuple": [self._value(part, f"{key}/{index}") for index, part in enumerate(value)]}
        if isinstance(value, slice):
            return {"slice": [value.start, value.stop, value.step]}
        if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
            return {"mapping": {name: self._value(part, f"{key}/{name}") for name, part in value.items()}}
        raise _UnsavableError(f"{key.rpartition('/')[2]}= is a {type(value).__name__}")


class _Reader:
    def __init__(self, arrays: Mapping[str, Array], prefix: str) -> None:
        self.arrays, self.prefix = arrays, prefix

    def record(self, row: Any) -> Attached:
        if row["kind"] == "factors":
            return Factors({str(name): float(factor) for name, factor in row["factors"].items()})
        names = tuple(map(str, row["names"]))
        if row["kind"] == "averages":
            decay = row["decay"] if row["decay"] == "swa" else float(row["decay"])
            counts = (_whole(row["every"]), _whole(row["updates"]), _whole(row["steps"]))
            return AveragedWeights(self._arrays("values", names), decay, *counts, bool(row["manual"]))
        entries = {name: mask.astype(np.bool_) for name, mask in self._arrays("entries", row["entries"]).items()}
        rule = self._made(row["rule"], _RULES)
        schedule = None if row["schedule"] is None else self._made(row["schedule"], _SCHEDULES)
        complete = set(entries) == set(names)
        if not complete and (entries or isinstance(rule, (Mask, Prune))):
            raise ValueError(f"masks of {sorted(entries)} don't belong to {sorted(names)}")
        if isinstance(rule, Prune) != (schedule is not None):
            raise ValueError("a schedule belongs to pruning, and pruning to a schedule")
        step, inference = _whole(row["step"]), bool(row["inference"])
        return HeldRule(names, rule, bool(row["frozen"]), entries, schedule, step, inference)

    def _arrays(self, what: str, names: Sequence[str]) -> dict[str, Array]:
        return {name: self.arrays[f"{self.prefix}{what}/{name}"] for name in names}

    def _made(self, row: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
        if row["type"] not in known:
            raise HandoffError(f"this version knows no such rule or schedule\ngot: {json.dumps(row['type'])[:80]}")
        return known[row["type"]](**{name: self._value(value) for name, value in row.items() if name != "type"})

    def _value(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "array":
            return self.arrays[self.prefix + content]
        if kind == "tuple":
            return tuple(self._value(part) for part in content)
        if kind == "slice":
            return slice(*content)
        return {name: self._value(part) for name, part in content.items()}


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no whole number >= 0")
    return value
