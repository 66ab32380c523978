"""A table of the promises that a backend keeps, by verb and dtype."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from xweights.edit.read import parameters
from xweights.testing import promises

DTYPES = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Conformance:
    """Which promises a backend keeps; prints as a table, with the errors below.

    Attributes:
        columns: The dtypes that were tried, or the target's own.
        results: ``{promise or verb: [None if kept, else what went wrong; one for each column]}``.
        refused: Columns that the factory can't make, with the reason.

    Example:
        >>> import numpy as np
        >>> from xweights.testing import check_conformance
        >>> check_conformance(lambda dtype: {"kernel": np.ones((4, 3), dtype), "bias": np.zeros(3, dtype)}).ok
        True
    """

    columns: tuple[str, ...]
    results: dict[str, list[str | None]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """True if every promise is kept in every column, and there is one."""
        return bool(self.columns) and not any(any(row) for row in self.results.values())

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return {"ok": self.ok, "columns": list(self.columns), "results": self.results, "refused": self.refused}

    def __str__(self) -> str:
        width = max(map(len, self.results), default=0)
        lines = [" " * width + "".join(f"  {column:>9}" for column in self.columns)]
        for name, row in self.results.items():
            lines.append(name.ljust(width) + "".join(f"  {'kept' if error is None else 'BROKEN':>9}" for error in row))
        lines += [f"{column} was not tried: {reason}" for column, reason in self.refused.items()]
        for name, row in self.results.items():
            for column, error in zip(self.columns, row, strict=True):
                if error is not None:
                    lines += ["", f"{name} ({column})", *(f"  {line}" for line in error.splitlines()[:12])]
        count = sum(error is not None for row in self.results.values() for error in row)
        kept = "every promise is kept" if self.columns else "nothing was tried, and no promise is known to be kept"
        lines.append(f"\n{count} promises are broken" if count else f"\n{kept}")
        return "\n".join(lines)


def check_conformance(make_target: Callable[..., Any], dtypes: Sequence[str] = DTYPES) -> Conformance:
    """Return which promises a backend keeps: each of :data:`CHECKS`, and each exact verb, applied and bound.

    Args:
        make_target: Returns a fresh target each time, with the same names and shapes. If it takes an argument, it is
            called with each dtype; else the target's own dtypes are the only column.
        dtypes: Names of the dtypes that are tried.

    Example:
        >>> import numpy as np
        >>> from xweights.testing import check_conformance
        >>> check_conformance(lambda: {"kernel": np.ones((4, 3))}).columns
        ('float64',)
    """
    made: dict[str, Callable[[], Any]] = {}
    refused: dict[str, str] = {}
    if _takes_dtype(make_target):
        for name in dtypes:
            dtype = _dtype(name)
            try:
                make_target(dtype)
            except Exception as wrong:  # noqa: BLE001 - a framework without this dtype says so in its own way
                refused[name] = f"{type(wrong).__name__}: {wrong}".splitlines()[0]
            else:
                made[name] = partial(make_target, dtype)
    else:
        found = sorted({p.dtype.name for p in parameters(make_target())})
        made["/".join(found) or "no arrays"] = make_target
    report = Conformance(tuple(made), refused=refused)
    for promise, check in promises.CHECKS.items():
        if check is not promises.exact_rules_give_the_bits_of_numpy:
            words = promise.replace("_", " ")
            report.results[words] = [_broken(check, make) for make in made.values()]
    for bound in (False, True):
        for make in made.values():
            for rule in promises.exact_rules(parameters(make())):
                row = report.results.setdefault(f"{'bound ' * bound}{rule!r}", [])
                row.append(_broken(promises.gives_the_bits_of_numpy, make, rule, bound))
    return report


def _dtype(name: str) -> np.dtype[Any]:
    import ml_dtypes  # here: it gives NumPy the name bfloat16, and takes as long as the rest of this module

    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _takes_dtype(make_target: Callable[..., Any]) -> bool:
    try:
        inspect.signature(make_target).bind(np.dtype(np.float32))
    except TypeError:
        return False
    return True


def _broken(check: Callable[..., None], *arguments: Any) -> str | None:
    try:
        check(*arguments)
    except Exception as wrong:  # noqa: BLE001 - whatever a backend raises is a broken promise
        return f"{type(wrong).__name__}: {wrong}"
    return None
