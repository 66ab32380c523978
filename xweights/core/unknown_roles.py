"""Trained arrays of which nothing says what they are: a default for kernels leaves them out, and says so."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence

from xweights.core.dtypes import is_complex
from xweights.core.layer_rows import is_known_role
from xweights.core.parameter import Parameter
from xweights.core.registry import loaded
from xweights.errors import UnknownRoleWarning


def unknown_roles(parameters: Iterable[Parameter]) -> list[Parameter]:
    """Return the trainable arrays of two or more axes, of floats or complex numbers, whose role nothing says."""
    return [
        p
        for p in parameters
        if len(p.layout.stored) > 1 and not is_known_role(p.role) and not p.hidden and _is_trained(p)
    ]


def _is_trained(p: Parameter) -> bool:
    return (p.floating or is_complex(p.dtype)) and p.trainable


def warn_of_unknown_roles(left_out: Sequence[Parameter]) -> None:
    """Warn, at the line of the user's call, of arrays that a default for kernels may have left out by mistake."""
    unknown = unknown_roles(left_out)
    if not unknown or any(backend.tracing() != "no" for backend in loaded()):
        return
    groups: dict[str, list[Parameter]] = {}
    for p in unknown:
        groups.setdefault(re.sub(r"\d+", "*", p.name), []).append(p)
    lines = [f"  {glob}" + (f" ({len(group)} arrays)" if len(group) > 1 else "") for glob, group in groups.items()]
    if len(lines) > _MOST_GROUPS:
        lines = [*lines[:_MOST_GROUPS], f"  ... and {len(lines) - _MOST_GROUPS:,} more"]
    roles = ", ".join(dict.fromkeys(repr(p.role) for p in unknown))
    layers = dict.fromkeys(kind for p in unknown if (kind := _layer_type(p)) is not None)
    teach = "".join(f"\n     or xweights.register_layer({kind!r}, ...)" for kind in list(layers)[:3])
    warnings.warn(
        f"{len(unknown):,} trainable arrays are left out, because nothing says that they are kernels\n"
        + "\n".join(lines)
        + f"\nFix: where=xweights.role('*kernel', 'embeddings', {roles}) takes them too,"
        f" where=xweights.role('*kernel', 'embeddings') leaves them out without a word{teach}",
        UnknownRoleWarning,
        stacklevel=_outside(),
    )


_MOST_GROUPS = 12


def _layer_type(p: Parameter) -> str | None:
    """Return the qualified name of the layer that has the array, if its backend says it."""
    owner = getattr(p.handle, "owner", None)
    if owner is not None:
        return f"{type(owner).__module__}.{type(owner).__qualname__}"
    # A handle that doesn't know its layer: the storage has the types of those that its backend walked through.
    types: Mapping[int, str] = getattr(p.storage, "layer_types", {})
    return types.get(id(p.handle))


def _outside() -> int:
    """Return the number of frames from the caller's to the first that isn't of this package."""
    level, frame = 1, sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0].startswith("xweights"):
        level, frame = level + 1, frame.f_back  # type: ignore[assignment] # the loop ends before None
    return level
