"""What was folded in a port: as text for its report, and as the way out of a refusal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from xweights.core.parameter import Parameter
from xweights.errors import PortError, XweightsError
from xweights.porting.matching.matching import Matching
from xweights.porting.matching.pairs import Pair
from xweights.porting.matching.scaling import SCALED
from xweights.porting.refusal import name_some
from xweights.porting.reports import PortReport

# The variances of norms, as the frameworks and their packages name them.
_VARIANCES = ("moving_variance", "running_var", "variance")
_MOST_LINES = 40


def describe_folds(matching: Matching, pairs: Sequence[Pair]) -> tuple[str, ...]:
    """Return a sentence for each fold that was used."""
    if matching.folding is None:
        return ()
    used = [matching.folding.folds[id(pair.source)] for pair in pairs if id(pair.source) in matching.folding.folds]
    return tuple(dict.fromkeys(fold.text for fold in used if fold.text))


def suggest_fold(
    refusal: PortError,
    attempt: Callable[..., tuple[PortReport, Any, Any]],
    attributes: str,
    models: Sequence[Sequence[Parameter]],
) -> PortError | None:
    """Return the refusal with ``fold=True`` as its fix if the port was tried so and is right, else None.

    ``attempt`` ports, proves and puts everything back. It is called only if the models have unequal numbers of norms,
    a bias has no place, or one model scales its input.
    """
    counts = [sum(p.role.endswith(_VARIANCES) for p in parameters) for parameters in models]
    text = str(refusal)
    norms = any(counts) and (counts[0] != counts[1] or " bias" in text)
    if not norms and SCALED not in text:
        return None
    try:
        report, _, _ = attempt(attributes="fix" if attributes == "check" else attributes, fold=True, keep=False)
    except XweightsError:
        return None
    if not report.folded or not report.ok:
        return None
    more = ', attributes="fix"' if any(difference.fixed for difference in report.differences) else ""
    headline, *lines = text.splitlines()
    said = "has norms or biases folded that the other has apart" if norms else "scales its input, and the other doesn't"
    cause = f"  - one model {said}: {name_some(report.folded, 1)}"
    fix = f"Fix: fold=True{more} (it was tried, and the two models then agree)"
    found = [line for line in lines if not line.startswith("Fix: ")][: _MOST_LINES - 3]
    return type(refusal)("\n".join([headline, cause, *found, fix]))
