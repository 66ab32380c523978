"""Tell the other ranks of a call that failed before they voted: they would wait for this one in their vote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from xweights.core.agreement import Vote, is_voted
from xweights.core.parameter import Parameter, is_shared
from xweights.core.targets import open_target
from xweights.errors import XweightsError

READING = frozenset({"checksum", "diff", "equal", "get_params", "save", "snapshot", "stats", "transaction"})
WRITING = frozenset(
    {
        "add", "apply", "average", "bind", "clip", "clip_norm", "fill", "freeze", "hold", "init", "mask", "max_norm",
        "multiply_lr", "noise", "non_negative", "prune", "scale", "set_entries", "set_params", "spectral_norm",
        "unit_norm",
    }
)  # fmt: skip


def tell_ranks(name: str, arguments: Sequence[Any], keywords: Mapping[str, Any], error: Exception) -> None:
    """Cast the vote that a public call didn't get to; raise what all ranks raise if others have something to say."""
    if name not in READING | WRITING or is_voted(error):
        return
    target = arguments[0] if arguments else keywords.get("target", keywords.get("a"))
    everything: list[Parameter] = []
    with suppress(XweightsError, TypeError):
        everything = open_target(target)
    if any(map(is_shared, everything)):
        vote = Vote(everything, name, writing=name in WRITING)
        vote.__exit__(type(error), error, error.__traceback__)
