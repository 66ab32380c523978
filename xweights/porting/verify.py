"""``verify``: whether two models are the same function, and if not, where they part and why.

It writes nothing: where a layer's output isn't its twin's, the twin's goes on to the next layer, so that every layer
is judged by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from xweights.errors import PortError
from xweights.porting.diagnose import finding_of
from xweights.porting.matching.outputs import OutputMap, compare_outputs
from xweights.porting.matching.samples import Silent
from xweights.porting.port import entry_of, settings_of
from xweights.porting.reports import Finding, VerifyReport
from xweights.porting.session import Run


def verify(
    source: Any, target: Any, *, sample: Any, sample_target: Any = None, outputs: OutputMap = None
) -> VerifyReport:
    """Compare two models layer by layer on a sample, in inference mode; both stay as they are.

    Args:
        source: The model that is right.
        target: Its twin, in any framework.
        sample: What the source is called with (array, tuple or dict).
        sample_target: What the target is called with: likewise, or a function of ``sample``.
        outputs: Which output of the target is which of the source: ``{target's: source's}``, or a function of the
            target's output.

    The report names the first layer that parts and the likely cause. What differs by rounding only is told from an
    error by repeating the comparison in float64, where the models can be copied.
    Raises TargetError, NotBuiltError, PortError (a model that can't be called with its sample, or has layers that have
    no counterpart).

    Example:
        >>> import torch
        >>> import numpy as np, xweights as xw
        >>> right, wrong = (torch.nn.Sequential(torch.nn.LayerNorm(4, eps=eps)) for eps in (1e-5, 1e-3))
        >>> report = xw.verify(right, wrong, sample=np.array([[1, 2, 3, 5]], np.float32))
        >>> report.ok, report.first_divergence.layer, report.first_divergence.cause
        (False, '0', 'eps 1e-05 against 0.001')
    """
    report, sample_target = _compared(source, target, sample, sample_target, outputs)
    if report.ok and report.max_error < 1e-5:
        return report
    return _repeated(report, source, target, sample, sample_target, outputs)


def _compared(
    source: Any, target: Any, sample: Any, sample_target: Any, outputs: OutputMap
) -> tuple[VerifyReport, Any]:
    run = Run(source, target, ..., None)
    run.check_weights(writing=False)
    matching, attempt = run.matching(sample, sample_target, outputs, write=False)
    made = run.called(run.target, matching.sample, Silent(), "target")
    first = run.target.porting.channels_first
    compared = compare_outputs(matching.expected, made, outputs, target_first=first)
    errors = {name: error for name, (error, _) in compared.items()}
    pairs = list(attempt.pairs.values())
    findings = [finding_of(one, matching, pairs) for one in attempt.divergences]
    agree = all(error <= limit for error, limit in compared.values())
    report = VerifyReport(
        entries=tuple(entry_of(pair) for pair in pairs),
        ok=agree and not findings,
        max_error=max(errors.values(), default=0.0),
        outputs=errors,
        findings=tuple(findings),
        differences=tuple(settings_of(matching, attempt)),
        notes=tuple(dict.fromkeys(attempt.look.doubts)),
    )
    return report, matching.sample


def _repeated(
    report: VerifyReport, source: Any, target: Any, sample: Any, sample_target: Any, outputs: OutputMap
) -> VerifyReport:
    """Repeat in float64: a wrong layout stays, rounding goes."""
    run = Run(source, target, ..., None)
    try:
        doubles = [side.porting.double(side.model) for side in (run.source, run.target)]
        again, _ = _compared(doubles[0], doubles[1], _wide(sample), _wide(sample_target), outputs)
    except PortError as why:
        note = f"not repeated in float64: {str(why).splitlines()[0]}"
        return replace(report, notes=(*report.notes, note))
    stays = {one.layer for one in again.findings}
    findings = [one if one.layer in stays else _rounded(one) for one in report.findings]
    return replace(report, ok=again.ok, findings=tuple(findings), max_error_float64=again.max_error, notes=report.notes)


def _rounded(finding: Finding) -> Finding:
    return replace(finding, rounding=True, cause=f"rounding (gone in float64): {finding.cause}", word="rounding")


def _wide(sample: Any) -> Any:
    if isinstance(sample, Mapping):
        return {name: _wide(one) for name, one in sample.items()}
    if isinstance(sample, (tuple, list)):
        return type(sample)(_wide(one) for one in sample)
    array = np.asarray(sample)
    return array.astype(np.float64) if array.dtype.kind == "f" else array
