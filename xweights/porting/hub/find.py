"""Find the hub of a model."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any, cast

from xweights.errors import TargetError, got_expected
from xweights.porting.hub.protocol import Hub

GROUP = "xweights.hubs"


@cache
def load_hubs() -> tuple[Hub, ...]:
    """Return every installed hub; loading one imports no framework."""
    return tuple(cast("Hub", point.load()) for point in entry_points(group=GROUP))


def find_hub(model: Any) -> Hub:
    """Return the hub of a model; raise TargetError."""
    for hub in load_hubs():
        if hub.takes(model):
            return hub
    kind = type(model)
    names = ", ".join(hub.name for hub in load_hubs()) or "a hub (reinstall xweights-nn: none is registered)"
    raise TargetError(
        "only a model of a hub has settings that can be mapped\n"
        f"{got_expected(f'{kind.__module__}.{kind.__qualname__}', f'a model of {names}')}\n"
        "Fix: xw.port for the weights of any other model"
    )
