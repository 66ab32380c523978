"""Say why a port isn't right: the cause first, equal causes once and counted, what follows from them not at all."""

from __future__ import annotations

import re
from collections.abc import Sequence

from xweights.errors import PortError, Problems
from xweights.porting.reports import Difference, Finding
from xweights.porting.units import LayerUnit

# Settings that say nothing about which layer it is: a layer that has another one can still be the twin.
SETTABLE = frozenset({"eps", "momentum", "slope", "alpha", "approximate", "activation", "recurrent_activation"})
# As many layers with the same cause are named.
_NAMED = 3
FIX = 'attributes="fix" to set it on the target, or attributes="ignore"'
CANT = 'make the target with it (it can\'t be set on a layer that exists), or attributes="ignore"'
FAILED = "make the target otherwise: with this set it can't be called, so this isn't all that differs"
_PATH = re.compile(r"'[^']*'")


def refuse_settings(problems: Problems, differing: Sequence[Difference], fix: str = FIX) -> None:
    """Add settings that differ, equal ones as one problem, and what to do about them."""
    groups: dict[tuple[str, str, str], list[Difference]] = {}
    for difference in differing:
        groups.setdefault((difference.name, repr(difference.expected), repr(difference.got)), []).append(difference)
    for (name, _, _), equal in groups.items():
        first = equal[0]
        lines = [
            f"{name} differs, which is no weight" + (f", of {len(equal)} layers" if len(equal) > 1 else ""),
            f"{first.target!r}: {first.got}",
            f"{first.source!r}: {first.expected}",
        ]
        if len(equal) > 1:
            lines.append(f"likewise: {name_some([difference.target for difference in equal[1:]])}")
        problems.add(PortError, "\n".join(lines), fix=fix)


def refuse_losses(problems: Problems, lost: Sequence[str]) -> None:
    """Add what has no place in the target, equal losses as one problem."""
    groups: dict[str, list[str]] = {}
    for text in dict.fromkeys(lost):
        groups.setdefault(_PATH.sub("''", text), []).append(text)
    for equal in groups.values():
        problems.add(PortError, _count(equal[0], [_PATH.findall(text)[-1] for text in equal[1:] if "'" in text]))


def refuse_unpaired(problems: Problems, units: Sequence[LayerUnit]) -> None:
    """Add the layers of the target that have no twin, as one problem."""
    if not units:
        return
    paths = [repr(unit.path) for unit in units]
    text = f"{paths[0]} of the target has no twin in the source, or isn't called with this sample"
    problems.add(PortError, _count(text, paths[1:]), fix="where= to port a part of the target")


def refuse_findings(problems: Problems, findings: Sequence[Finding]) -> None:
    """Add the first divergence in the order of execution, and those of the same cause as a number."""
    if not findings:
        return
    first, *others = findings
    equal = [finding for finding in others if _is_like(finding, first)]
    following = [finding.layer for finding in others if finding not in equal]
    problems.add(PortError, _count(str(first), [repr(finding.layer) for finding in equal]))
    if following:
        problems.add(PortError, f"after it {len(following)} more diverge: {name_some(following)}")


def name_some(names: Sequence[str], most: int = _NAMED) -> str:
    """Return the first names, and the number of the others."""
    shown = list(dict.fromkeys(names))
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def list_hard(differing: Sequence[Difference]) -> list[Difference]:
    """Return the settings that make another layer of it (strides, groups), which no user would call a detail."""
    return [difference for difference in differing if difference.name not in SETTABLE]


def _is_like(finding: Finding, first: Finding) -> bool:
    return finding.word == first.word and finding.word not in ("input", "outputs", "unknown")


def _count(text: str, others: Sequence[str]) -> str:
    return f"{text}\nlikewise: {name_some(others)}" if others else text
