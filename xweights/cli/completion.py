"""Complete the values of ``--where`` with the names inside the files that were typed before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def complete_where(ctx: Any, incomplete: str) -> list[str]:
    """Return names, folders of names and roles that begin with what was typed; nothing if there is no file to read."""
    try:
        names = list(_names(ctx.params))
    except Exception:  # noqa: BLE001 - whatever is wrong with a file, a press of the Tab key says nothing of it
        return []
    leave_out, typed = ("~", incomplete[1:]) if incomplete.startswith("~") else ("", incomplete)
    folders = (f"{name[: i + 1]}*" for name in names for i, char in enumerate(name) if char == "/")
    roles = (f"role:{name.rpartition('/')[2]}" for name in names)
    offered = dict.fromkeys((*folders, *names, *roles))
    return [leave_out + text for text in offered if text.startswith(typed)]


def _names(params: Mapping[str, Any]) -> Iterator[str]:
    from xweights.cli.targets import split_part
    from xweights.core.targets import open_target
    from xweights.files.load import load

    for value in params.values():
        for text in value if isinstance(value, (list, tuple)) else [value]:
            if not isinstance(text, (str, Path)):
                continue
            path, part = split_part(Path(text))
            if path.exists():
                with load(path, part=part) as opened:
                    yield from (p.name for p in open_target(opened))
