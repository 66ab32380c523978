"""Factors of adapters, which the values of a plain model don't have."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from xweights.core.parameter import Parameter
from xweights.edit.find_values import FoundValues
from xweights.errors import Problems, SelectionError

_IDLE = "a part of an adapter that changes no weight"


def find_idle_factors(everything: Sequence[Parameter]) -> dict[Hashable, Parameter]:
    """Return the parts of a target's adapters, by identity, if none of them changes a weight; {} if one does.

    A plain model's values then say everything: with them written, the layers compute with exactly these.
    """
    parts = {p.identity(): p for p in everything if p.is_part()}
    return {} if not parts or any(_is_changed(p) for p in everything) else parts


def _is_changed(p: Parameter) -> bool:
    """Return whether a layer computes with other values than the parameter's own."""
    if p.is_part() or p.edit_refusal() is None:
        return False
    in_use = p.effective()
    # Compared as numbers: where nothing is added to -0.0 it is 0.0. Under mixed precision all are rounded.
    return in_use is None or not np.array_equal(p.read().astype(in_use.dtype), in_use)


def refuse_missing_factors(
    found: FoundValues,
    chosen: Sequence[Parameter],
    idle: Mapping[Hashable, Parameter],
    problems: Problems,
    *,
    strict: bool,
) -> None:
    """List idle parts that get no value in the report; explain what to do about others, which are problems already."""
    covered = {pair.parameter.identity() for pair in found.pairs}
    parts = [p for p in chosen if p.is_part() and p.identity() not in covered]
    if idle:
        found.missing = {**found.missing, **{p.name: _IDLE for p in parts}}
    elif strict and parts and problems:
        problems.add(
            SelectionError,
            f"{len(parts):,} of these are parts of adapters, such as {parts[0].name!r}, and change other weights:\n"
            "the layers wouldn't compute with the values that were passed",
            fix="strict=False writes the weights below the adapters, which stay in use on top of them;\n"
            "     or first xweights.merge_lora(model), or xweights.fill(model, 0.0, where=...) of the second factors",
        )
