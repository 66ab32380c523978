"""``verify``: check whether two models are the same function, and if not, where they diverge and why.

It writes nothing. Where a layer's output isn't its twin's, the twin's output is passed on to the next layer, so that
every layer is judged by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np

from xweights.errors import PortError
from xweights.porting.diagnose import diagnose
from xweights.porting.matching.outputs import OutputMap, compare_outputs, list_uncompared
from xweights.porting.matching.samples import SilentWatcher
from xweights.porting.port import list_differences, make_entry
from xweights.porting.progress import show_progress
from xweights.porting.reports import Finding, VerifyReport
from xweights.porting.session import Run
from xweights.porting.shards import find_sharded, verify_on_ranks


def verify(
    source: Any,
    target: Any,
    *,
    sample: Any,
    sample_target: Any = None,
    outputs: OutputMap = None,
    on_rank: int | Literal["all"] = "all",
) -> VerifyReport:
    """Compare two models layer by layer on a sample, in inference mode, without changing them.

    Args:
        source: The reference model.
        target: Its twin, in any framework.
        sample: Input of the source (array, tuple or dict).
        sample_target: Input of the target: likewise, or a function of ``sample``.
        outputs: Which output of the target corresponds to which of the source: ``{target's: source's}``, or a
            function of the target's output.
        on_rank: The rank that has the other model, if one of them lies on several ranks: as for :func:`xweights.port`.

    The report names the first layer that diverges and the likely cause. Rounding is distinguished from errors by
    repeating the comparison in float64, where the models can be copied.
    Raises TargetError, NotBuiltError, PortError (a model that can't be called with its sample, or has layers without a
    counterpart).

    Example:
        >>> import torch
        >>> import numpy as np, xweights as xw
        >>> right, wrong = (torch.nn.Sequential(torch.nn.LayerNorm(4, eps=eps)) for eps in (1e-5, 1e-3))
        >>> report = xw.verify(right, wrong, sample=np.array([[1, 2, 3, 5]], np.float32))
        >>> report.ok, report.first_divergence.layer, report.first_divergence.cause
        (False, '0', 'eps 1e-05 against 0.001')
    """
    sharded = find_sharded(source, target)
    if sharded or on_rank != "all":
        call = partial(verify, sample=sample, sample_target=sample_target, outputs=outputs)
        return verify_on_ranks(source, target, sharded, on_rank, call, sample if on_rank == "all" else None)
    with show_progress():
        report, sample_target = _compare(source, target, sample, sample_target, outputs)
        if report.ok and report.max_error < 1e-5:
            return report
        return _repeat_in_float64(report, source, target, sample, sample_target, outputs)


def _compare(source: Any, target: Any, sample: Any, sample_target: Any, outputs: OutputMap) -> tuple[VerifyReport, Any]:
    run = Run(source, target, ..., None)
    run.check_weights(writing=False)
    matching, attempt = run.match(sample, sample_target, outputs, write=False)
    got = run.call(run.target, matching.sample, SilentWatcher(), "target")
    first = run.target.porting.channels_first
    compared = compare_outputs(matching.expected, got, outputs, target_first=first)
    besides = list_uncompared(matching.expected, got, outputs)
    errors = {name: error for name, (error, _) in compared.items()}
    pairs = list(attempt.pairs.values())
    findings = [diagnose(divergence, matching, pairs) for divergence in attempt.divergences]
    agree = all(error <= limit for error, limit in compared.values())
    report = VerifyReport(
        entries=tuple(make_entry(pair) for pair in pairs),
        ok=agree and not findings,
        max_error=max(errors.values(), default=0.0),
        outputs=errors,
        findings=tuple(findings),
        differences=tuple(list_differences(matching, attempt)),
        notes=tuple(dict.fromkeys([*attempt.candidates.doubts, *([] if besides is None else [besides])])),
    )
    return report, matching.sample


def _repeat_in_float64(
    report: VerifyReport, source: Any, target: Any, sample: Any, sample_target: Any, outputs: OutputMap
) -> VerifyReport:
    """Repeat the comparison in float64: a wrong layout remains wrong, rounding vanishes."""
    run = Run(source, target, ..., None)
    try:
        doubles = [traced.porting.double(traced.model) for traced in (run.source, run.target)]
        again, _ = _compare(doubles[0], doubles[1], _to_float64(sample), _to_float64(sample_target), outputs)
    except PortError as why:
        note = f"not repeated in float64: {str(why).splitlines()[0]}"
        return replace(report, notes=(*report.notes, note))
    stays = {finding.layer for finding in again.findings}
    findings = [finding if finding.layer in stays else _mark_as_rounding(finding) for finding in report.findings]
    return replace(report, ok=again.ok, findings=tuple(findings), max_error_float64=again.max_error, notes=report.notes)


def _mark_as_rounding(finding: Finding) -> Finding:
    return replace(finding, rounding=True, cause=f"rounding (gone in float64): {finding.cause}", word="rounding")


def _to_float64(sample: Any) -> Any:
    if isinstance(sample, Mapping):
        return {name: _to_float64(part) for name, part in sample.items()}
    if isinstance(sample, (tuple, list)):
        return type(sample)(_to_float64(part) for part in sample)
    array = np.asarray(sample)
    return array.astype(np.float64) if array.dtype.kind == "f" else array
