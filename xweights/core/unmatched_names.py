"""What is said of a name that selects nothing."""

from __future__ import annotations

from collections.abc import Sequence

from xweights.core.names import glob_matcher, is_glob
from xweights.core.parameter import Parameter
from xweights.errors import near


def explain_name(shown: str, pattern: str, visible: Sequence[Parameter]) -> str:
    """Return why a name or glob matches none of these parameters, and what may have been meant."""
    inside = pattern.strip("./").replace(".", "/") + "/"
    if any(name.startswith(inside) for p in visible for name in (p.name, *p.aliases)):
        return f"{shown} is a layer, and no parameter\nFix: where={inside + '*'!r} for all that it has"
    hint = near(pattern, [p.name for p in visible] + [p.native_name for p in visible])
    if is_glob(pattern) and any(glob_matcher(pattern)(p.native_name) for p in visible):
        hint += f"\nIt does match native names: native({pattern!r})"
    return f"{shown} matches no neutral name\n{hint}"
