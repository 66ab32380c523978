"""What the site needs beyond Markdown: links out of docs/ lead to the repository, the architecture is drawn."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = re.compile(r"\]\(((?:\.\./)+)([^)#\s]+)(#[^)\s]*)?\)")
MERMAID = re.compile(r"```mermaid\nflowchart TD\n(.*?)```", re.DOTALL)
NODE = re.compile(r'^\s*(\w+?)(\d+)\["(.*?)"\]$', re.MULTILINE)


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Return the page, its links out of docs/ leading to the repository, and Mermaid drawn without a script."""
    depth = page.file.src_uri.count("/")

    def lead_to_repository(match: re.Match[str]) -> str:
        ups, path, anchor = match[1].count("../"), match[2], match[3] or ""
        if ups <= depth:
            return match[0]
        if not (ROOT / path).exists():
            raise PluginError(f"{page.file.src_uri} links to {path}, which the checkout doesn't have")
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"]({config.repo_url.rstrip('/')}/{kind}/main/{path}{anchor})"

    return MERMAID.sub(_draw_rooms, OUTSIDE.sub(lead_to_repository, markdown))


def _draw_rooms(match: re.Match[str]) -> str:
    columns: dict[str, list[str]] = {}
    for column, _, rooms in NODE.findall(match[1]):
        columns.setdefault(column, []).append(rooms)
    if not columns:
        raise PluginError("the picture of the architecture has no rooms")
    drawn = [
        "".join(
            "<div>" + "".join(f"<span>{room}</span>" for room in rooms.split("<br>")) + "</div>" for rooms in column
        )
        for column in columns.values()
    ]
    return "\n".join(
        f'<p class="rooms-of">{title}</p><div class="rooms">{rooms}</div>'
        for title, rooms in zip(("The core", "A backend"), drawn, strict=True)
    )
