"""The arrays that each update rule keeps for a parameter: its slots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

SLOTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "sgd": ("momentum",),
        "adam": ("momentum", "velocity", "velocity_hat"),
        "adamax": ("momentum", "norm"),
        "nadam": ("momentum", "velocity", "product"),
        "rmsprop": ("velocity", "momentum", "average_gradient"),
        "adagrad": ("accumulator",),
        "adadelta": ("accumulated_grad", "accumulated_delta_var"),
        "adafactor": ("row", "column", "velocity"),
        "lion": ("momentum",),
        "ftrl": ("accumulator", "linear"),
        "lamb": ("momentum", "velocity"),
        "muon": ("momentum",),
    }
)
# Slots that exist only under a setting of the rule.
_OPTIONAL = {"velocity_hat": "amsgrad", "average_gradient": "centered"}


def slots_of(
    rule: str,
    hyper: Mapping[str, Any],
    rank: int,
    *,
    variant: Mapping[str, Any] = MappingProxyType({}),
    among: Iterable[str] | None = None,
) -> list[str]:
    """Return the slots that a rule keeps for an array of ``rank`` axes, in the order of ``among``.

    Args:
        rule: The name of the update rule.
        hyper: Its hyperparameters, under Keras' names.
        rank: The number of axes of the parameter.
        variant: How the rule is written where implementations differ.
        among: The slots that an implementation has, in its order. Default: all of the rule, in its own order.

    Example:
        >>> slots_of("adam", {"amsgrad": False}, 2)
        ['momentum', 'velocity']
        >>> slots_of("sgd", {"momentum": 0.0}, 2)
        []
    """
    unwanted = {slot for slot, setting in _OPTIONAL.items() if not hyper.get(setting)}
    if rule in ("sgd", "rmsprop") and not hyper.get("momentum"):
        unwanted.add("momentum")
    if rule == "adafactor" and rank < 2:
        unwanted |= {"row", "column"}
    elif rule == "adafactor" and variant.get("eps") == "floor":
        unwanted.add("velocity")  # PyTorch's Adafactor keeps one or the other
    known = SLOTS[rule]
    return [slot for slot in (known if among is None else among) if slot in known and slot not in unwanted]
